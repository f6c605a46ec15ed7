"""Stable Diffusion 3 and 3.5 (https://arxiv.org/abs/2403.03206): a transformer over text and latents together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from pipelines.catalog import FamilyFacts, ModelEntry
from pipelines.denoising import Conditioning, Denoising
from pipelines.errors import CheckpointError, InvalidRequest
from pipelines.family import Family
from pipelines.graphs import Inputs
from pipelines.headers import read_json
from pipelines.loading import load_pipeline
from pipelines.progress import Progress, untold
from pipelines.prompts import Embedding, EmbeddingCache, Text, clip_states, count_tokens, t5_states
from pipelines.request import ImageRequest, TokenCount
from pipelines.samplers import Prediction
from pipelines.speed import check_levers


class SD3(Family):
    """An SD3 checkpoint, with its T5 encoder or without."""

    facts = FamilyFacts(
        prediction=Prediction.FLOW,
        size_step=16,
        width=1024,
        height=1024,
        steps=28,
        guidance_scale=7.0,
        native_sizes=("1024x1024", "1152x896", "896x1152", "1216x832", "832x1216", "1344x768", "768x1344"),
    )
    pipeline_class = "StableDiffusion3Pipeline"
    repeated_blocks = ("JointTransformerBlock",)

    def __init__(self, entry: ModelEntry, pipeline: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.entry, self.device, self.dtype = entry, device, dtype
        self.transformer = pipeline.transformer
        self.vae = pipeline.vae
        self.vae_factor = pipeline.vae_scale_factor
        self.tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2, pipeline.tokenizer_3)
        self.text_encoders = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
        if None in self.text_encoders[:2]:
            raise CheckpointError(f"model {entry.name!r} lacks one of SD3's two CLIP text encoders.")
        self._check_fusible()
        self.scheduler_config = dict(pipeline.scheduler.config)
        self.cache: EmbeddingCache[Text, Embedding] = EmbeddingCache()

    @classmethod
    def missing(cls, entry: ModelEntry) -> dict[str, None]:
        """T5, where it is not wanted or where the checkpoint's index, if at hand, has none."""
        index = Path(entry.config or entry.source) / "model_index.json"
        has_t5 = not index.exists() or read_json(index).get("text_encoder_3", [None])[0] is not None
        return {} if entry.t5 and has_t5 else {"text_encoder_3": None, "tokenizer_3": None}

    @classmethod
    def load(cls, entry: ModelEntry, device: torch.device, dtype: torch.dtype, progress: Progress = untold) -> "SD3":
        from diffusers import StableDiffusion3Pipeline

        check_levers(entry, device, dtype)
        pipeline = load_pipeline(StableDiffusion3Pipeline, entry, dtype, progress, **cls.missing(entry))
        return cls(entry, pipeline, device, dtype)

    @property
    def denoiser(self) -> Any:
        return self.transformer

    @property
    def modules(self) -> tuple[Any, ...]:
        return (self.transformer, *(encoder for encoder in self.text_encoders if encoder is not None))

    def encode(self, requests: Sequence[ImageRequest]) -> list[Conditioning]:
        positive: list[Text] = [(request.prompt, request.clip_skip or 0) for request in requests]
        negative: list[Text] = [(request.negative_prompt or "", 0) for request in requests if request.guided]
        # Two calls, as diffusers makes them, so that an image encoded alone gets the very same bits.
        embeddings = {
            text: embedding
            for texts in (positive, negative)
            for text, embedding in zip(texts, self.cache.get(texts, self._encode), strict=True)
        }
        return [
            Conditioning.of(
                embeddings[text], embeddings[(request.negative_prompt or "", 0)] if request.guided else None
            )
            for request, text in zip(requests, positive, strict=True)
        ]

    def begin(self, request: ImageRequest, conditioning: Conditioning) -> Denoising:
        self._check_size(request)
        sampler = self.new_sampler(request)
        noise, generator = self.noise(request, self.transformer.config.in_channels, self.vae_factor)
        return Denoising(request, conditioning, sampler, noise, generator)

    def inputs(self, batch: Sequence[Denoising]) -> Inputs:
        timesteps = torch.cat([image.timestep.float().expand(image.rows) for image in batch])
        return {
            "hidden_states": torch.cat([image.model_input() for image in batch]),
            "timestep": timesteps.to(self.device),
            "encoder_hidden_states": torch.cat([image.text for image in batch]),
            "pooled_projections": torch.cat([image.pooled for image in batch]),
        }

    def ask(self, denoiser: Any, inputs: Inputs) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(**inputs, return_dict=False)[0]
        return prediction

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.vae.config
        latents = latents.to(self.vae.dtype) / config.scaling_factor + config.shift_factor
        return self.decode_scaled(latents)

    def _check_fusible(self) -> None:
        """diffusers' fused processor leaves SD3.5's norms of queries and keys out and fails at its second attention."""
        config = self.transformer.config
        if self.entry.speed.fuse_qkv and (config.qk_norm is not None or config.dual_attention_layers):
            raise CheckpointError(
                f"model {self.entry.name!r} is an SD3.5, whose projections diffusers cannot fuse without changing its"
                f" pictures; leave fuse_qkv out of models.{self.entry.name}.speed."
            )

    def latents_of(self, pixels: torch.Tensor) -> torch.Tensor:
        config = self.vae.config
        latents: torch.Tensor = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()
        latents = (latents - config.shift_factor) * config.scaling_factor
        return latents

    def _check_size(self, request: ImageRequest) -> None:
        """The transformer's table of positions bounds each side of the picture."""
        config = self.transformer.config
        longest = config.pos_embed_max_size * config.patch_size * self.vae_factor
        if max(request.width, request.height) > longest:
            sizes = ", ".join(self.entry.native_sizes)
            raise InvalidRequest(
                "size",
                f"{self.entry.name!r} makes pictures of at most {longest} pixels a side. Its native sizes: {sizes}.",
            )

    def sampler_options(self, sampler: Any, request: ImageRequest) -> dict[str, float]:
        """The resolution-dependent shift mu of section 5.3.2 of the paper, where the checkpoint asks for it."""
        config = self.scheduler_config
        if not config.get("use_dynamic_shifting") or not sampler.config.get("use_dynamic_shifting"):
            return {}
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        patch = self.vae_factor * self.transformer.config.patch_size
        tokens = (request.height // patch) * (request.width // patch)
        names = {"base_seq_len": "base_image_seq_len", "max_seq_len": "max_image_seq_len"}
        wanted = {"base_seq_len": 256, "max_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.16}
        return {"mu": calculate_shift(tokens, **{k: config.get(names.get(k, k), v) for k, v in wanted.items()})}

    def _encode(self, texts: list[Text]) -> list[Embedding]:
        prompts, skips = [text for text, _ in texts], [skip for _, skip in texts]
        length = self.tokenizers[0].model_max_length
        clip = [
            clip_states(self.tokenizers[index], self.text_encoders[index], prompts, skips, length, self.device)
            for index in (0, 1)
        ]
        t5 = self._t5(prompts)
        states = torch.cat([states for states, _ in clip], dim=-1)
        states = torch.cat([pad(states, (0, t5.shape[-1] - states.shape[-1])), t5], dim=-2)
        pooled = torch.cat([pooled for _, pooled in clip], dim=-1)
        counts = self._counts(prompts)
        # Clones, or one prompt that is kept would keep its whole batch.
        return [Embedding(states[i].clone(), pooled[i].clone(), counts[i]) for i in range(len(texts))]

    def _counts(self, prompts: list[str]) -> list[TokenCount]:
        """Each prompt's tokens and those that no encoder reads; T5, where there is one, reads the most."""
        if self.text_encoders[2] is None or self.entry.max_sequence_length == 0:
            return count_tokens(self.tokenizers[0], prompts, self.tokenizers[0].model_max_length, marks=2)
        return count_tokens(self.tokenizers[2], prompts, self.entry.max_sequence_length, marks=1)

    def _t5(self, prompts: list[str]) -> torch.Tensor:
        """T5's states, or the zeros that stand for them in a checkpoint without T5."""
        length = self.entry.max_sequence_length
        if self.text_encoders[2] is None or length == 0:
            shape = (len(prompts), length, self.transformer.config.joint_attention_dim)
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        return t5_states(self.tokenizers[2], self.text_encoders[2], prompts, length, self.device)
