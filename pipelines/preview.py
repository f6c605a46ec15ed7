"""Previews: what a picture in the making will look like, guessed at from the network's last answer."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import PIL.Image
import torch
from PIL.Image import Image
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pipelines.catalog import LINEAR
from pipelines.denoising import Answer, Denoising
from pipelines.device import is_out_of_memory
from pipelines.errors import PreviewFailed
from pipelines.family import Family
from pipelines.samplers import Prediction

log = logging.getLogger(__name__)

MAX_SIDE = 256
"""The longest side of a preview, in pixels."""

_FIT_LATENTS = 12
"""The side of the pictures a linear map is fitted to, in latents: 144 samples a picture for a few dozen weights."""

_RIDGE = 1e-4
"""What is added to the squares of the features, whose mean is about one: a VAE may have channels that say nothing."""

_DECODED_LATENTS = 64
"""The longest side, in latents, of what a decoder is given: twice what a preview shows of a VAE that shrinks by 8."""


class Previewer(Protocol):
    """Turns clean latents into small RGB pictures."""

    def pixels(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """One (h, w, 3) tensor in -1..1 for each (1, C, h, w) of latents, whose sizes may differ."""
        ...


@dataclass(frozen=True)
class LinearPreviewer:
    """One matrix from a latent to the mean colour of the pixels it stands for; one pixel a latent.

    Attributes:
        weights: (C + 1, 3) in float32 on the device, the constant last.
    """

    weights: torch.Tensor

    @classmethod
    def fit(cls, family: Family) -> "LinearPreviewer":
        """Fit it to a model's own VAE by least squares: to pictures drawn here, and to what its encoder makes of them.

        Raises:
            PreviewFailed: the encoder answers with what is not a number.
        """
        pictures = synthetic_pictures(_FIT_LATENTS * family.vae_factor)
        latents = family.latents_of(pictures.to(family.device)).float().cpu()
        colours = adaptive_avg_pool2d(pictures, (latents.shape[-2], latents.shape[-1]))
        # In double precision, of which not every device has any.
        features = _flat(latents).double()
        known, wanted = torch.cat([features, torch.ones_like(features[:, :1])], dim=1), _flat(colours).double()
        squares = known.T @ known + _RIDGE * len(known) * torch.eye(known.shape[1], dtype=torch.double)
        weights = torch.linalg.solve(squares, known.T @ wanted).float()
        if not torch.isfinite(weights).all():
            raise PreviewFailed("the VAE encodes plain pictures to what is not a number.")
        return cls(weights.to(family.device))

    def pixels(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        small = [_shrunk(one.float(), MAX_SIDE) for one in latents]
        colours = torch.addmm(self.weights[-1], torch.cat([_flat(one) for one in small]), self.weights[:-1])
        sizes = [one.shape[-2:] for one in small]
        parts = torch.split(colours, [height * width for height, width in sizes])
        return [part.view(*size, 3) for part, size in zip(parts, sizes, strict=True)]


@dataclass(frozen=True)
class DecoderPreviewer:
    """A distilled decoder (diffusers' AutoencoderTiny), for previews that show more than colours.

    Large latents are averaged down first, so that no picture's size makes a preview dear.
    """

    decoder: Any

    def pixels(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [self._decoded(one) for one in latents]

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.decoder.config
        small = _shrunk(latents.to(self.decoder.dtype), _DECODED_LATENTS)
        pixels = self.decoder.decode(small / config.scaling_factor + config.shift_factor, return_dict=False)[0]
        return _shrunk(pixels.float(), MAX_SIDE)[0].permute(1, 2, 0)


class Previewers:
    """Each model's previewer, made once. A model that is forgotten takes its own with it."""

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[Family, Previewer | None] = WeakKeyDictionary()

    def make(self, family: Family) -> None:
        """Have a placed model's previewer made before anybody looks; where memory lacks for that, it is made then."""
        try:
            self._find(family)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            log.info(
                "model %s: no memory to prepare its previews; that is tried again with the first", family.entry.name
            )

    def of(self, family: Family) -> Previewer:
        """A placed model's previewer.

        Raises:
            PreviewFailed: there can be none.
            RuntimeError: memory lacks, which is not remembered.
        """
        previewer = self._find(family)
        if previewer is None:
            raise PreviewFailed(f"model {family.entry.name!r} has no previews; the log says why.")
        return previewer

    def _find(self, family: Family) -> Previewer | None:
        if family not in self._made:
            self._made[family] = _new(family)
        return self._made[family]


def _new(family: Family) -> Previewer | None:
    """The previewer that a model's entry names; None where there can be none, which costs nobody a picture."""
    if family.entry.preview != LINEAR:
        return None if family.preview_decoder is None else DecoderPreviewer(family.preview_decoder)
    try:
        return LinearPreviewer.fit(family)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        log.warning("no previews of model %r: %s", family.entry.name, str(error)[:600] or type(error).__name__)
        return None


def clean_latents(image: Denoising, prediction: Prediction) -> torch.Tensor:
    """The latents that the network believes an image will end with, (1, C, h, w) in float32.

    A finished image gives the latents it has, and one that was never stepped its noise.
    """
    if image.finished:
        return image.latents.float()
    if image.answer is None:
        return image.latents.float() / float(getattr(image.sampler, "init_noise_sigma", 1.0))
    return implied_latents(image.answer, image.sampler, prediction)


def implied_latents(answer: Answer, sampler: Any, prediction: Prediction) -> torch.Tensor:
    """The clean latents that an answer of the network comes to, (1, C, h, w) in float32.

    The network was shown latents at a noise level and told the timestep of that level. Every sampler keeps to this,
    whatever it does with the answer, so none is asked for its sigmas, its order or its history, and none is touched.
    Some round a timestep, which moves the result by less than a step of the training schedule.
    """
    keep, remove = _coefficients(sampler, prediction, float(answer.timestep))
    return keep * answer.shown.float() - remove * answer.prediction.float()


def _coefficients(sampler: Any, prediction: Prediction, timestep: float) -> tuple[float, float]:
    """By how much to keep what the network was shown, and to take off what it answered.

    A flow's velocity v at x = (1 - t) x0 + t noise gives x0 = x - t v (equation 13 of https://arxiv.org/abs/2403.03206
    for its linear paths). A diffusion's x = alpha x0 + sigma noise gives x0 = (x - sigma epsilon) / alpha, or
    alpha x - sigma v (appendix D of https://arxiv.org/abs/2202.00512). Of what is none of these, what the network was
    shown is the best guess there is.
    """
    config = sampler.config
    if prediction is Prediction.FLOW:
        return 1.0, timestep / config.num_train_timesteps
    alpha, sigma = _noise_level(sampler.alphas_cumprod, timestep)
    kind = config.prediction_type
    if kind == "epsilon" and alpha > 0:  # of nothing but noise no noise can be taken off
        return 1 / alpha, sigma / alpha
    if kind == "v_prediction" and config.get("timestep_type") != "continuous":  # whose timesteps are not training's
        return alpha, sigma
    return (0.0, -1.0) if kind == "sample" else (1.0, 0.0)


def _noise_level(alphas_cumprod: torch.Tensor, timestep: float) -> tuple[float, float]:
    """Alpha and sigma at a timestep; between two of training's, log(sigma / alpha) is interpolated, as samplers do."""
    last = len(alphas_cumprod) - 1
    timestep = min(max(timestep, 0.0), float(last))
    low = int(timestep)
    here, after = alphas_cumprod[[low, min(low + 1, last)]].cpu().double()
    if timestep > low:  # else a logit, which may be infinite, need not be looked at
        here = torch.lerp(here.logit(), after.logit(), timestep - low).sigmoid()
    return math.sqrt(here), math.sqrt(1 - here)


def draw(previewer: Previewer, latents: Sequence[torch.Tensor]) -> list[Image | Exception]:
    """A small picture of each (1, C, h, w) of clean latents, with one copy to the host for all of them together."""
    pixels = previewer.pixels(latents)
    flat = torch.cat([one.reshape(-1, 3) for one in pixels])
    sound = torch.isfinite(flat).all(dim=1, keepdim=True)
    colours = ((torch.nan_to_num(flat) / 2 + 0.5).clamp(0, 1) * 255).round()
    host = torch.cat([colours, sound], dim=1).to(torch.uint8).cpu()
    sizes = [one.shape[:2] for one in pixels]
    parts = torch.split(host, [height * width for height, width in sizes])
    return [_picture(part.view(*size, 4)) for part, size in zip(parts, sizes, strict=True)]


def _picture(pixels: torch.Tensor) -> Image | Exception:
    """The RGB picture of (h, w, 4) bytes, of which the last says whether the pixel is a number."""
    if not pixels[..., 3].all():
        return PreviewFailed("the latents hold what is not a number.")
    return PIL.Image.fromarray(pixels[..., :3].numpy())


def synthetic_pictures(side: int) -> torch.Tensor:
    """Eight pictures to fit a map to, (8, 3, side, side) in -1..1, always the same.

    Each is one corner of the colour cube at half its strength, under soft noise of every scale from half the picture
    downwards, each scale half as strong as the one before: so natural pictures fall off
    (https://doi.org/10.1364/JOSAA.4.002379), and grey varies in them as much as colour.
    """
    generator = torch.Generator().manual_seed(0)
    pictures = 0.5 * torch.tensor(list(product((-1.0, 1.0), repeat=3))).view(8, 3, 1, 1).expand(8, 3, side, side)
    cells = 2
    while cells <= side:
        colour, grey = (torch.randn(8, channels, cells, cells, generator=generator) for channels in (3, 1))
        noise = interpolate(colour + grey, size=(side, side), mode="bilinear", align_corners=True)
        pictures = pictures + 0.4 / cells * noise
        cells *= 2
    return pictures.clamp(-1, 1)


def _flat(pixels: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) as (N h w, C)."""
    return pixels.permute(0, 2, 3, 1).reshape(-1, pixels.shape[1])


def _shrunk(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """(1, C, h, w) averaged down until its longer side is at most `side`."""
    height, width = pixels.shape[-2:]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    return adaptive_avg_pool2d(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))
