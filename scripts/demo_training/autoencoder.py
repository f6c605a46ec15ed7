"""Owns the autoencoder both checkpoints share: its shape, its training, and its latents."""

import torch
from diffusers import AutoencoderKL
from torch import nn

from .pictures import Bucket, load_data
from .training import Budget, Environment, Loop, averaged_weights, state_path

CHANNELS = (16, 32, 64)
LATENT_CHANNELS = 4
CROP = 64
BATCH = 12
PEAK = 1.5e-3
NOISE = 0.1


def new_autoencoder(channels: tuple[int, ...] = CHANNELS, latent_channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    """Four-fold down-sampling. No attention in the middle: it would tie the model to one size."""
    levels = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=128,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def as_images(pictures: torch.Tensor) -> torch.Tensor:
    """Bytes (batch, height, width, 3) to floats (batch, 3, height, width) in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def random_crops(buckets: list[Bucket], generator: torch.Generator) -> torch.Tensor:
    """A batch of crops from anywhere in the data set, half of them mirrored."""

    def draw(end: int) -> int:
        return int(torch.randint(end, (1,), generator=generator))

    weights = torch.tensor([float(len(bucket.combinations)) for bucket in buckets])
    bucket = buckets[int(torch.multinomial(weights, 1, generator=generator))]
    width, height = bucket.size
    crops = []
    for _ in range(BATCH):
        top, left = draw(height - CROP + 1), draw(width - CROP + 1)
        crop = bucket.pictures[draw(len(bucket.pictures)), top : top + CROP, left : left + CROP]
        crops.append(torch.from_numpy(crop.copy()).flip(1) if draw(2) else torch.from_numpy(crop.copy()))
    return as_images(torch.stack(crops))


def reconstruction_loss(model: AutoencoderKL, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Absolute error of colours and of edges, small latents, and a decoder used to a little noise.

    Sampling from the full posterior (variance near one at the start) hardly learns at this size, so the
    log-variance is only held near -5 and the noise is added here.
    """
    posterior = model.encode(images).latent_dist
    latents = posterior.mean
    noise = torch.randn(latents.shape, generator=generator).to(latents.device, latents.dtype)
    decoded = model.decode(latents + NOISE * noise).sample
    error: torch.Tensor = (decoded - images).abs().mean()
    for axis in (2, 3):
        error += 0.5 * (decoded.diff(dim=axis) - images.diff(dim=axis)).abs().mean()
    error += 1e-3 * latents.square().mean() + 1e-3 * (posterior.logvar + 5).square().mean()
    return error


def train_autoencoder(environment: Environment, budget: Budget) -> None:
    torch.manual_seed(environment.seed)
    buckets, model = load_data(environment.work / "data"), new_autoencoder().to(environment.device)
    loop = Loop("vae", environment, budget, nn.ModuleDict({"vae": model}), PEAK)

    def loss_of(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(environment.seed * 1_000_003 + step)
        images = random_crops(buckets, generator).to(environment.device)
        with environment.autocast():
            return reconstruction_loss(model, images, generator)

    loop.run(loss_of)


def load_autoencoder(environment: Environment) -> AutoencoderKL:
    """The trained autoencoder with its averaged weights, frozen."""
    model = new_autoencoder()
    averaged_weights(state_path(environment.work, "vae"), nn.ModuleDict({"vae": model}))
    return model.eval().requires_grad_(False).to(environment.device)
