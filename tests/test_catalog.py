"""The catalogue: what models.toml may say, what it comes to, and errors that name file, place and remedy."""

from pathlib import Path

import pytest

from pipelines.catalog import Catalog
from pipelines.errors import CatalogError, InvalidRequest, UnknownModel
from pipelines.families import families, family_facts
from pipelines.levers import ATTENTION, QUALITY_TABLES, Preset, Speed
from pipelines.levers_toml import _Preset, _Speed
from pipelines.models_toml import DEMO_CATALOG, _File, _Model, load_catalog
from pipelines.pricing import Price
from pipelines.samplers import SAMPLERS, SCHEDULES
from server.hub.mappings import check_mappings

ROOT = Path(__file__).parent.parent


def read(folder: Path, text: str) -> Catalog:
    (folder / "models.toml").write_text(text)
    return load_catalog(folder / "models.toml", family_facts())


def model(lines: str, family: str = "sdxl", source: str = "./x") -> str:
    return f'[models.m]\nfamily = "{family}"\nsource = "{source}"\n{lines}'


def refused(folder: Path, text: str) -> str:
    with pytest.raises(CatalogError) as caught:
        read(folder, text)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'models.toml'}: ")
    return message.removeprefix(f"{folder / 'models.toml'}: ")


def test_a_model_has_its_familys_defaults(tmp_path: Path) -> None:
    entry = read(tmp_path, model("")).resolve("m")
    assert (entry.width, entry.height, entry.size_step, entry.steps, entry.guidance_scale) == (1024, 1024, 8, 30, 5.0)
    assert (entry.sampler, entry.schedule, entry.dtype, entry.price) == ("Euler", "automatic", "auto", Price())
    assert (entry.max_pixels, entry.max_side) == (4 * 1024 * 1024, 4096)
    assert entry.native_sizes[0] == "1024x1024"
    assert (entry.t5, entry.left_out) == (True, ())


def test_what_a_table_says_wins(tmp_path: Path) -> None:
    text = model(
        'variant = "fp16"\ndtype = "float16"\nvae = "./vae"\nsize = "512x768"\nmax_pixels = 1000000\nmax_side = 1024\n'
        'steps = 4\nguidance_scale = 0\nsampler = "DPM++ 2M Karras"\nmax_sequence_length = 77\nt5 = false\n'
        'aliases = ["a", "org/b"]\nlicense = "MIT"\nprice = 0.5\n',
        family="sd3",
    )
    entry = read(
        tmp_path, text.replace("DPM++ 2M Karras", "Euler").replace("steps", 'schedule = "Beta"\nsteps')
    ).resolve("a")
    assert (entry.variant, entry.dtype, entry.vae) == ("fp16", "float16", str(tmp_path / "vae"))
    assert (entry.width, entry.height, entry.native_sizes) == (512, 768, ("512x768",))
    assert (entry.max_pixels, entry.max_side, entry.steps, entry.guidance_scale) == (1000000, 1024, 4, 0)
    assert (entry.sampler, entry.schedule, entry.max_sequence_length, entry.t5) == ("Euler", "beta", 77, False)
    assert (entry.aliases, entry.license, entry.price.told) == (("a", "org/b"), "MIT", 0.5)
    assert entry.left_out == ("text_encoder_3", "tokenizer_3", "vae")


PRICES = {
    "of every picture": ("0.04", 1024, 1024, 30, 0.04, 0.04),
    "in whole numbers": ("3", 512, 512, 30, 3.0, 3.0),
    "of one size": (
        '{"1024x1024" = 0.04, default = 0.02}', 1024, 1024, 30, 0.04, {"1024x1024": 0.04, "default": 0.02}
    ),
    "of the other sizes": (
        '{"1024x768" = 0.04, default = 0.02}', 768, 1024, 30, 0.02, {"1024x768": 0.04, "default": 0.02}
    ),
    "of the work": ("{per_megapixel_step = 0.001}", 1000, 1000, 30, 0.03, {"per_megapixel_step": 0.001}),
    "of the work, rounded": ("{per_megapixel_step = 0.0015}", 64, 64, 9, 0.000055, {"per_megapixel_step": 0.0015}),
    "half a millionth goes up": ("{per_megapixel_step = 5e-7}", 1000, 1000, 1, 1e-6, {"per_megapixel_step": 5e-7}),
}  # fmt: skip


@pytest.mark.parametrize(("written", "width", "height", "steps", "cost", "told"), PRICES.values(), ids=PRICES)
def test_a_price(tmp_path: Path, written: str, width: int, height: int, steps: int, cost: float, told: object) -> None:
    price = read(tmp_path, model(f"price = {written}")).resolve("m").price
    assert (price.of(width, height, steps), price.told) == (cost, told)


def test_levers_and_qualities_are_the_models_own(tmp_path: Path) -> None:
    text = model(
        "[models.m.speed]\nchannels_last = true\ncompile = true\ncuda_graphs = true\nfuse_qkv = true\n"
        'quantize = "fp8"\nattention = "_native_cudnn"\nvae_tiling = "auto"\nvae_slicing = true\n'
        'vae_dtype = "float16"\nskip_guidance = 0.25\n'
        '[models.m.quality.draft]\nsteps = 8\nguidance_scale = 3\nsampler = "dpmpp_2m"\nschedule = "karras"\n'
        "skip_guidance = 0.5\n[models.m.quality.max]\n"
    )
    entry = read(tmp_path, text).resolve("m")
    assert entry.speed == Speed(True, True, True, True, "fp8", "_native_cudnn", None, True, "float16", 0.25)
    assert entry.quality == (Preset("draft", 8, 3.0, "dpmpp_2m", "karras", 0.5), Preset("max"))
    plain = read(tmp_path, model("")).resolve("m")
    assert (plain.speed, plain.quality) == (Speed(), ())


def test_sources_on_this_machine_are_resolved_and_hub_ids_kept(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    sources = {
        "./x": tmp_path / "x",
        "../x": tmp_path.parent / "x",
        "/x/y": Path("/x/y"),
        "~/x": Path.home() / "x",
        "here": tmp_path / "here",
    }
    for source, expected in sources.items():
        entry = read(tmp_path, model("", source=source)).resolve(None)
        assert entry.local == expected.resolve(), source
    entry = read(tmp_path, model('revision = "abc"\nvae = "some/vae"', source="org/model-1.0")).resolve(None)
    assert (entry.source, entry.local, entry.revision, entry.vae) == ("org/model-1.0", None, "abc", "some/vae")


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "x.Safetensors", "sub/x.bin"])
def test_a_file_of_weights_is_never_taken_for_a_hub_id(tmp_path: Path, name: str) -> None:
    entry = read(tmp_path, model('config = "org/base"', source=name)).resolve(None)
    assert entry.local == tmp_path / name
    assert entry.single_file
    assert entry.config == "org/base"
    assert "config: a single file holds no configuration; name the" in refused(tmp_path, model("", source=name))


def test_no_catalogue_or_an_empty_one_is_the_demo(tmp_path: Path) -> None:
    for catalog in (
        load_catalog(tmp_path / "gone.toml", family_facts()),
        read(tmp_path, ""),
        read(tmp_path, "# nothing\n"),
        load_catalog(ROOT / "models.toml", family_facts()),
    ):
        assert catalog.path == DEMO_CATALOG
        assert catalog.default == "demo-sdxl"
        assert catalog.resolve("dall-e-3").name == "demo-sdxl"


def test_the_examples_of_the_shipped_catalogue_are_valid(tmp_path: Path) -> None:
    lines = (ROOT / "models.toml").read_text().splitlines()
    shown = [
        line.removeprefix("# ")
        for line in lines
        if line.startswith(("# [", "# ")) and (" = " in line or "[models" in line or "[hub" in line)
    ]
    catalog = read(tmp_path, "\n".join(line for line in shown if not line.startswith(("The models", "With"))))
    check_mappings(catalog)
    assert list(catalog.entries) == ["sdxl", "sdxl-turbo", "lightning", "sd3.5-medium"]
    assert list(catalog.hub) == ["character.created"]


def test_the_first_model_is_the_default_unless_one_is_named(tmp_path: Path) -> None:
    two = model("") + '[models."b/c"]\nfamily = "sd3"\nsource = "./y"\n'
    assert read(tmp_path, two).resolve(None).name == "m"
    assert read(tmp_path, f'default = "b/c"\n{two}').resolve(None).name == "b/c"
    assert read(tmp_path, "\ufeff" + two).default == "m"


def test_a_models_name_is_guessed_from_names_and_aliases(tmp_path: Path) -> None:
    catalog = read(tmp_path, model('aliases = ["org/dreams"]'))
    with pytest.raises(UnknownModel, match=r"'Org/Dream' does not exist; did you mean 'org/dreams'\?$"):
        catalog.resolve("Org/Dream")


def test_an_unknown_model_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="'zzz' does not exist; known: m.$") as caught:
        read(tmp_path, model("")).resolve("zzz")
    assert isinstance(caught.value, InvalidRequest) and caught.value.field == "model"


WRONG = {
    "an unknown key": (model("stepz = 3"), "models.m: unknown key 'stepz'; did you mean 'steps'?"),
    "an unknown table": ("[model.m]\n", "unknown key 'model'; did you mean 'models'?"),
    "far from any key": ("[zzzzzz]\n", "unknown key 'zzzzzz'; known: default, models"),
    "no source": ('[models.m]\nfamily = "sdxl"', "models.m: Object missing required field `source`"),
    "a table that is none": ("models.m = 3", "models.m: must be a table, not a whole number"),
    "models that are none": ("models = 3", "models: must be a table, not a whole number"),
    "a default that is no name": ("default = 3", "default: must be a string, not a whole number"),
    "an unknown family": (model("", "sdlx"), "models.m.family: 'sdlx' is not a family; did you mean 'sdxl'?"),
    "a size of words": (model('size = "large"'), "models.m.size: 'large' is not a size; write it as"),
    "a size off the step": (model('size = "516x512"'), "models.m.size: 516x512 is not a multiple of 8"),
    "a size of nothing": (model('size = "00x00"'), "models.m.size: "),
    "a giant size": (model('size = "32768x512"'), "models.m.size: 32768 is outside 8 to 16384"),
    "a native size off the step": (model('native_sizes = ["512x100"]', "sd3"), "models.m.native_sizes: 512x100 is not"),
    "a native size too long": (
        model('native_sizes = ["8192x512"]'),
        "models.m.native_sizes: 8192x512 is beyond max_side",
    ),
    "a native size too large": (model('native_sizes = ["4096x4096"]'), "models.m.native_sizes: 4096x4096 is beyond"),
    "a native size of words": (model('native_sizes = ["x"]'), "models.m.native_sizes: 'x' is not a size"),
    "too few pixels": (model("max_pixels = 100"), "models.m.max_pixels: 100 is outside 1048576 to"),
    "too short a side": (model("max_side = 512"), "models.m.max_side: 512 is outside 1024 to"),
    "an endless side": (model("max_side = 9999999999"), "models.m.max_side: 9999999999 is outside"),
    "no steps": (model("steps = 0"), "models.m.steps: steps must be between 1 and 150"),
    "negative steps": (model("steps = -1"), "models.m.steps: "),
    "half a step": (model("steps = 2.5"), "models.m.steps: must be a whole number, not a fraction"),
    "steps in words": (model('steps = "many"'), "models.m.steps: must be a whole number, not a string"),
    "more steps than the sampler takes": (
        model('sampler = "LCM"\nsteps = 60'),
        "models.m.steps: steps must be between 1 and 50",
    ),
    "negative guidance": (model("guidance_scale = -1"), "models.m.guidance_scale: -1"),
    "infinite guidance": (model("guidance_scale = inf"), "models.m.guidance_scale: inf is outside 0 to 50"),
    "guidance that is no number": (model("guidance_scale = nan"), "models.m.guidance_scale: nan is outside"),
    "a negative price": (model("price = -0.1"), "models.m.price: -0.1 is outside"),
    "a price that is no number": (model("price = nan"), "models.m.price: nan is outside"),
    "an infinite price": (model("price = inf"), "models.m.price: inf is outside"),
    "a price in words": (model('price = "dear"'), "models.m.price: it must be a number, a table by size such as"),
    "a price that cannot be charged": (model("price = 0.0000001"), "models.m.price: 1e-07 is finer than a millionth"),
    "prices by size and no other": (
        model('price = {"1024x1024" = 0.04}'),
        "models.m.price: it lacks default, the price of every other size",
    ),
    "a price for what is no size": (
        model("price = {default = 0.1, large = 0.2}"),
        "models.m.price: 'large' is no size; the price is a number, a table by size",
    ),
    "a price for a size that is never made": (
        model('price = {default = 0.1, "1020x1024" = 0.2}'),
        "models.m.price: 1020x1024 is not a multiple of 8",
    ),
    "a negative price of a size": (
        model('price = {default = 0.1, "512x512" = -1}'),
        "models.m.price.512x512: -1 is outside 0 to 1000000000",
    ),
    "a price of both kinds": (
        model("price = {per_megapixel_step = 0.001, default = 0.2}"),
        "models.m.price.default: per_megapixel_step is the whole price; leave default out",
    ),
    "an immense price of work": (
        model("price = {per_megapixel_step = 20000}"),
        "models.m.price.per_megapixel_step: 20000 is outside 0 to 10000",
    ),
    "a price that is true": (model("price = true"), "models.m.price: it must be a number"),
    "an unknown sampler": (
        model('sampler = "Euler b"'),
        "models.m.sampler: unknown sampler 'Euler b'. Did you mean 'Euler a'",
    ),
    "a sampler of the other kind": (
        model('sampler = "LMS"', "sd3"),
        "models.m.sampler: sampler 'LMS' does not work with flow",
    ),
    "an unknown schedule": (model('schedule = "karas"'), "models.m.schedule: unknown schedule 'karas'. Did you mean"),
    "a pair that does not fit": (
        model('sampler = "Euler a"\nschedule = "karras"'),
        "models.m.schedule: sampler 'Euler a' does",
    ),
    "an unknown dtype": (
        model('dtype = "fp16"'),
        "models.m.dtype: must be one of 'auto', 'float32', 'float16', 'bfloat16', not 'fp16'",
    ),
    "an unknown offload": (model('offload = "disk"'), "models.m.offload: must be one of 'none', 'model', 'group', not"),
    "t5 where there is none": (model("t5 = false"), "models.m.t5: family 'sdxl' has no T5"),
    "T5's length where there is none": (
        model("max_sequence_length = 77"),
        "models.m.max_sequence_length: family 'sdxl' has",
    ),
    "a negative length": (
        model("max_sequence_length = -1", "sd3"),
        "models.m.max_sequence_length: -1 is outside 0 to 512",
    ),
    "too great a length": (model("max_sequence_length = 513", "sd3"), "models.m.max_sequence_length: 513 is outside"),
    "config beside a folder": (model('config = "./y"'), "models.m.config: a diffusers folder or hub id brings its own"),
    "revision of a folder": (model('revision = "main"'), "models.m.revision: it names a commit of a hub id"),
    "an empty source": (model("", source=""), "models.m.source: '' is neither a path nor a hub id"),
    "a NUL in a source": (model("", source="a\\u0000b"), "models.m.source: 'a\\x00b' is neither"),
    "nobody's home": (model("", source="~nobody-at-all/x"), "models.m.source: '~nobody-at-all/x': "),
    "a path that leads nowhere": (model("", source="a/b/c"), "models.m.source: there is no 'a/b/c' in "),
    "words for a source": (model("", source="my model"), "models.m.source: there is no 'my model' in "),
    "a source beyond any file system": (model("", source="x" * 300), "models.m.source: "),
    "a source like no hub id": (model("", source="a--b/c"), "models.m.source: there is no 'a--b/c' in "),
    "an unknown lever": (
        model("[models.m.speed]\ncompiled = true"),
        "models.m.speed: unknown key 'compiled'; did you mean 'compile'?",
    ),
    "a lever in words": (
        model('[models.m.speed]\ncompile = "yes"'),
        "models.m.speed.compile: must be true or false, not a string",
    ),
    "a lever half pulled": (
        model('[models.m.speed]\nchannels_last = "yes"'),
        "models.m.speed.channels_last: must be one of 'auto', true, false, not 'yes'.",
    ),
    "levers that are no table": (model("speed = true"), "models.m.speed: must be a table, not true or false"),
    "an unknown precision": (
        model('[models.m.speed]\nquantize = "int8"'),
        "models.m.speed.quantize: must be one of 'fp8', not",
    ),
    "fp8 beside another dtype": (
        model('dtype = "float16"\n[models.m.speed]\nquantize = "fp8"'),
        'models.m.speed.quantize: "fp8" computes in bfloat16, not float16; leave dtype or quantize out',
    ),
    "an unknown attention": (
        model('[models.m.speed]\nattention = "sage"'),
        "models.m.speed.attention: 'sage' is not an attention kernel that can be chosen here; known: native, _native_c",
    ),
    "no share": (model("[models.m.speed]\nskip_guidance = 1.5"), "models.m.speed.skip_guidance: 1.5 is outside 0 to 1"),
    "a share that is no number": (model("[models.m.speed]\nskip_guidance = nan"), "models.m.speed.skip_guidance: nan"),
    "a share of no guidance": (
        model("guidance_scale = 1\n[models.m.speed]\nskip_guidance = 0.2"),
        "models.m.speed.skip_guidance: guidance_scale 1 is no guidance, so there is none to skip",
    ),
    "an unknown quality": (
        model("[models.m.quality.drafty]\nsteps = 3"),
        "models.m.quality.drafty: 'drafty' is not a quality; did you mean 'draft'?",
    ),
    "medium quality": (
        model("[models.m.quality.standard]\nsteps = 3"),
        "models.m.quality.standard: standard is the model's own settings; write them in the model's own table",
    ),
    "another word for high": (
        model("[models.m.quality.hd]\nsteps = 3"),
        "models.m.quality.hd: hd is another word for high; write quality.high",
    ),
    "an unknown key of a quality": (
        model("[models.m.quality.draft]\nstep = 3"),
        "models.m.quality.draft: unknown key 'step'; did you mean 'steps'?",
    ),
    "a quality of no steps": (model("[models.m.quality.low]\nsteps = 0"), "models.m.quality.low.steps: steps must be"),
    "a quality beyond its sampler": (
        model('[models.m.quality.low]\nsteps = 60\nsampler = "LCM"'),
        "models.m.quality.low.steps: steps must be between 1 and 50",
    ),
    "a quality's unknown sampler": (
        model('[models.m.quality.low]\nsampler = "Euler b"'),
        "models.m.quality.low.sampler: unknown sampler 'Euler b'",
    ),
    "a schedule without a sampler": (
        model('[models.m.quality.low]\nschedule = "karras"'),
        "models.m.quality.low.schedule: it needs a sampler beside it, such as 'Euler'",
    ),
    "a quality's guidance": (
        model("[models.m.quality.low]\nguidance_scale = 60"),
        "models.m.quality.low.guidance_scale: 60",
    ),
    "a quality that skips no guidance": (
        model("[models.m.quality.low]\nguidance_scale = 1.0\nskip_guidance = 0.5"),
        "models.m.quality.low.skip_guidance: guidance_scale 1 is no guidance",
    ),
    "qualities that are no table": (model("quality = 3"), "models.m.quality: must be a table, not a whole number"),
    "a bad name": (f'[models."a b"]\n{model("").partition(chr(10))[2]}', "models.a b: 'a b' is no name"),
    "an empty alias": (model('aliases = [""]'), "models.m: '' is no name"),
    "an alias of words": (model('aliases = "a"'), "models.m.aliases: must be an array, not a string"),
    "a default that is not there": (f'default = "n"\n{model("")}', "default = 'n' is not a model; "),
    "a default of no models": ('default = "n"', "default = 'n', but no [models.…] table is there"),
    "broken TOML": ("[models.m\n", "line 1, column 10: Expected ']' at the end of a table declaration."),
    "a key twice": (model('source = "y"'), "end of document: Cannot overwrite a value."),
    "endless digits": (model(f"steps = {'9' * 5000}"), "Exceeds the limit"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=list(WRONG))
def test_what_models_toml_may_not_say(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text).startswith(message)


def test_an_alias_belongs_to_one_model(tmp_path: Path) -> None:
    second = '[models.n]\nfamily = "sdxl"\nsource = "./y"\naliases = ["{}"]\n'
    for alias in ("m", "shared"):
        text = model('aliases = ["shared"]\n') + second.format(alias)
        assert f"models.n: the name {alias!r} already belongs to model 'm'" in refused(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b'x = "\xe4"')
    (tmp_path / "deep.toml").write_text(f"x = {'[' * 5000}")
    for name in ("folder.toml", "latin.toml", "deep.toml"):
        with pytest.raises(CatalogError, match=name):
            load_catalog(tmp_path / name, family_facts())


def test_native_sizes_of_the_family_keep_the_models_limits(tmp_path: Path) -> None:
    entry = read(tmp_path, model("max_side = 1152")).resolve(None)
    assert entry.native_sizes == ("1024x1024", "1152x896", "896x1152")


def test_the_reference_names_every_key_family_sampler_and_schedule() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    tables = (_Model, _File, _Speed, _Preset)
    names = [*(name for table in tables for name in table.__struct_fields__), *families(), *SCHEDULES]
    names += [*ATTENTION, *QUALITY_TABLES]
    assert [name for name in names if f"`{name}`" not in text] == []
    assert [name for name in SAMPLERS if f"| {name} |" not in text] == []


def test_the_references_sampler_table_is_the_samplers_own() -> None:
    """A row is: name, other names, schedules with diffusion models, schedules with flow models."""
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs" / "models.md").read_text().splitlines()]
    written = {row[0]: row[1:] for row in rows if row[0] in SAMPLERS}
    assert written == {name: reference_row(name) for name in SAMPLERS}


def reference_row(name: str) -> list[str]:
    sampler = SAMPLERS[name]
    kinds = []
    for method in (sampler.diffusion, sampler.flow):
        missing = SCHEDULES.keys() - (method.schedules if method else set())
        words = ", ".join(schedule for schedule in SCHEDULES if method and schedule in method.schedules)
        kinds.append("–" if method is None else "all" if not missing else words)
    return [", ".join(sampler.aliases) or "–", *kinds]
