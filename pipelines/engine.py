"""The engine: the verbs a scheduler may ask of the GPU thread. It knows no family and no policy.

encode -> begin -> step, step, step -> finish, and a preview between any two steps. One image's failure is a value in
that image's place, so its neighbours never notice.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from PIL.Image import Image

from pipelines.catalog import ModelEntry
from pipelines.denoising import Conditioning, Denoising, Family, to_pictures
from pipelines.device import Device, is_out_of_memory, memory_used, synchronize
from pipelines.errors import ImageFailed, ImageTooLarge, NotANumber, PipelineError, PreviewFailed
from pipelines.families import families
from pipelines.loading import quiet_libraries
from pipelines.preview import Previewer, clean_latents, draw, new_previewer
from pipelines.profile import Profile
from pipelines.profiling import profile_of
from pipelines.request import ImageRequest
from pipelines.residency import Residency, free_memory
from pipelines.state import Counts, DeviceFacts, EngineState

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
        profiles: the folder in which models' measured profiles are kept; None keeps none.
    """

    def __init__(self, device: Device, resident_models: int = 2, profiles: Path | None = None) -> None:
        self.device = device
        self._counts = Counts()
        self._profiles = profiles
        self._residency = Residency(device, resident_models)
        # A model that is evicted takes its previewer with it.
        self._previewers: WeakKeyDictionary[Family, Previewer | None] = WeakKeyDictionary()
        quiet_libraries()

    @property
    def facts(self) -> DeviceFacts:
        """What never changes; from any thread."""
        return self.device.facts

    @property
    def state(self) -> EngineState:
        """What there is to know of it now."""
        used = memory_used(self.device.torch_device)
        return EngineState(resident=self._residency.resident, memory_used=used, counts=self._counts.copy())

    def family(self, entry: ModelEntry) -> Family:
        """A loaded model's networks, for whoever measures or compares them."""
        return self._residency.get(entry)

    @_inference
    def read(self, entry: ModelEntry, progress: Callable[[str, float], None]) -> Family:
        """Read a model's files into host memory, on any thread."""
        return families()[entry.family].load(entry, self.device.torch_device, self.device.dtype_for(entry.dtype))

    @_inference
    def place(self, entry: ModelEntry, family: Family | None, busy: Collection[str] = ()) -> None:
        self._residency.place(entry, family, busy)

    def unload(self, identity: str) -> None:
        self._residency.unload(identity)

    @_inference
    def measure(self, entry: ModelEntry) -> Profile:
        """What a loaded model's work costs here: measured, or remembered from when it was."""
        return profile_of(self._residency.get(entry), self.device, self._profiles)

    @_inference
    def load(self, entry: ModelEntry, busy: Collection[str] = ()) -> None:
        """Load a model if it isn't, evicting idle ones over the limit.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        if self.device.torch_device.type == "cuda":
            torch.cuda.set_device(self.device.torch_device)  # it belongs to a thread, and this is the one
        self._residency.load(entry, busy)
        self._previewer(self._residency.get(entry))

    @_inference
    def encode(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Conditioning | Exception]:
        """Encode prompts together; in each place the conditioning, or why that one failed."""
        family = self._residency.get(entry)
        with self._counting(family):
            return self._isolated(requests, family.encode)

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
        predictions = self._isolated(batch, family.predict)
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
        return self._isolated(batch, lambda images: _decode(family, images))

    @_inference
    def preview(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Image | Exception]:
        """What each image of a model will look like, as far as its last step tells; or why there is no telling.

        The images may be of several sizes and at any step. They are only looked at, so nothing of theirs changes.

        Returns:
            in each place an RGB picture of at most `preview.MAX_SIDE` pixels on its longer side, often smaller (with
            the linear map one pixel a latent, an eighth of the picture's own size), or the exception.
        """
        family = self._residency.get(entry)
        previewer = self._previewer(family)
        if previewer is None:
            return [PreviewFailed(f"model {entry.name!r} has no previews; the log says why.") for _ in batch]
        latents = [_attempt(clean_latents, image, entry.prediction) for image in batch]
        sound = [one for one in latents if not isinstance(one, Exception)]
        drawn = iter(self._isolated(sound, lambda some: draw(previewer, some)) if sound else [])
        return [one if isinstance(one, Exception) else next(drawn) for one in latents]

    def _previewer(self, family: Family) -> Previewer | None:
        """A loaded model's previewer, made once; None where it could not be, which costs nobody a picture."""
        if family not in self._previewers:
            previewer: Previewer | None = None
            try:
                previewer = new_previewer(family)
            except Exception as error:
                log.warning("no previews of model %r: %s", family.entry.name, str(error)[:600] or type(error).__name__)
            self._previewers[family] = previewer
        return self._previewers[family]

    @contextmanager
    def _counting(self, family: Family) -> Iterator[None]:
        """Count what the text encoders do, and what they are spared, for images; not for measurements."""
        kept, encoded = family.cache.hits, family.cache.misses
        yield
        self._counts.prompts_kept += family.cache.hits - kept
        self._counts.prompts_encoded += family.cache.misses - encoded

    def _isolated(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result | Exception]]
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
            free_memory(self.device.torch_device)
            self._counts.splits += len(items) > 1
        if len(items) == 1:
            return [failure]
        half = len(items) // 2
        return self._isolated(items[:half], work) + self._isolated(items[half:], work)


def _decode(family: Family, images: Sequence[Denoising]) -> list[Image | Exception]:
    latents = torch.cat([image.latents for image in images])
    sound = torch.isfinite(latents).flatten(1).all(dim=1)
    pixels = family.decode(latents)
    sound &= torch.isfinite(pixels).flatten(1).all(dim=1)
    pictures = to_pictures(torch.nan_to_num(pixels))
    failure = 'the picture came out as not-a-number; try dtype = "float32" or another VAE for this model.'
    return [picture if good else NotANumber(failure) for picture, good in zip(pictures, sound.tolist(), strict=True)]


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
