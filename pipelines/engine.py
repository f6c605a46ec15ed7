"""The engine: the verbs a scheduler may ask of the GPU thread. It knows no family and no policy.

encode -> begin -> step, step, step -> finish, once the model is there: make_room -> read -> place, of which `read`, the
long one, is for another thread. One image's failure is a value in that image's place, so its
neighbours never notice.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from PIL.Image import Image

from pipelines.budgets import Budgets
from pipelines.catalog import ModelEntry
from pipelines.denoising import Conditioning, Denoising, Family, to_pictures
from pipelines.device import Device, is_out_of_memory, synchronize
from pipelines.errors import ImageFailed, ImageTooLarge, NotANumber, PipelineError
from pipelines.loading import quiet_libraries
from pipelines.progress import LoadStage, Progress, untold
from pipelines.reading import Reader
from pipelines.request import ImageRequest
from pipelines.residency import Residency, free_memory
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
    """Everything that touches tensors. Build it on the thread that calls it, the only one that may; except for `read`.

    Args:
        device: from `pick_device`.
        budgets: from `device.budgets`; by default what "auto" comes to.
    """

    def __init__(self, device: Device, budgets: Budgets | None = None) -> None:
        self.device = device
        self._reader = Reader(device)
        self._residency = Residency(device, budgets or device.budgets())
        quiet_libraries()

    @property
    def state(self) -> EngineState:
        """What there is to know of it now."""
        models = self._residency
        return EngineState(resident=models.resident, parked=models.parked, weight_bytes=models.weight_bytes)

    def family(self, entry: ModelEntry) -> Family:
        """A loaded model's networks, for whoever measures or compares them."""
        return self._residency.get(entry)

    def load(self, entry: ModelEntry, busy: Collection[str] = ()) -> None:
        """All of a load in one, for callers with a single thread.

        Raises:
            CheckpointError, NoRoom: as of `read` and `place`.
        """
        self.make_room(entry, busy)
        self.place(entry, None if self._residency.holds(entry) else self.read(entry), busy)

    @_inference
    def make_room(self, entry: ModelEntry, busy: Collection[str] = ()) -> None:
        """Before a model is read: where the device's memory is the host's, idle ones that it will replace go first.

        Elsewhere, and for a model in memory or not downloaded yet, nothing is done: `place` makes the room.

        Raises:
            CheckpointError: it cannot be loaded, or is larger than the whole budget.
            NoRoom: it will not fit beside the busy models.
        """
        if not self.device.own_memory and not self._residency.holds(entry):
            self._residency.make_room(entry, self._reader.expected_bytes(entry), busy)

    @_inference
    def read(self, entry: ModelEntry, progress: Progress = untold) -> Family:
        """Check, download if need be, and read a model into host memory. On any thread: it touches nothing shared.

        A thread that is not the engine's own is set to compute alone, for good (see `Reader`).

        Raises:
            CheckpointError: it cannot be loaded.
        """
        return self._reader.read(entry, progress)

    @_inference
    def place(
        self, entry: ModelEntry, family: Family | None, busy: Collection[str] = (), progress: Progress = untold
    ) -> None:
        """Have a model on the device, parking or evicting idle ones where the budgets want it; mark it as used.

        Args:
            family: as read; None for a model that is there already, or parked.
            busy: the identities of the models that must stay.

        Raises:
            CheckpointError: it is larger than the whole budget, or than the device.
            NoRoom: it does not fit beside the busy models; if it is parked now, it need not be read again.
            NotRead: None was given, and the model is neither there nor parked.
        """
        if self.device.torch_device.type == "cuda":
            torch.cuda.set_device(self.device.torch_device)  # it belongs to a thread, and this is the one
        progress(LoadStage.PLACING, 0.0)
        self._residency.place(entry, family, busy)
        progress(LoadStage.PLACING, 1.0)

    def unload(self, identity: str) -> None:
        """Forget a model, on the device and in host memory; the caller sees to it that nobody uses it."""
        self._residency.unload(identity)

    @_inference
    def encode(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Conditioning | Exception]:
        """Encode prompts together; in each place the conditioning, or why that one failed."""
        family = self._residency.get(entry)
        return _isolated(requests, family.encode, self.device.torch_device)

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
        return _isolated(batch, lambda images: _decode(family, images), self.device.torch_device)


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
