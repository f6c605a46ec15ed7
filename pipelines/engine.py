"""The engine: the verbs a scheduler may ask of the GPU thread. It knows no family and no policy.

encode -> begin -> step, step, step -> finish, and a preview between any two steps, once the model is there: make_room
-> read -> place, of which `read`, the long one, is for another thread. One image's failure is a value in that image's
place, so its neighbours never notice.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar
from weakref import ref

import torch
from PIL.Image import Image

from pipelines.budgets import Budgets
from pipelines.catalog import ModelEntry
from pipelines.decoding import decode
from pipelines.denoising import Conditioning, Denoising
from pipelines.device import Device, memory_used, raise_if_lost, repeatable, synchronize
from pipelines.errors import ImageTooLarge, NotRead, PreviewFailed
from pipelines.family import Family
from pipelines.fitting import Fitting
from pipelines.isolation import Isolation
from pipelines.loading import quiet_libraries
from pipelines.preview import Previewers, clean_latents, draw
from pipelines.profile import Profile
from pipelines.profiling import profile_of
from pipelines.progress import LoadStage, Progress, untold
from pipelines.reading import Reader
from pipelines.request import BatchKey, ImageRequest
from pipelines.residency import Residency, free_memory
from pipelines.speed import keep_compiled
from pipelines.state import Counts, DeviceFacts, EngineState

_NO_MEMORY = "the device has no memory left for a preview now."

P = ParamSpec("P")
T = TypeVar("T")


def _verb(function: Callable[Concatenate["Engine", P], T]) -> Callable[Concatenate["Engine", P], T]:
    """What every verb does: inference mode belongs to a thread, so each enters it for itself, and an error that no
    image can answer for is looked into before anybody goes on."""

    @wraps(function)
    def wrapped(engine: "Engine", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with torch.inference_mode():
                return function(engine, *args, **kwargs)
        except RuntimeError as error:
            raise_if_lost(error, engine.device.torch_device)
            raise

    return wrapped


class Engine:
    """Everything that touches tensors. Build it on the thread that calls it, the only one that may; except for `read`.

    Args:
        device: from `pick_device`.
        budgets: from `device.budgets`; by default what "auto" comes to.
        folder: keeps what is learnt for the next start, models' measured profiles and compiled code; None keeps none.
    """

    def __init__(self, device: Device, budgets: Budgets | None = None, folder: Path | None = None) -> None:
        self.device = device
        self._counts = Counts()
        self._profiles = folder and folder / "profiles"
        self._reader = Reader(device)
        self._residency = Residency(device, budgets or device.budgets())
        self._previewers = Previewers()
        self._fitting = Fitting()
        self._begun: list[tuple[ref[Denoising], str]] = []
        quiet_libraries()
        if folder is not None:
            keep_compiled(folder / "compiled")

    @property
    def facts(self) -> DeviceFacts:
        """What never changes; from any thread."""
        return self.device.facts

    @property
    def state(self) -> EngineState:
        """What there is to know of it now."""
        models = self._residency
        return EngineState(
            resident=models.resident,
            parked=models.parked,
            row_caps=self._fitting.row_caps,
            weight_bytes=models.weight_bytes,
            memory_used=memory_used(self.device.torch_device),
            counts=self._counts.copy(),
        )

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

    @_verb
    def make_room(self, entry: ModelEntry, busy: Collection[str] = ()) -> None:
        """Before a model is read: where the device's memory is the host's, idle ones that it will replace go first.

        Elsewhere, and for a model in memory or not downloaded yet, nothing is done: `place` makes the room.

        Raises:
            CheckpointError: it cannot be loaded, or is larger than the whole budget.
            NoRoom: it will not fit beside the busy models.
        """
        if not self.device.own_memory and not self._residency.holds(entry):
            self._residency.make_room(entry, self._reader.expected_bytes(entry), busy)

    @_verb
    def read(self, entry: ModelEntry, progress: Progress = untold) -> Family:
        """Check, download if need be, and read a model into host memory. On any thread: it touches nothing shared.

        A thread that is not the engine's own is set to compute alone, for good (see `Reader`).

        Raises:
            CheckpointError: it cannot be loaded.
        """
        return self._reader.read(entry, progress)

    @_verb
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
        self._residency.place(entry, family, busy, progress)
        self._previewers.make(self._residency.get(entry))
        progress(LoadStage.PLACING, 1.0)

    @_verb
    def unload(self, identity: str) -> None:
        """Forget a model, on the device and in host memory; the caller sees to it that nobody uses it."""
        self._residency.unload(identity)

    @_verb
    def measure(self, entry: ModelEntry) -> Profile:
        """What a loaded model's work costs here: measured, or remembered from when it was."""
        if entry.identity not in self._residency.resident:
            raise NotRead(f"model {entry.name!r} had to make room before it was measured.")
        return profile_of(self._residency.get(entry), self.device, self._profiles)

    @_verb
    def encode(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Conditioning | Exception]:
        """Encode prompts together; in each place the conditioning, or why that one failed."""
        family, isolation = self._residency.get(entry), self._isolation(entry)
        crowd = [request for request in requests if not request.deterministic]
        with self._counting(family):
            encoded = iter(isolation.run(crowd, family.encode) if crowd else ())

        def alone(some: Sequence[ImageRequest]) -> list[Conditioning]:
            return [family.encode_alone(some[0])]

        return [isolation.run([one], alone)[0] if one.deterministic else next(encoded) for one in requests]

    @_verb
    def begin(
        self, entry: ModelEntry, requests: Sequence[ImageRequest], encoded: Sequence[Conditioning | Exception]
    ) -> list[Denoising | Exception]:
        """Draw each image's noise and build its sampler; a failed encoding stays the failure it is."""
        outcomes = [
            text if isinstance(text, Exception) else self._begin(entry, request, text)
            for request, text in zip(requests, encoded, strict=True)
        ]
        begun = [(ref(image), entry.identity) for image in outcomes if isinstance(image, Denoising)]
        self._begun = [*(known for known in self._begun if known[0]() is not None), *begun]
        return outcomes

    @_verb
    def step(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Exception | None]:
        """One forward pass for the whole batch, then each image's own sampler; in each place None or why it failed.

        All images of the batch share one `BatchKey`. An image that failed is as it was before.
        """
        isolation = self._isolation(entry)
        with self._as_wished(batch):
            predictions = isolation.run(batch, self._residency.get(entry).predict)
            outcomes = [
                prediction if isinstance(prediction, Exception) else self._advance(entry, image, prediction)
                for image, prediction in zip(batch, predictions, strict=True)
            ]
        if isolation.halved:
            self._counts.splits += sum(len(part) > 1 for part in isolation.halved)
            fitted, lacking = ([_rows(part) for part in parts] for parts in (isolation.fitted, isolation.halved))
            self._fitting.halved(BatchKey.of(entry, batch[0].request), fitted, lacking)
        # The one wait of a step: without it progress runs ahead of the GPU.
        synchronize(self.device.torch_device)
        return outcomes

    @_verb
    def finish(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Image | Exception]:
        """Decode finished images of one size together; in each place the RGB picture, or why there is none."""
        family = self._residency.get(entry)
        with self._as_wished(batch):
            outcomes = self._isolation(entry).run(batch, lambda images: decode(family, images))
        if any(isinstance(outcome, Image) for outcome in outcomes):
            self._fitting.finished(BatchKey.of(entry, batch[0].request))
        return outcomes

    @_verb
    def preview(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Image | Exception]:
        """What each image of a model will look like, as far as its last step tells; or why there is no telling.

        The images may be of several sizes and at any step. They are only looked at, so nothing of theirs changes.

        Returns:
            in each place an RGB picture of at most `preview.MAX_SIDE` pixels on its longer side, often smaller (with
            the linear map one pixel a latent, an eighth of the picture's own size), or the exception.
        """
        family = self._residency.get(entry)
        latents = [self._clean(entry, image) for image in batch]
        sound = [one for one in latents if not isinstance(one, Exception)]

        def drawing(some: Sequence[torch.Tensor]) -> list[Image | Exception]:
            return draw(self._previewers.of(family), some)

        isolation = Isolation(self.device.torch_device, self._room(entry), lambda _: PreviewFailed(_NO_MEMORY))
        drawn = iter(isolation.run(sound, drawing) if sound else [])
        return [one if isinstance(one, Exception) else next(drawn) for one in latents]

    def _clean(self, entry: ModelEntry, image: Denoising) -> torch.Tensor | Exception:
        return self._isolation(entry).run([image], lambda _: [clean_latents(image, entry.prediction)])[0]

    @contextmanager
    def _counting(self, family: Family) -> Iterator[None]:
        """Count what the text encoders do, and what they are spared, for images; not for measurements."""
        kept, encoded = family.cache.hits, family.cache.misses
        yield
        self._counts.prompts_kept += family.cache.hits - kept
        self._counts.prompts_encoded += family.cache.misses - encoded

    def _begin(self, entry: ModelEntry, request: ImageRequest, text: Conditioning) -> Denoising | Exception:
        family = self._residency.get(entry)
        return self._isolation(entry).run([request], lambda _: [family.begin(request, text)])[0]

    def _advance(self, entry: ModelEntry, image: Denoising, prediction: torch.Tensor) -> Exception | None:
        def advance(images: Sequence[Denoising]) -> list[None]:
            images[0].advance(prediction)
            return [None]

        return self._isolation(entry).run([image], advance)[0]

    def _as_wished(self, batch: Sequence[Denoising]) -> AbstractContextManager[None]:
        """Only repeatable algorithms for an image that asks for them; it rides alone, so nobody else is slowed."""
        return repeatable(self.device.torch_device) if batch[0].request.deterministic else nullcontext()

    def _isolation(self, entry: ModelEntry) -> Isolation:
        def too_large(item: ImageRequest | Denoising) -> ImageTooLarge:
            request = item if isinstance(item, ImageRequest) else item.request
            return self._fitting.too_large(BatchKey.of(entry, request))

        return Isolation(self.device.torch_device, self._room(entry), too_large)

    def _room(self, entry: ModelEntry) -> Iterator[None]:
        """Each turn gives some memory back: what only saves time, then one idle model after another."""
        self._residency.forget_prompts()
        free_memory(self.device.torch_device)
        yield
        while self._residency.leave({entry.identity, *self._busy()}):
            yield

    def _busy(self) -> set[str]:
        """The models of which somebody still holds an image; to drop an image is to let go of its model."""
        self._begun = [(image, model) for image, model in self._begun if image() is not None]
        return {model for _, model in self._begun}


def _rows(images: Sequence[Denoising]) -> int:
    return sum(image.rows for image in images)
