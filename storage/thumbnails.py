"""Thumbnails: small squares for the gallery's grid."""

from PIL import Image, ImageOps

from storage.encoding import encode
from storage.media import ImageFormat

SIDE = 256


def make_thumbnail(image: Image.Image) -> bytes:
    """A PNG of exactly 256x256: the picture's middle, scaled to cover the square.

    Fitting the whole picture inside would give every shape its own size, and a grid of them gaps. The subject
    is usually in the middle, and the whole picture is one click away. A smaller picture is enlarged likewise.
    """
    mode = "RGBA" if image.has_transparency_data else "RGB"
    square = ImageOps.fit(image.convert(mode), (SIDE, SIDE), Image.Resampling.LANCZOS)
    return encode(square, ImageFormat.PNG, {})
