"""The engine: the verbs a scheduler may ask of the GPU thread. It knows no family and no policy.

encode -> begin -> step, step, step -> finish, and a preview between any two steps. One image's failure is a value in
that image's place, so its neighbours never notice.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from PIL.Image import Image

from pipelines.catalog import ModelEntry
from pipelines.denoising import Conditioning, Denoising, Family, to_pictures
from pipelines.device import Device, raise_if_lost, repeatable, synchronize
from pipelines.errors import ImageTooLarge, NotANumber, PreviewFailed
from pipelines.families import families
from pipelines.fitting import Fitting
from pipelines.isolation import Isolation
from pipelines.loading import quiet_libraries
from pipelines.preview import Previewer, clean_latents, draw, new_previewer
from pipelines.profile import Profile
from pipelines.profiling import profile_of
from pipelines.request import BatchKey, ImageRequest
from pipelines.residency import Residency, free_memory
from pipelines.speed import keep_compiled
from pipelines.state import EngineState

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


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
    """Everything that touches tensors. Call its methods from one thread only.

    Args:
        device: from `pick_device`.
        resident_models: how many models may be loaded at once.
        folder: keeps what is learnt for the next start, models' measured profiles and compiled code; None keeps none.
    """

    def __init__(self, device: Device, resident_models: int = 2, folder: Path | None = None) -> None:
        self.device = device
        self._profiles = folder and folder / "profiles"
        self._residency = Residency(device, resident_models)
        # A model that is evicted takes its previewer with it.
        self._previewers: WeakKeyDictionary[Family, Previewer | None] = WeakKeyDictionary()
        self._fitting = Fitting()
        self._begun: list[tuple[ref[Denoising], str]] = []
        quiet_libraries()
        if folder is not None:
            keep_compiled(folder / "compiled")

    @property
    def state(self) -> EngineState:
        """What there is to know of it now."""
        return EngineState(resident=self._residency.resident, row_caps=self._fitting.row_caps)

    def family(self, entry: ModelEntry) -> Family:
        """A loaded model's networks, for whoever measures or compares them."""
        return self._residency.get(entry)

    @_verb
    def read(self, entry: ModelEntry, progress: Callable[[str, float], None]) -> Family:
        """Read a model's files into host memory, on any thread."""
        return families()[entry.family].load(entry, self.device.torch_device, self.device.dtype_for(entry.dtype))

    @_verb
    def place(self, entry: ModelEntry, family: Family | None, busy: Collection[str] = ()) -> None:
        self._residency.place(entry, family, busy)

    def unload(self, identity: str) -> None:
        self._residency.unload(identity)

    @_verb
    def measure(self, entry: ModelEntry) -> Profile:
        """What a loaded model's work costs here: measured, or remembered from when it was."""
        return profile_of(self._residency.get(entry), self.device, self._profiles)

    @_verb
    def load(self, entry: ModelEntry, busy: Collection[str] = ()) -> None:
        """Load a model if it isn't, evicting idle ones over the limit.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        if self.device.torch_device.type == "cuda":
            torch.cuda.set_device(self.device.torch_device)  # it belongs to a thread, and this is the one
        self._residency.load(entry, busy)
        self._previewer(self._residency.get(entry))

    @_verb
    def encode(self, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Conditioning | Exception]:
        """Encode prompts together; in each place the conditioning, or why that one failed."""
        family, isolation = self._residency.get(entry), self._isolation(entry)
        crowd = [request for request in requests if not request.deterministic]
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
            outcomes = self._isolation(entry).run(batch, lambda images: _decode(family, images))
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
        previewer = self._previewer(family)
        if previewer is None:
            return [PreviewFailed(f"model {entry.name!r} has no previews; the log says why.") for _ in batch]
        latents = [self._clean(entry, image) for image in batch]
        sound = [one for one in latents if not isinstance(one, Exception)]
        drawn = iter(self._isolation(entry).run(sound, lambda some: draw(previewer, some)) if sound else [])
        return [one if isinstance(one, Exception) else next(drawn) for one in latents]

    def _clean(self, entry: ModelEntry, image: Denoising) -> torch.Tensor | Exception:
        return self._isolation(entry).run([image], lambda _: [clean_latents(image, entry.prediction)])[0]

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
        while self._residency.evict({entry.identity, *self._busy()}):
            yield

    def _busy(self) -> set[str]:
        """The models of which somebody still holds an image; to drop an image is to let go of its model."""
        self._begun = [(image, model) for image, model in self._begun if image() is not None]
        return {model for _, model in self._begun}


def _rows(images: Sequence[Denoising]) -> int:
    return sum(image.rows for image in images)


def _decode(family: Family, images: Sequence[Denoising]) -> list[Image | Exception]:
    """Only sound latents are decoded; pixels that overflowed in the VAE's own dtype get a second try in float32."""
    latents = torch.cat([image.latents for image in images])
    sound = _finite(latents)
    outcomes: list[Image | Exception] = [NotANumber(_NOT_A_NUMBER) for _ in images]
    places = [place for place, good in enumerate(sound) if good]
    if not places:
        return outcomes
    pixels = family.decode(latents if all(sound) else latents[places])
    overflown = [row for row, good in enumerate(_finite(pixels)) if not good]
    if overflown and family.vae.dtype != torch.float32:
        pixels = pixels.float()
        pixels[overflown] = family.decode_precisely(latents[[places[row] for row in overflown]])
        overflown = [row for row, good in enumerate(_finite(pixels)) if not good]
    pictures = to_pictures(torch.nan_to_num(pixels) if overflown else pixels)
    for row, (place, picture) in enumerate(zip(places, pictures, strict=True)):
        if row not in overflown:
            outcomes[place] = picture
    return outcomes


_NOT_A_NUMBER = 'the picture came out as not-a-number; try dtype = "float32" or another VAE for this model.'


def _finite(values: torch.Tensor) -> list[bool]:
    """For each row whether all of it is finite."""
    rows: list[bool] = torch.isfinite(values).flatten(1).all(dim=1).tolist()
    return rows
