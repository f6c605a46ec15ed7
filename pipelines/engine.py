"""The engine: the four verbs a scheduler may ask of the GPU thread. It knows no family and no policy.

encode -> begin -> step, step, step -> finish. One image's failure is a value in that image's place, so its
neighbours never notice.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from PIL.Image import Image

from pipelines.catalog import ModelEntry
from pipelines.denoising import Conditioning, Denoising, Family, to_pictures
from pipelines.device import Device, is_out_of_memory, repeatable, synchronize
from pipelines.errors import ImageFailed, ImageTooLarge, NotANumber, PipelineError
from pipelines.loading import quiet_libraries
from pipelines.request import ImageRequest
from pipelines.residency import Residency, free_memory
from pipelines.speed import keep_compiled
from pipelines.state import EngineState

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")


def _inference(function: Callable[P, T]) -> Callable[P, T]:
    """Inference mode belongs to a thread, so each verb enters it for itself."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode():
            return function(*args, **kwargs)

    return wrapped


class Engine:
    """Everything that touches tensors. Call its methods from one thread only.

    Args:
        device: from `pick_device`.
        resident_models: how many models may be loaded at once.
        compiled: the folder that keeps what torch.compile made for the next start; None leaves it to torch.
    """

    def __init__(self, device: Device, resident_models: int = 2, compiled: Path | None = None) -> None:
        self.device = device
        self.resident_limit = resident_models
        self._residency = Residency(device, resident_models)
        quiet_libraries()
        if compiled is not None:
            keep_compiled(compiled)

    @property
    def state(self) -> EngineState:
        """What there is to know of it now."""
        return EngineState(resident=self._residency.resident)

    def family(self, entry: ModelEntry) -> Family:
        """A loaded model's networks, for whoever measures or compares them."""
        return self._residency.get(entry)

    @_inference
    def load(self, entry: ModelEntry, busy: Collection[str] = ()) -> None:
        """Load a model if it isn't, evicting idle ones over the limit.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        if self.device.torch_device.type == "cuda":
            torch.cuda.set_device(self.device.torch_device)  # it belongs to a thread, and this is the one
        self._residency.load(entry, busy)

    @_inference
    def encode(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Conditioning | Exception]:
        """Encode prompts together; in each place the conditioning, or why that one failed."""
        family = self._residency.get(entry)
        crowd = [request for request in requests if not request.deterministic]
        encoded = iter(_isolated(crowd, family.encode, self.device.torch_device) if crowd else ())
        return [_attempt(family.encode_alone, one) if one.deterministic else next(encoded) for one in requests]

    @_inference
    def begin(
        self, entry: ModelEntry, requests: Sequence[ImageRequest], encoded: Sequence[Conditioning | Exception]
    ) -> list[Denoising | Exception]:
        """Draw each image's noise and build its sampler; a failed encoding stays the failure it is."""
        family = self._residency.get(entry)
        return [
            conditioning if isinstance(conditioning, Exception) else _attempt(family.begin, request, conditioning)
            for request, conditioning in zip(requests, encoded, strict=True)
        ]

    @_inference
    def step(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Exception | None]:
        """One forward pass for the whole batch, then each image's own sampler; in each place None or why it failed.

        All images of the batch share one `BatchKey`.
        """
        family = self._residency.get(entry)
        with self._as_wished(batch):
            predictions = _isolated(batch, family.predict, self.device.torch_device)
            outcomes = [
                prediction if isinstance(prediction, Exception) else _attempt(image.advance, prediction)
                for image, prediction in zip(batch, predictions, strict=True)
            ]
        # The one wait of a step: without it progress runs ahead of the GPU.
        synchronize(self.device.torch_device)
        return outcomes

    @_inference
    def finish(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Image | Exception]:
        """Decode finished images of one size together; in each place the RGB picture, or why there is none."""
        family = self._residency.get(entry)
        with self._as_wished(batch):
            return _isolated(batch, lambda images: _decode(family, images), self.device.torch_device)

    def _as_wished(self, batch: Sequence[Denoising]) -> AbstractContextManager[None]:
        """Only repeatable algorithms for an image that asks for them; it rides alone, so nobody else is slowed."""
        return repeatable(self.device.torch_device) if batch[0].request.deterministic else nullcontext()


def _decode(family: Family, images: Sequence[Denoising]) -> list[Image | Exception]:
    latents = torch.cat([image.latents for image in images])
    sound = torch.isfinite(latents).flatten(1).all(dim=1)
    pixels = family.decode(latents)
    sound &= torch.isfinite(pixels).flatten(1).all(dim=1)
    pictures = to_pictures(torch.nan_to_num(pixels))
    failure = 'the picture came out as not-a-number; try dtype = "float32" or another VAE for this model.'
    return [picture if good else NotANumber(failure) for picture, good in zip(pictures, sound.tolist(), strict=True)]


def _isolated(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Sequence[Result | Exception]],
    device: torch.device,
) -> list[Result | Exception]:
    """Do work on a batch; if it fails, on its halves, until the failure belongs to single items.

    `work` must leave its items as they were when it raises, so that it can simply be done again.
    """
    failure = None
    try:
        return list(work(items))
    except Exception as error:
        failure = _as_image_failure(error)
    # Outside the except block: its traceback would keep the failed forward's tensors alive.
    if isinstance(failure, ImageTooLarge):
        free_memory(device)
    if len(items) == 1:
        return [failure]
    half = len(items) // 2
    return _isolated(items[:half], work, device) + _isolated(items[half:], work, device)


def _attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Exception:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return _as_image_failure(error)


def _as_image_failure(error: Exception) -> Exception:
    """What a client is told. The frames go to the log: kept on the error, they would keep tensors alive."""
    if isinstance(error, PipelineError):
        return error.with_traceback(None)
    if is_out_of_memory(error):
        return ImageTooLarge("the device has too little memory for this picture; ask for a smaller size.")
    log.error("an image failed", exc_info=error)
    return ImageFailed(f"the picture failed while it was computed ({type(error).__name__}: {str(error)[:300]})")
