"""What the work ahead costs, from profiles measured at load and corrected by everything that ran. Pure: no clock."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pipelines.profile import PIXELS, Profile
from pipelines.request import BatchKey

SMOOTHING = 0.02
"""What a factor takes on of the newest surprise, once it has seen enough: of three factors, about a picture's steps.

With more, an estimate of a whole picture would hang on its last few steps, which a busy machine scatters."""

KNEE_SLACK = 0.05
"""Rows within this share of the best throughput are as good as the best: more only make everybody wait longer."""

UNMEASURED = Profile(
    PIXELS, steps=((1.0, 5e-7), (2.0**22, 2.1)), encode_seconds=0.05, decode_seconds=5e-7, counted=False
)
"""Before anything was measured, half a second a megapixel: some estimate must be given, and the first steps mend it."""


MOST_SURPRISE, MOST_FIRST_SURPRISE = 4.0, 1e4
"""What one observation may teach at most, either way: the machine may have been busy elsewhere just then. Before the
first, nothing is known of how far off the profile is."""

FIRST_TIMES = 50.0
"""How many times longer the first step or decode of its kind may take: kernels are chosen, compiled and captured."""

LEAST_FIRST_SECONDS = 30.0
"""What it may take anyhow, however little is to be computed."""


@dataclass
class _Factor:
    """How much longer something takes than is otherwise known of it."""

    value: float = 1.0
    seen: int = 0

    def absorb(self, surprise: float) -> float:
        """Take on a share of a surprise, observed over expected; what is left of it.

        The first one is taken on whole, and the first ones count alike.
        """
        most = MOST_SURPRISE if self.seen else MOST_FIRST_SURPRISE
        surprise = min(most, max(1 / most, surprise))
        self.seen += 1
        share = max(SMOOTHING, 1 / self.seen)
        taken = 1 + share * (surprise - 1)
        self.value *= taken
        return surprise / taken


@dataclass
class _Shape:
    """What is peculiar to one size of a model, and to each number of rows of it."""

    factor: _Factor = field(default_factory=_Factor)
    rows: dict[int, _Factor] = field(default_factory=dict)


@dataclass
class _Model:
    """One model's profile and its corrections."""

    profile: Profile = UNMEASURED
    steps: _Factor = field(default_factory=_Factor)
    encode: _Factor = field(default_factory=_Factor)
    decode: _Factor = field(default_factory=_Factor)
    shapes: dict[tuple[int, int], _Shape] = field(default_factory=dict)


class CostModel:
    """Seconds of steps, encodings and decodings.

    A step is read off its model's profile, and multiplied by how much longer this model's steps take, those of this
    shape among them, and those of these rows (or the nearest seen) among those. One step teaches all three, the first
    of them first: so a machine that grows slower makes all its estimates longer alike, and rows that happened to run
    while it was busy are not thought dear for ever.
    """

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._known: dict[tuple[BatchKey, int], float] = {}
        self._rates: dict[tuple[BatchKey, int], float] = {}

    def adopt(self, model: str, profile: Profile) -> None:
        """Take a model's measured profile; against the same one, what was observed of the model before counts on."""
        if self._model(model).profile == profile:
            return
        self._models[model] = _Model(profile)
        self._forget(model)

    def profile(self, model: str) -> Profile:
        """A model's profile, without its corrections."""
        return self._model(model).profile

    def flops(self, key: BatchKey, rows: int) -> float:
        """Floating-point operations of one forward pass, as counted at load; 0 where they never were."""
        profile = self.profile(key.model)
        return profile.row_flops(_pixels(key)) * rows if profile.counted else 0.0

    def seen(self, model: str) -> Mapping[tuple[int, int], Collection[int]]:
        """The sizes of which steps of this model ran, the first seen first, and with how many rows."""
        return {size: shape.rows.keys() for size, shape in self._model(model).shapes.items()}

    def observe_step(self, key: BatchKey, rows: int, seconds: float) -> None:
        """Learn from one real step; of a measured model, from the second of its kind on.

        The first one chooses, compiles and captures kernels.
        """
        model = self._model(key.model)
        shape = model.shapes.setdefault((key.width, key.height), _Shape())
        first = rows not in shape.rows
        peculiar = shape.rows.setdefault(rows, _Factor(_nearest(shape, rows)))
        if first and model.profile is not UNMEASURED:
            return
        surprise = seconds / self.step_seconds(key, rows)
        for factor in (model.steps, shape.factor, peculiar):
            surprise = factor.absorb(surprise)
        self._forget(key.model)

    def observe_encode(self, model: str, images: int, seconds: float) -> None:
        """Learn from the beginning of some images together."""
        self._model(model).encode.absorb(seconds / images / self.encode_seconds(model))

    def observe_decode(self, key: BatchKey, images: int, seconds: float) -> None:
        """Learn from the decoding of some images together."""
        self._model(key.model).decode.absorb(seconds / images / self.decode_seconds(key))

    def step_seconds(self, key: BatchKey, rows: int) -> float:
        """One forward pass of so many rows, and the samplers' own steps."""
        if (key, rows) not in self._known:
            model = self._model(key.model)
            shape = model.shapes.get((key.width, key.height), _Shape())
            factors = model.steps.value * shape.factor.value * _nearest(shape, rows)
            self._known[key, rows] = model.profile.step_seconds(_pixels(key), rows) * factors
        return self._known[key, rows]

    def expected_step(self, key: BatchKey, rows: int) -> float | None:
        """How long such a step may be expected to take, the first of its kind too; None where nobody can know."""
        model = self._model(key.model)
        shape = model.shapes.get((key.width, key.height))
        if shape is not None and rows in shape.rows:
            return self.step_seconds(key, rows)
        measured = model.profile is not UNMEASURED
        return max(LEAST_FIRST_SECONDS, FIRST_TIMES * self.step_seconds(key, rows)) if measured else None

    def knows(self, model: str) -> bool:
        """Whether anything of a model was measured, or seen."""
        known = self._model(model)
        return known.profile is not UNMEASURED or known.steps.seen > 0

    def expected_decode(self, key: BatchKey, images: int) -> float | None:
        """The same of decoding so many images."""
        model, seconds = self._model(key.model), images * self.decode_seconds(key)
        if model.decode.seen:
            return seconds
        return max(LEAST_FIRST_SECONDS, FIRST_TIMES * seconds) if model.profile is not UNMEASURED else None

    def expected_encode(self, model: str, images: int) -> float | None:
        """Seconds of beginning so many images, once this model was measured or began any; as if no prompt were kept."""
        known = self._model(model)
        if known.profile is UNMEASURED and not known.encode.seen:
            return None
        return images * known.profile.encode_seconds * max(1.0, known.encode.value)

    def encode_seconds(self, model: str) -> float:
        """What comes before one image's first step."""
        known = self._model(model)
        return known.profile.encode_seconds * known.encode.value

    def decode_seconds(self, key: BatchKey) -> float:
        """What comes after one image's last step, on the device."""
        known = self._model(key.model)
        return known.profile.decode_seconds * _pixels(key) * known.decode.value

    def solo_seconds(self, key: BatchKey, rows: int, evaluations: int) -> float:
        """How long the device needs for one image that has it to itself."""
        steps = evaluations * self.step_seconds(key, rows)
        return self.encode_seconds(key.model) + steps + self.decode_seconds(key)

    def share_seconds(self, key: BatchKey, rows: int, evaluations: int, most: int) -> float:
        """How much of the device's time one image takes in full batches: its part of what a backlog needs."""
        steps = evaluations * rows / self.best_rate(key, most)
        return steps + self.decode_seconds(key)

    def best_rate(self, key: BatchKey, most: int) -> float:
        """The highest throughput of a key, in rows a second, with at most so many rows."""
        if (key, most) not in self._rates:
            self._rates[key, most] = max(rows / self.step_seconds(key, rows) for rows in range(1, most + 1))
        return self._rates[key, most]

    def efficiency(self, key: BatchKey, rows: int, most: int) -> float:
        """A step's throughput as a share of the best this key can have, 0 to 1."""
        return min(1.0, rows / self.step_seconds(key, rows) / self.best_rate(key, most))

    def knee(self, key: BatchKey, most: int) -> int:
        """The fewest rows whose throughput is within KNEE_SLACK of the best that at most so many rows have."""
        return next(rows for rows in range(1, most + 1) if self.efficiency(key, rows, most) >= 1 - KNEE_SLACK)

    def _model(self, model: str) -> _Model:
        return self._models.setdefault(model, _Model())

    def _forget(self, model: str) -> None:
        """What was worked out of a model before something new was learnt."""
        for cache in (self._known, self._rates):
            for key in [key for key in cache if key[0].model == model]:
                del cache[key]


def _nearest(shape: _Shape, rows: int) -> float:
    """What is peculiar to so many rows of a shape, or to the nearest number of them that was seen."""
    seen = min(shape.rows, key=lambda seen: abs(seen - rows), default=None)
    return 1.0 if seen is None else shape.rows[seen].value


def _pixels(key: BatchKey) -> int:
    return key.width * key.height
