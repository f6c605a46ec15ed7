"""Classifier-free guidance."""

import torch


def guide(prediction: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Combine one image's predictions.

    Args:
        prediction: (2, C, h, w), the unconditional row first, or (1, C, h, w) for an image without guidance.
        guidance_scale: w of equation 2 of Imagen (https://arxiv.org/abs/2205.11487), as diffusers defines it.

    Returns:
        (1, C, h, w).
    """
    if prediction.shape[0] == 1:
        return prediction
    unconditional, conditional = prediction.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
