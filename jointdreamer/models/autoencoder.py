"""Images to latents and back with a diffusers AutoencoderKL, for everything that owns one."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jointdreamer.diffusion import noise_like


def scale_factor(vae: Any) -> int:
    """Pixels per latent, along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def encode_images(
    vae: Any,
    rgb: Tensor,  # (B, V, 3, R, R) in [0, 1], any R
    image_size: int,
    generator: torch.Generator | None,
    chunk: int | None = None,
) -> Tensor:
    """A sample of the posterior, times the scaling factor: latents (B, V, C, h, w), float32, differentiable.

    The images are resized bilinearly (align_corners off) to `image_size` and enter as 2 rgb - 1.
    chunk: images in the encoder at a time, all by default. With fewer, backward encodes each chunk once more instead of
        keeping 1.6 GB (Stable Diffusion, 512 pixels, fp16) for every image; the same result.
    """
    images = rgb.flatten(0, 1)
    if images.shape[-2:] != (image_size, image_size):
        size = (image_size, image_size)
        images = torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False)
    chunk = min(chunk or len(images), len(images))
    encode = _posterior if chunk == len(images) else partial(checkpoint, _posterior, use_reentrant=False)
    moments = [encode(vae, part) for part in images.split(chunk)]
    mean, std = (torch.cat(parts) for parts in zip(*moments, strict=True))
    latents = (mean + std * noise_like(mean, generator)) * vae.config.scaling_factor
    return latents.unflatten(0, rgb.shape[:2])


def _posterior(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (N, C, h, w), float32, of images (N, 3, H, W) in [0, 1]."""
    posterior = vae.encode((2 * images - 1).to(vae.dtype)).latent_dist
    return posterior.mean.float(), posterior.std.float()


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, V, C, h, w) -> images (B, V, 3, H, W), about [0, 1], not clamped, float32, differentiable."""
    rows = (latents.flatten(0, 1) / vae.config.scaling_factor).to(vae.dtype)
    images = vae.decode(rows).sample.float()
    return (images / 2 + 0.5).unflatten(0, latents.shape[:2])
