"""The levers: each leaves the picture as it was within a stated tolerance, alone and in a crowd."""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from pipelines import speed as speed_module
from pipelines.catalog import Catalog, ModelEntry
from pipelines.denoising import Denoising
from pipelines.device import pick_device
from pipelines.engine import Engine
from pipelines.errors import CheckpointError
from pipelines.forward import BUCKETS, Forward, bucket, pad
from pipelines.graphs import MAX_RECORDINGS, Inputs, Replayed
from pipelines.levers import ATTENTION, Speed
from pipelines.progress import LoadStage, Progress
from pipelines.request import ImageRequest, Wishes, settle
from pipelines.speed import TILED_PIXELS, has_kernel, quantize, tiles, vae_dtype, warm_up
from scripts.benchmarking import full_size
from tests.test_founding import TOLERANCE, alone, begin, step

MODELS = ("tiny-sdxl", "tiny-sd3")
NETWORK_LEVERS = {
    "channels_last": Speed(channels_last=True),
    "fuse_qkv": Speed(fuse_qkv=True),
    "attention": Speed(attention="_native_math"),
    "all together": Speed(channels_last=True, fuse_qkv=True, attention="_native_math", cuda_graphs=True),
}
VAE_LEVERS = {
    "vae_slicing": (Speed(vae_slicing=True), 0.01),
    "vae_tiling": (Speed(vae_tiling=True), 15),  # a tile knows nothing of what lies beyond its rim, nor of all the rest
    "vae_dtype": (Speed(vae_dtype="bfloat16"), 1),
}
"""Each with the mean difference of a pixel that it may make, of 255."""


def pulled(catalog: Catalog, model: str, speed: Speed) -> tuple[Engine, ModelEntry]:
    """An engine with a model whose levers are pulled."""
    entry = replace(catalog.resolve(model), speed=speed)
    engine = Engine(pick_device("cpu"))
    engine.load(entry)
    return engine, entry


def requests_of(entry: ModelEntry) -> list[ImageRequest]:
    """Three pictures of five rows, so that a padded forward has company and copies."""
    scales = (4.0, 1.0, 6.0)
    wishes = [Wishes(f"a boat {number}", steps=3, guidance_scale=scale) for number, scale in enumerate(scales)]
    return [settle(wish, entry, seed) for seed, wish in enumerate(wishes)]


def together(engine: Engine, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Denoising]:
    images = begin(engine, entry, requests)
    while not images[0].finished:
        step(engine, entry, images)
    return images


def assert_same_pictures(engine: Engine, catalog: Catalog, model: str, pulled: tuple[Engine, ModelEntry]) -> None:
    """Alone and in a crowd, within the tolerance that the founding test states for a crowd."""
    plain = catalog.resolve(model)
    requests = requests_of(plain)
    crowd = together(*pulled, requests)
    for request, crowded in zip(requests, crowd, strict=True):
        expected = alone(engine, plain, request)
        for made in (alone(*pulled, request), crowded.latents):
            assert (made - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("lever", NETWORK_LEVERS)
@pytest.mark.parametrize("model", MODELS)
def test_a_lever_leaves_the_picture_as_it_was(engine: Engine, catalog: Catalog, model: str, lever: str) -> None:
    assert_same_pictures(engine, catalog, model, pulled(catalog, model, NETWORK_LEVERS[lever]))


@pytest.mark.parametrize("model", MODELS)
def test_the_levers_are_really_pulled(monkeypatch: pytest.MonkeyPatch, catalog: Catalog, model: str) -> None:
    engine, entry = pulled(catalog, model, NETWORK_LEVERS["all together"])
    family = engine.family(entry)
    names = {name.rpartition(".")[2] for name, _ in family.denoiser.named_modules()}
    assert "to_qkv" in names and not names & {"to_k", "to_v", "add_k_proj"}
    for network in (family.denoiser, family.vae):
        weights = [weight for weight in network.parameters() if weight.ndim == 4 and weight.shape[-1] > 1]
        assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    kernels: list[bool] = []
    network = family.network

    def watched(inputs: Inputs) -> torch.Tensor:
        kernels.append(torch.backends.cuda.flash_sdp_enabled())  # torch's switch for a CPU's flash kernel too
        return network(inputs)

    monkeypatch.setattr(family, "network", watched)
    family.place()
    alone(engine, entry, settle(Wishes("a boat", steps=1), entry, 0))
    assert kernels == [False] and torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("lever", VAE_LEVERS)
@pytest.mark.parametrize("model", MODELS)
def test_a_lever_of_the_vae_leaves_the_picture_as_it_was(
    engine: Engine, catalog: Catalog, model: str, lever: str
) -> None:
    speed, tolerance = VAE_LEVERS[lever]
    plain = catalog.resolve(model)
    wishes = [Wishes(f"a tree {seed}", steps=2, width=64) for seed in range(2)]
    requests = [settle(wish, plain, seed) for seed, wish in enumerate(wishes)]
    faster, entry = pulled(catalog, model, speed)
    images = together(engine, plain, requests)
    expected = pixels(engine.finish(plain, images))
    made = pixels(faster.finish(entry, images))
    assert np.abs(expected - made).mean() <= tolerance
    assert faster.family(entry).vae.use_slicing == (lever == "vae_slicing")
    assert lever == "vae_slicing" or not np.array_equal(expected, made), "the lever did nothing"


def pixels(pictures: Sequence[Image.Image | Exception]) -> Any:
    return np.stack([np.asarray(picture, dtype=np.int32) for picture in pictures])


COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler on a CPU, and none is here")
def test_a_compiled_unet_makes_the_same_pictures(engine: Engine, catalog: Catalog) -> None:
    assert_compiled_once_and_for_all(engine, catalog, "tiny-sdxl")


def test_a_compiled_transformer_makes_the_same_pictures(engine: Engine, catalog: Catalog) -> None:
    # Its blocks are traced as ever, and their kernels left uncompiled: a C++ compiler takes half a minute over them.
    with torch.compiler.set_stance("default", force_backend="eager"):
        assert_compiled_once_and_for_all(engine, catalog, "tiny-sd3")


def assert_compiled_once_and_for_all(engine: Engine, catalog: Catalog, model: str) -> None:
    """After the warm-up nothing is compiled for any row count or size, and a repeatable picture is the plain one."""
    before = counters["stats"]["unique_graphs"]
    faster, entry = pulled(catalog, model, Speed(compile=True))
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > before
    assert_same_pictures(engine, catalog, model, (faster, entry))
    other_size = settle(Wishes("a boat", steps=1, width=48, height=64), entry, 0)
    together(faster, entry, [other_size] * 3)
    assert counters["stats"]["unique_graphs"] == compiled
    (request, *_) = [replace(request, deterministic=True) for request in requests_of(entry)]
    assert torch.equal(alone(faster, entry, request), alone(engine, catalog.resolve(model), request))


def test_a_model_that_cannot_be_compiled_says_so(catalog: Catalog) -> None:
    entry = catalog.resolve("tiny-sdxl")

    def fail(rows: int, width: int, height: int) -> None:
        raise RuntimeError("no compiler (planted)")

    remedy = r"no compiler \(planted\).*leave compile out of models.tiny-sdxl.speed"
    with pytest.raises(CheckpointError, match=remedy) as refused:
        warm_up(entry, fail)
    assert refused.value.__cause__ is None and refused.value.__context__ is None, "either would keep the weights alive"


def test_a_bucket_without_memory_ends_no_warm_up_but_the_first_does(catalog: Catalog) -> None:
    entry = replace(catalog.resolve("tiny-sdxl"), native_sizes=("32x32", "48x32"))
    tried: list[tuple[int, int, int]] = []

    def small(most: int) -> Callable[[int, int, int], None]:
        def attempt(rows: int, width: int, height: int) -> None:
            tried.append((rows, width, height))
            if rows > most:
                raise torch.OutOfMemoryError("planted")

        return attempt

    told: list[tuple[LoadStage, float]] = []
    warm_up(entry, small(4), lambda *step: told.append(step))
    assert told == [(LoadStage.PLACING, number / 9) for number in range(1, 10)], "whether it had the memory or not"
    assert tried == [*((rows, 32, 32) for rows in (1, 2, 4, 6, 8, 12, 16)), (1, 48, 32), (2, 48, 32)]
    with pytest.raises(torch.OutOfMemoryError):
        warm_up(entry, small(0))


def test_placing_a_compiled_model_tells_of_its_warm_ups(monkeypatch: pytest.MonkeyPatch, catalog: Catalog) -> None:
    def tell(entry: ModelEntry, attempt: object, progress: Progress) -> None:
        progress(LoadStage.PLACING, 0.25)

    monkeypatch.setattr("pipelines.family.warm_up", tell)
    monkeypatch.setattr("pipelines.family.shape_networks", lambda *_: None)
    engine = Engine(pick_device("cpu"))
    entry = replace(catalog.resolve("tiny-sdxl"), speed=Speed(compile=True))
    told: list[float] = []
    engine.place(entry, engine.read(entry), progress=lambda _, share: told.append(share))
    assert told == [0.0, 0.25, 1.0]


def test_rows_are_padded_to_the_next_bucket() -> None:
    assert [bucket(rows) for rows in (1, 2, 3, 5, 7, 9, 16, 17, 256)] == [1, 2, 4, 6, 8, 12, 16, 24, 256]
    assert bucket(300) == 300
    inputs = {"sample": torch.arange(6.0).view(3, 2), "timestep": torch.arange(3.0)}
    padded = pad(inputs, 4)
    assert padded["sample"].tolist() == [[0, 1], [2, 3], [4, 5], [4, 5]]
    assert padded["timestep"].tolist() == [0, 1, 2, 2]
    assert pad(inputs, 3) is inputs


@pytest.mark.parametrize("model", MODELS)
def test_padding_changes_nobodys_prediction_and_its_output_is_thrown_away(
    engine: Engine, catalog: Catalog, model: str
) -> None:
    entry = catalog.resolve(model)
    images = begin(engine, entry, requests_of(entry))
    family = engine.family(entry)
    seen: list[int] = []

    def network(inputs: Inputs) -> torch.Tensor:
        seen.extend({len(tensor) for tensor in inputs.values()})
        return family.network(inputs)

    with torch.inference_mode():
        inputs = family.inputs(images)
        expected = family.network(inputs)
        made = Forward(network, Speed(compile=True), torch.device("cpu"))(inputs)
        Forward(network, Speed(), torch.device("cpu"))(inputs)
    assert seen == [6, 5], "five rows are padded to six, and without a lever that wants it not at all"
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()


def on_a_cpu(work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """Records as a CUDA graph does: the work reads where it read, and writes where it wrote."""
    output = work()

    def replay() -> None:
        output.copy_(work())

    return replay, output


def test_a_recorded_shape_is_replayed_with_what_it_is_given_now() -> None:
    calls = []

    def network(inputs: Inputs) -> torch.Tensor:
        calls.append(inputs["a"].data_ptr())
        return inputs["a"] * 2 + inputs["b"]

    replayed = Replayed(network, on_a_cpu)
    made = [replayed({"a": torch.full((2,), float(n)), "b": torch.ones(2)}) for n in range(3)]
    assert [tensor.tolist() for tensor in made] == [[1, 1], [3, 3], [5, 5]], "each keeps its own values"
    assert len(set(calls)) == 1, "the network reads one place, whatever it is called with"
    replayed({"a": torch.ones(3), "b": torch.ones(3)})
    assert len(set(calls)) == 2


def test_recordings_are_bounded() -> None:
    recorded = []

    def record(work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        recorded.append(1)
        return on_a_cpu(work)

    replayed = Replayed(lambda inputs: inputs["a"] + 1, record)
    for rows in (*range(1, MAX_RECORDINGS + 2), MAX_RECORDINGS + 1, 1):
        replayed({"a": torch.zeros(rows)})
    assert len(recorded) == MAX_RECORDINGS + 2, "the last was kept, the first was forgotten"


def test_large_pictures_are_tiled_unless_told_otherwise() -> None:
    assert [tiles(Speed(), pixels) for pixels in (TILED_PIXELS, TILED_PIXELS + 1)] == [False, True]
    assert (tiles(Speed(vae_tiling=True), 1), tiles(Speed(vae_tiling=False), 2**28)) == (True, False)


def test_a_vae_decodes_in_a_dtype_that_holds_its_values(engine: Engine, catalog: Catalog) -> None:
    engine.load(catalog.resolve("tiny-sdxl"))
    vae = engine.family(catalog.resolve("tiny-sdxl")).vae  # one that overflows in float16, and says so
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert vae_dtype(vae, Speed(), torch.bfloat16, cpu) == torch.float32
    assert vae_dtype(vae, Speed(), torch.float16, cuda) == torch.float32
    assert vae_dtype(vae, Speed(), torch.bfloat16, cuda) == torch.bfloat16
    assert vae_dtype(vae, Speed(vae_dtype="float16"), torch.float16, cuda) == torch.float16


REFUSED = {
    "fp8 without CUDA": (Speed(quantize="fp8"), "capability 8.9 or more, and this device is not CUDA; leave quantize"),
    "a kernel that the device lacks": (Speed(attention="_native_cudnn"), 'write attention = "native" in models.tiny-'),
    "SD3.5's projections": (Speed(fuse_qkv=True), "leave fuse_qkv out of models.tiny-sd3-t5.speed"),
}


@pytest.mark.parametrize(("speed", "message"), REFUSED.values(), ids=list(REFUSED))
def test_a_lever_that_cannot_be_had_is_refused_and_costs_nobody_their_place(
    catalog: Catalog, speed: Speed, message: str
) -> None:
    engine = Engine(pick_device("cpu"))
    engine.load(catalog.resolve("tiny-sd3"))
    with pytest.raises(CheckpointError, match=message):
        engine.load(replace(catalog.resolve("tiny-sd3-t5"), speed=speed))
    assert engine.state.resident == (catalog.resolve("tiny-sd3").identity,)


def test_attention_kernels_are_those_of_the_device() -> None:
    half, single = torch.bfloat16, torch.float32

    def kernels(device: str, capability: tuple[int, int] | None, dtype: torch.dtype) -> list[str]:
        return [name.removeprefix("_native_") for name in ATTENTION if has_kernel(name, device, capability, dtype)]

    assert kernels("cuda", (9, 0), half) == ["native", "cudnn", "efficient", "flash", "math"]
    assert kernels("cuda", (7, 5), half) == kernels("cuda", (9, 0), single) == ["native", "efficient", "math"]
    assert kernels("cpu", None, single) == ["native", "flash", "math"]
    assert kernels("mps", None, half) == ["native", "math"]


def test_fp8_without_torchao_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(CheckpointError, match=r"needs torchao; install it with pip install 'darkroom\[fp8\]'"):
        speed_module._fp8("m")


@pytest.mark.parametrize(("name", "blocks", "count"), [("unet", 70, 700), ("transformer", 24, 285)])
def test_fp8_is_for_the_large_layers_of_the_repeated_blocks(
    monkeypatch: pytest.MonkeyPatch, name: str, blocks: int, count: int
) -> None:
    chosen: list[str] = []

    def note(network: Any, config: Any, filter_fn: Callable[[Any, str], bool]) -> None:
        chosen.extend(path for path, layer in network.named_modules() if filter_fn(layer, path))

    monkeypatch.setattr(speed_module, "_fp8", lambda _: (note, None))
    with torch.device("meta"):
        denoiser = getattr(full_size, name)()
    quantize(denoiser, ("BasicTransformerBlock", "JointTransformerBlock"), "m")
    assert len(chosen) == count
    assert (
        len(
            {
                path.partition("transformer_blocks.")[0] + path.partition("transformer_blocks.")[2].split(".")[0]
                for path in chosen
            }
        )
        == blocks
    )
    assert not [path for path in chosen if "norm" in path or "transformer_blocks." not in path]


def test_cuda_graphs_elsewhere_are_a_line_in_the_log(catalog: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="pipelines.speed"):
        pulled(catalog, "tiny-sdxl", Speed(cuda_graphs=True))
    lines = [record.message for record in caplog.records if "cuda_graphs" in record.message]
    assert lines == ["model tiny-sdxl: cuda_graphs has no effect on a cpu device"]


def test_a_model_may_be_placed_again(catalog: Catalog) -> None:
    engine, entry = pulled(catalog, "tiny-sdxl", Speed(fuse_qkv=True, channels_last=True))
    (request, *_) = requests_of(entry)
    before = alone(engine, entry, request)
    engine.family(entry).place()
    assert torch.equal(alone(engine, entry, request), before)


def test_fused_weights_take_no_more_memory(engine: Engine, catalog: Catalog) -> None:
    plain = catalog.resolve("tiny-sdxl")
    engine.load(plain)
    fused, entry = pulled(catalog, "tiny-sdxl", Speed(fuse_qkv=True))
    assert fused.family(entry).weight_bytes == engine.family(plain).weight_bytes


def test_levers_are_part_of_a_models_identity_and_what_a_request_chooses_is_not(catalog: Catalog) -> None:
    entry = catalog.resolve("tiny-sdxl")
    assert replace(entry, speed=Speed(fuse_qkv=True)).identity != entry.identity
    assert replace(entry, speed=Speed(skip_guidance=0.5)).identity == entry.identity
    assert set(BUCKETS) == {bucket(rows) for rows in range(1, 257)}
