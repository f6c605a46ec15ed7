"""The model that is measured: which one, on which device, and its stock diffusers pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from pipelines.catalog import Catalog, ModelEntry
from pipelines.device import Device, pick_device
from pipelines.families import families, family_facts
from pipelines.loading import load_pipeline
from pipelines.models_toml import load_catalog
from pipelines.request import ImageRequest
from pipelines.samplers import Prediction, SamplerChoice, build


@dataclass(frozen=True)
class Model:
    """A model of a catalogue, by name; None is the catalogue's default."""

    models: Path
    name: str | None = None
    device_name: str = "auto"

    @cached_property
    def catalog(self) -> Catalog:
        """The catalogue with this model as its default, so that a server loads it at its start."""
        catalog = load_catalog(self.models, family_facts())
        return Catalog(catalog.entries, catalog.resolve(self.name).name, catalog.path)

    @property
    def entry(self) -> ModelEntry:
        return self.catalog.resolve(None)

    @cached_property
    def device(self) -> Device:
        return pick_device(self.device_name)

    @property
    def dtype(self) -> torch.dtype:
        return self.device.dtype_for(self.entry.dtype)


class StockPipeline:
    """The pipeline that diffusers itself offers for a model, in the dtype and on the device that Darkroom takes."""

    def __init__(self, model: Model) -> None:
        import diffusers

        self.entry = model.entry
        family = families()[self.entry.family]
        pipeline_class = getattr(diffusers, family.pipeline_class)
        self._pipeline = load_pipeline(pipeline_class, self.entry, model.dtype, **family.missing(self.entry))
        self._pipeline.to(model.device.torch_device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._config = dict(self._pipeline.scheduler.config)

    def pictures(self, requests: Sequence[ImageRequest], after_step: Callable[[], None] = lambda: None) -> list[Image]:
        """One call for requests that differ in prompt and seed alone."""
        return list(self._call(requests, "pil", after_step))

    def latents(self, request: ImageRequest) -> torch.Tensor:
        """The last latents of one request, (1, C, h, w)."""
        latents: torch.Tensor = self._call([request], "latent", lambda: None)
        return latents

    def _call(self, requests: Sequence[ImageRequest], output: str, after_step: Callable[[], None]) -> Any:
        first = requests[0]
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        extra = self._set_sampler(first, generators)
        negative = None if first.negative_prompt is None else [first.negative_prompt] * len(requests)

        def on_step_end(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            after_step()
            return tensors

        return self._pipeline(
            [request.prompt for request in requests],
            negative_prompt=negative,
            width=first.width,
            height=first.height,
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            clip_skip=first.clip_skip,
            generator=generators,
            output_type=output,
            callback_on_step_end=on_step_end,
            **extra,
        ).images

    def _set_sampler(self, request: ImageRequest, generators: list[torch.Generator]) -> dict[str, Any]:
        """Give the pipeline the request's sampler; returns what its call needs besides."""
        choice = SamplerChoice(request.sampler, request.schedule)
        sampler = build(choice, self.entry.prediction, self._config, request.seed)
        self._pipeline.scheduler = sampler
        if self.entry.prediction is Prediction.DIFFUSION:
            # TCD's own default, which the pipeline overrides with 0.
            return {"eta": 0.3} if request.sampler == "TCD" else {}
        if "generator" in signature(sampler.step).parameters:
            # SD3's pipeline does not hand its generators on, so a stochastic sampler would draw from nowhere.
            sampler.step = partial(sampler.step, generator=generators)
        return {"max_sequence_length": self.entry.max_sequence_length}
