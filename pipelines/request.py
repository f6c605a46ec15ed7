"""One image's whole description, and the rules that a request must keep. No torch here."""

from dataclasses import dataclass

from pipelines.catalog import ModelEntry
from pipelines.errors import InvalidRequest
from pipelines.samplers import choose

MAX_PROMPT_CHARACTERS = 32_000
MAX_SEED = 2**53 - 1
"""Seeds stay exact in JavaScript's and JSON's numbers."""
MAX_STEPS = 150
MAX_GUIDANCE = 50.0
MAX_CLIP_SKIP = 11


@dataclass(frozen=True)
class BatchKey:
    """What rows must share to ride in one forward pass. Guidance, steps, sampler, seed and prompt are *not* in it."""

    model: str
    width: int
    height: int


@dataclass(frozen=True)
class ImageRequest:
    """One image: everything that decides its pixels.

    Sizes are in pixels. `guidance_scale` is the weight w of classifier-free guidance; 1 or less means none.
    `negative_prompt` of None is diffusers' "not given", which SDXL treats unlike the empty string.
    `clip_skip` of n takes the text encoders' hidden state n layers before the one normally used.
    """

    model: str
    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    steps: int
    guidance_scale: float
    sampler: str
    schedule: str
    seed: int
    clip_skip: int | None = None

    @property
    def key(self) -> BatchKey:
        return BatchKey(self.model, self.width, self.height)

    @property
    def guided(self) -> bool:
        """Whether the unconditional prediction is needed too. The bound is diffusers' own."""
        return self.guidance_scale > 1

    @property
    def rows(self) -> int:
        """How many rows of a forward pass this image takes."""
        return 2 if self.guided else 1


@dataclass(frozen=True)
class Wishes:
    """What a client said about an image; None where the model's defaults are to decide."""

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    clip_skip: int | None = None


def settle(wishes: Wishes, entry: ModelEntry, seed: int) -> ImageRequest:
    """Complete a client's wishes with the model's defaults, and check the whole.

    Raises:
        InvalidRequest: naming the field, the rule and what is allowed.
    """
    _check_prompt("prompt", wishes.prompt)
    if not wishes.prompt.strip():
        raise InvalidRequest("prompt", "prompt is empty; describe the picture you want.")
    _check_prompt("negative_prompt", wishes.negative_prompt or "")
    steps = entry.steps if wishes.steps is None else wishes.steps
    guidance = entry.guidance_scale if wishes.guidance_scale is None else wishes.guidance_scale
    check_range("steps", steps, 1, MAX_STEPS)
    check_range("guidance_scale", guidance, 0, MAX_GUIDANCE)
    check_range("seed", seed, 0, MAX_SEED)
    if wishes.clip_skip is not None:
        check_range("clip_skip", wishes.clip_skip, 0, MAX_CLIP_SKIP)
    width, height = settle_size(wishes.width, wishes.height, entry)
    # The model's default schedule belongs to its default sampler: another sampler starts from its own.
    schedule = wishes.schedule or (entry.schedule if wishes.sampler is None else None)
    choice = choose(entry.prediction, wishes.sampler or entry.sampler, schedule)
    return ImageRequest(
        model=entry.name,
        prompt=wishes.prompt,
        negative_prompt=wishes.negative_prompt,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=float(guidance),
        sampler=choice.sampler,
        schedule=choice.schedule,
        seed=seed,
        clip_skip=wishes.clip_skip,
    )


def settle_size(width: int | None, height: int | None, entry: ModelEntry) -> tuple[int, int]:
    """The model's default size, or the wished one if the model can make it; one side alone keeps the default other."""
    settled = (width or entry.width, height or entry.height)
    step = entry.size_step
    for field, given, side in zip(("width", "height"), (width, height), settled, strict=True):
        if given is not None and given <= 0 or side % step:
            near = max(step, round(side / step) * step)
            raise InvalidRequest(
                field,
                f"{field} {side} must be a positive multiple of {step} for {entry.name!r}, such as {near}.",
            )
        if side > entry.max_side:
            raise InvalidRequest(field, f"{field} {side} is above {entry.name!r}'s longest side, {entry.max_side}.")
    if settled[0] * settled[1] > entry.max_pixels:
        raise InvalidRequest(
            "size",
            f"size {settled[0]}x{settled[1]} has {settled[0] * settled[1]} pixels; {entry.name!r} makes at most"
            f" {entry.max_pixels}. Its native sizes: {', '.join(entry.native_sizes)}.",
        )
    return settled


def check_range(field: str, value: float, low: float, high: float) -> None:
    """Raise InvalidRequest unless low <= value <= high (NaN fails too)."""
    if not low <= value <= high:
        shown = str(value)[:24]
        raise InvalidRequest(field, f"{field} must be between {low:g} and {high:.17g}, not {shown}.")


def _check_prompt(field: str, text: str) -> None:
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(field, f"{field} has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed.")
