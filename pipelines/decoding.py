"""From finished latents to pictures: only sound ones are decoded, and what overflows gets a second try."""

from collections.abc import Sequence

import torch
from PIL.Image import Image

from pipelines.denoising import Denoising
from pipelines.errors import NotANumber
from pipelines.family import Family


def decode(family: Family, images: Sequence[Denoising]) -> list[Image | Exception]:
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


def to_pictures(pixels: torch.Tensor) -> list[Image]:
    """Turn (N, 3, H, W) pixels in -1..1 into RGB pictures, rounding as diffusers' image processor does."""
    import PIL.Image

    # Rounded before they leave the device: a byte a channel is a quarter of what there is to wait for.
    values = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(value) for value in values]
