"""Encoding: texts survive in every format, lie where other programs look, and fit or are refused by name."""

import json
from io import BytesIO

import pytest
from PIL import Image

from storage.encoding import JPEG_COMMENT_BYTES, encode, read_metadata
from storage.errors import MetadataTooLarge
from storage.media import ImageFormat
from storage.thumbnails import make_thumbnail

INFOTEXT = "a lighthouse, (storm:1.2)\nNegative prompt: fog\nSteps: 20, Sampler: Euler a, Seed: 1"
TEXTS = [
    INFOTEXT,
    "Leuchtturm bei Nacht, café, größer",
    "灯台と海 🗼🌊, маяк, منارة, \u202eright to left\u202c",
    "<script>alert(1)</script> & ]]> </d:record> \"quoted\" 'single'",
    "line\r\nbreak\ttab",
    "",
    "x" * 30_000,
]


def _picture(mode: str = "RGB") -> Image.Image:
    gradient = Image.linear_gradient("L").resize((48, 32))
    return Image.merge("RGB", (gradient, gradient.rotate(180), gradient)).convert(mode)


@pytest.mark.parametrize("format", ImageFormat)
@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back_as_they_were(format: ImageFormat, text: str) -> None:
    metadata = {"parameters": text, "darkroom": json.dumps({"prompt": text}, ensure_ascii=False)}
    data = encode(_picture(), format, metadata)
    assert read_metadata(data) == metadata
    with Image.open(BytesIO(data)) as image:
        assert (image.format, image.size) == (format.value.upper(), (48, 32))


@pytest.mark.parametrize("format", ImageFormat)
def test_a_picture_without_texts_has_none(format: ImageFormat) -> None:
    assert read_metadata(encode(_picture(), format, {})) == {}


def test_a_png_keeps_every_pixel() -> None:
    with Image.open(BytesIO(encode(_picture("RGBA"), ImageFormat.PNG, {"parameters": "x"}))) as image:
        assert image.tobytes() == _picture("RGBA").tobytes()


def test_png_texts_use_the_chunks_that_other_programs_read() -> None:
    assert b"tEXtparameters\0a lighthouse" in encode(_picture(), ImageFormat.PNG, {"parameters": INFOTEXT})
    japanese = encode(_picture(), ImageFormat.PNG, {"parameters": "灯台"})
    assert b"iTXtparameters\0" in japanese and "灯台".encode() in japanese


@pytest.mark.parametrize("format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_the_user_comment_is_as_automatic1111_reads_it(format: ImageFormat) -> None:
    data = encode(_picture(), format, {"parameters": "灯台 🗼"})
    with Image.open(BytesIO(data)) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + "灯台 🗼".encode("utf-16-be")


def test_a_jpeg_takes_what_fits_and_refuses_the_rest_by_name() -> None:
    fits = "x" * ((JPEG_COMMENT_BYTES - 8) // 2)
    assert read_metadata(encode(_picture(), ImageFormat.JPEG, {"parameters": fits})) == {"parameters": fits}
    with pytest.raises(MetadataTooLarge, match="parameters"):
        encode(_picture(), ImageFormat.JPEG, {"parameters": fits + "x"})
    with pytest.raises(MetadataTooLarge, match="darkroom"):
        encode(_picture(), ImageFormat.JPEG, {"darkroom": "x" * 65_000})
    assert encode(_picture(), ImageFormat.JPEG, {"darkroom": "x" * 64_000})
    both = {"parameters": fits * 3, "darkroom": fits * 3}
    for format in (ImageFormat.PNG, ImageFormat.WEBP):
        assert read_metadata(encode(_picture(), format, both)) == both


def test_quality_makes_lossy_files_smaller() -> None:
    for format in (ImageFormat.JPEG, ImageFormat.WEBP):
        sizes = [len(encode(_picture(), format, {}, quality)) for quality in (10, 95)]
        assert sizes[0] < sizes[1]
        assert encode(_picture(), format, {}) == encode(_picture(), format, {}, 95)


def test_transparency_stays_where_it_can_and_becomes_white_in_a_jpeg() -> None:
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    for format, pixel in ((ImageFormat.PNG, (255, 0, 0, 0)), (ImageFormat.JPEG, (255, 255, 255))):
        with Image.open(BytesIO(encode(clear, format, {}))) as image:
            assert image.getpixel((8, 8)) == pixel
    with Image.open(BytesIO(encode(clear, ImageFormat.WEBP, {}))) as image:
        assert image.getchannel("A").getextrema() == (0, 0)


@pytest.mark.parametrize("size", [(1024, 1024), (1536, 640), (640, 1536), (64, 48), (1, 1)])
def test_a_thumbnail_is_a_square_png(size: tuple[int, int]) -> None:
    with Image.open(BytesIO(make_thumbnail(Image.new("RGB", size, "teal")))) as thumbnail:
        assert (thumbnail.format, thumbnail.size, thumbnail.mode) == ("PNG", (256, 256), "RGB")
        assert thumbnail.getcolors() == [(256 * 256, (0, 128, 128))]


def test_a_thumbnail_shows_the_middle() -> None:
    wide = Image.new("RGB", (900, 300), "red")
    wide.paste("blue", (300, 0, 600, 300))
    with Image.open(BytesIO(make_thumbnail(wide))) as thumbnail:
        assert thumbnail.crop((8, 0, 248, 256)).getcolors() == [(240 * 256, (0, 0, 255))]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA"])
def test_a_thumbnail_of_any_mode_keeps_its_transparency(mode: str) -> None:
    with Image.open(BytesIO(make_thumbnail(_picture(mode)))) as thumbnail:
        assert thumbnail.mode == ("RGBA" if mode.endswith("A") else "RGB")
