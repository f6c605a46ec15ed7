"""One image's whole description, and the rules that a request must keep. No torch here."""

from dataclasses import dataclass, replace

from pipelines.catalog import ModelEntry
from pipelines.errors import InvalidRequest
from pipelines.samplers import check_steps, choose

MAX_PROMPT_CHARACTERS = 32_000
MAX_SEED = 2**53 - 1
"""Seeds stay exact in JavaScript's and JSON's numbers."""
MAX_GUIDANCE = 50.0
MAX_CLIP_SKIP = 11


@dataclass(frozen=True)
class BatchKey:
    """What rows must share to ride in one forward pass. Guidance, steps, sampler, seed and prompt are *not* in it."""

    model: str
    """The entry's identity, so that a model whose weights were exchanged never shares a forward with its old self."""
    width: int
    height: int
    lone: int | None = None
    """A number that no other image has, for one that rides alone; None for all who ride together."""

    @classmethod
    def of(cls, entry: ModelEntry, request: "ImageRequest", number: int = 0) -> "BatchKey":
        """The key of a request.

        Args:
            number: which no other image in flight has.
        """
        return cls(entry.identity, request.width, request.height, number if request.deterministic else None)

    @property
    def shared(self) -> "BatchKey":
        """The key of those who ride together: what is learnt of a shape holds for its lone images too."""
        return replace(self, lone=None)


@dataclass(frozen=True)
class ImageRequest:
    """One image: everything that decides its pixels.

    Sizes are in pixels. `guidance_scale` is the weight w of classifier-free guidance; 1 or less means none.
    `negative_prompt` of None is diffusers' "not given", which SDXL treats unlike the empty string.
    `clip_skip` of n takes the text encoders' hidden state n layers before the one normally used.
    `skip_guidance` is the last share of the steps that go without guidance, 0 to 1.
    `deterministic` asks for the same bits each time, whatever else is computed: it rides alone.
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
    skip_guidance: float = 0.0
    deterministic: bool = False

    @property
    def guided(self) -> bool:
        """Whether the unconditional prediction is needed too. The bound is diffusers' own."""
        return self.guidance_scale > 1

    @property
    def rows(self) -> int:
        """How many rows of a forward pass this image takes; with `skip_guidance`, before that sets in."""
        return 2 if self.guided and self.guided_steps else 1

    @property
    def guided_steps(self) -> int:
        """How many steps, from the first, have guidance if the image has any."""
        return self.steps - round(self.steps * self.skip_guidance)


@dataclass(frozen=True)
class TokenCount:
    """How many tokens a text has, the marks at its ends not counted, and how many of them no encoder could read."""

    tokens: int = 0
    dropped: int = 0


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
    skip_guidance: float | None = None
    deterministic: bool = False


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
    check_range("guidance_scale", guidance, 0, MAX_GUIDANCE)
    skip = entry.speed.skip_guidance if wishes.skip_guidance is None else wishes.skip_guidance
    check_range("skip_guidance", skip, 0, 1)
    check_range("seed", seed, 0, MAX_SEED)
    if wishes.clip_skip is not None:
        check_range("clip_skip", wishes.clip_skip, 0, MAX_CLIP_SKIP)
    width, height = settle_size(wishes.width, wishes.height, entry)
    # The model's default schedule belongs to its default sampler: another sampler starts from its own.
    schedule = wishes.schedule or (entry.schedule if wishes.sampler is None else None)
    choice = choose(entry.prediction, wishes.sampler or entry.sampler, schedule)
    check_steps(choice, entry.prediction, steps)
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
        skip_guidance=float(skip),
        deterministic=wishes.deterministic,
    )


def settle_size(width: int | None, height: int | None, entry: ModelEntry) -> tuple[int, int]:
    """The model's default size, or the wished one if the model can make it; one side alone keeps the default other.

    Raises:
        InvalidRequest: for `size` where both sides were given, since that is how a client usually writes them; else
            for the side that was.
    """
    settled = (entry.width if width is None else width, entry.height if height is None else height)
    field = "size"
    if (width is None) != (height is None):
        field = "height" if width is None else "width"
    if not _possible(*settled, entry):
        raise InvalidRequest(
            field,
            f"size {_shown(settled[0])}x{_shown(settled[1])}: with {entry.name!r} each side must be a multiple of"
            f" {entry.size_step} from {entry.size_step} to {entry.max_side}, and width x height at most"
            f" {entry.max_pixels}. Its native sizes: {', '.join(entry.native_sizes)}.",
        )
    return settled


def _possible(width: int, height: int, entry: ModelEntry) -> bool:
    step, longest = entry.size_step, entry.max_side
    return (
        all(step <= side <= longest and side % step == 0 for side in (width, height))
        and width * height <= entry.max_pixels
    )


def check_range(field: str, value: float, low: float, high: float) -> None:
    """Raise InvalidRequest unless low <= value <= high (NaN fails too)."""
    if not low <= value <= high:
        raise InvalidRequest(field, f"{field} must be between {low:g} and {high:.17g}, not {_shown(value)}.")


def _shown(value: float) -> str:
    """A number for an error message; Python refuses to write out integers of thousands of digits."""
    if abs(value) > 1e18:
        return "a number beyond 1e18" if value > 0 else "a number beyond -1e18"
    return str(value)[:24]


def _check_prompt(field: str, text: str) -> None:
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(field, f"{field} has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed.")
