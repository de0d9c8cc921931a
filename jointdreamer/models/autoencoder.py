"""Images to latents and back with a diffusers AutoencoderKL, for everything that owns one."""

from typing import Any

import torch
from torch import Tensor

from jointdreamer.diffusion import noise_like


def scale_factor(vae: Any) -> int:
    """Pixels per latent, along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def encode_images(
    vae: Any,
    rgb: Tensor,  # (B, V, 3, R, R) in [0, 1], any R
    image_size: int,
    generator: torch.Generator | None,
) -> Tensor:
    """A sample of the posterior, times the scaling factor: latents (B, V, C, h, w), float32, differentiable.

    The images are resized bilinearly (align_corners off) to `image_size` and enter as 2 rgb - 1.
    """
    images = rgb.flatten(0, 1)
    if images.shape[-2:] != (image_size, image_size):
        size = (image_size, image_size)
        images = torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False)
    posterior = vae.encode((2 * images - 1).to(vae.dtype)).latent_dist
    mean, std = posterior.mean.float(), posterior.std.float()
    latents = (mean + std * noise_like(mean, generator)) * vae.config.scaling_factor
    return latents.unflatten(0, rgb.shape[:2])


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, V, C, h, w) -> images (B, V, 3, H, W), about [0, 1], not clamped, float32, differentiable."""
    rows = (latents.flatten(0, 1) / vae.config.scaling_factor).to(vae.dtype)
    images = vae.decode(rows).sample.float()
    return (images / 2 + 0.5).unflatten(0, latents.shape[:2])
