"""Stable Diffusion XL (https://arxiv.org/abs/2307.01952): a UNet told the text twice over and the picture's size."""

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.catalog import FamilyFacts, ModelEntry
from pipelines.denoising import Conditioning, Denoising
from pipelines.errors import CheckpointError
from pipelines.family import Family
from pipelines.graphs import Inputs
from pipelines.loading import load_pipeline
from pipelines.progress import Progress, untold
from pipelines.prompts import Embedding, EmbeddingCache, Text, clip_states, count_tokens
from pipelines.request import ImageRequest
from pipelines.samplers import Prediction
from pipelines.speed import check_levers


class SDXL(Family):
    """An SDXL checkpoint: base, Turbo, Lightning and fine-tunes of them."""

    facts = FamilyFacts(
        prediction=Prediction.DIFFUSION,
        size_step=8,
        width=1024,
        height=1024,
        steps=30,
        guidance_scale=5.0,
        # The aspect ratios SDXL was trained on near one megapixel (appendix I of the paper).
        native_sizes=("1024x1024", "1152x896", "896x1152", "1216x832", "832x1216", "1344x768", "768x1344"),
    )
    pipeline_class = "StableDiffusionXLPipeline"
    repeated_blocks = ("BasicTransformerBlock",)

    def __init__(self, entry: ModelEntry, pipeline: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.entry, self.device, self.dtype = entry, device, dtype
        self.unet = pipeline.unet
        if self.unet.config.time_cond_proj_dim is not None:
            raise CheckpointError(
                f"model {entry.name!r} is a guidance-distilled UNet (time_cond_proj_dim), which is not supported."
            )
        self.vae = pipeline.vae
        self.vae_factor = pipeline.vae_scale_factor
        self.tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
        self.text_encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
        if None in self.text_encoders:
            raise CheckpointError(f"model {entry.name!r} lacks a text encoder; an SDXL refiner is not a base model.")
        self.zeros_for_no_negative = bool(pipeline.config.force_zeros_for_empty_prompt)
        self.scheduler_config = dict(pipeline.scheduler.config)
        self.cache: EmbeddingCache[Text, Embedding] = EmbeddingCache()

    @classmethod
    def load(cls, entry: ModelEntry, device: torch.device, dtype: torch.dtype, progress: Progress = untold) -> "SDXL":
        from diffusers import StableDiffusionXLPipeline

        check_levers(entry, device, dtype)
        return cls(entry, load_pipeline(StableDiffusionXLPipeline, entry, dtype, progress), device, dtype)

    @property
    def denoiser(self) -> Any:
        return self.unet

    @property
    def modules(self) -> tuple[Any, ...]:
        return (self.unet, *self.text_encoders)

    def encode(self, requests: Sequence[ImageRequest]) -> list[Conditioning]:
        positive: list[Text] = [(request.prompt, request.clip_skip or 0) for request in requests]
        # Only the positive prompt skips layers, as in diffusers' pipeline.
        negative: list[Text] = [(request.negative_prompt or "", 0) for request in requests if self._reads(request)]
        # Two calls, as diffusers makes them, so that an image encoded alone gets the very same bits.
        embeddings = {
            text: embedding
            for texts in (positive, negative)
            for text, embedding in zip(texts, self.cache.get(texts, self._encode), strict=True)
        }
        conditionings = []
        for request, text in zip(requests, positive, strict=True):
            unconditional = None
            if request.guided:
                unconditional = Embedding.zeros_like(embeddings[text])
            if self._reads(request):
                unconditional = embeddings[(request.negative_prompt or "", 0)]
            conditionings.append(Conditioning.of(embeddings[text], unconditional))
        return conditionings

    def begin(self, request: ImageRequest, conditioning: Conditioning) -> Denoising:
        sampler = self.new_sampler(request)
        noise, generator = self.noise(request, self.unet.config.in_channels, self.vae_factor)
        size = (request.height, request.width)
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=self.dtype, device=self.device)
        latents = noise * sampler.init_noise_sigma
        return Denoising(request, conditioning, sampler, latents, generator, {"time_ids": time_ids})

    def inputs(self, batch: Sequence[Denoising]) -> Inputs:
        timesteps = torch.cat([image.timestep.float().expand(image.rows) for image in batch])
        return {
            "sample": torch.cat([image.model_input() for image in batch]),
            "timestep": timesteps.to(self.device),
            "encoder_hidden_states": torch.cat([image.text for image in batch]),
            "text_embeds": torch.cat([image.pooled for image in batch]),
            "time_ids": torch.cat([image.extra["time_ids"].expand(image.rows, -1) for image in batch]),
        }

    def ask(self, denoiser: Any, inputs: Inputs) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            inputs["sample"],
            inputs["timestep"],
            encoder_hidden_states=inputs["encoder_hidden_states"],
            added_cond_kwargs={name: inputs[name] for name in ("text_embeds", "time_ids")},
            return_dict=False,
        )[0]
        return prediction

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        latents = latents.to(self.vae.dtype)
        factor = self.vae.config.scaling_factor
        if (moments := self._moments(latents)) is not None:
            mean, std = moments
            latents = latents * std / factor + mean
        else:
            latents = latents / factor
        return self.decode_scaled(latents)

    def latents_of(self, pixels: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()
        if (moments := self._moments(latents)) is not None:
            mean, std = moments
            latents = (latents - mean) / std
        latents = latents * self.vae.config.scaling_factor
        return latents

    def _moments(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The mean and deviation of the VAE's latents, (1, C, 1, 1) each, where its configuration gives them."""
        config = self.vae.config
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return None
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return mean.to(latents), std.to(latents)

    def _reads(self, request: ImageRequest) -> bool:
        """Whether a request's negative prompt goes through the text encoders."""
        return request.guided and not (request.negative_prompt is None and self.zeros_for_no_negative)

    def _encode(self, texts: list[Text]) -> list[Embedding]:
        prompts, skips = [text for text, _ in texts], [skip for _, skip in texts]
        encoded = [
            clip_states(tokenizer, encoder, prompts, skips, tokenizer.model_max_length, self.device)
            for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True)
        ]
        states = torch.cat([states for states, _ in encoded], dim=-1)
        pooled = encoded[1][1]
        counts = count_tokens(self.tokenizers[0], prompts, self.tokenizers[0].model_max_length, marks=2)
        # Clones, or one prompt that is kept would keep its whole batch.
        return [Embedding(states[i].clone(), pooled[i].clone(), counts[i]) for i in range(len(texts))]
