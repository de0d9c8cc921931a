"""Images to latents and back with a diffusers AutoencoderKL, for everything that owns one."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jointdreamer.diffusion import noise_like
from jointdreamer.errors import UserError
from jointdreamer.reading import is_number
from jointdreamer.weights.parts import load_part


def scale_factor(vae: Any) -> int:
    """Pixels per latent, along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def load_autoencoder(folder: Path, dtype: torch.dtype, part: str = "vae") -> Any:
    """The AutoencoderKL in vae/ of a diffusers folder. Raises UserError, one line, if it is missing or damaged."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return load_part(AutoencoderKL, folder, part, dtype)


def check_autoencoder(vae: Any, channels: int, where: str | Path) -> None:
    """Refuse an AutoencoderKL whose latents are not those of a UNet of so many latent channels. Raises UserError.

    where: what to name in the error
    """
    config = vae.config
    if config.latent_channels != channels:
        raise UserError(
            f"{where}: the autoencoder makes latents of {config.latent_channels} channels, its UNet reads {channels}: "
            "take both from one model"
        )
    for name, low in (("scaling_factor", 1e-6), ("shift_factor", -1e6)):
        value = config.get(name)
        if not is_number(value, low) and not (name == "shift_factor" and value is None):
            raise UserError(f"{where}: the autoencoder's {name} must be a number, got {value!r} in its config.json")
    # what a config leaves out is Stable Diffusion 1's and 2's, whose latents have 4 channels
    if channels != 4 and "scaling_factor" in config.get("_use_default_values", ()):
        raise UserError(
            f"{where}: the autoencoder's config.json has no scaling_factor: add it, from the model's authors"
        )
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise UserError(f"{where}: latents that are scaled channel by channel (latents_mean, latents_std) are not read")


def encode_images(
    vae: Any,
    rgb: Tensor,  # (B, V, 3, R, R) in [0, 1], any R
    image_size: int,
    generator: torch.Generator | None,
    chunk: int | None = None,
) -> Tensor:
    """A sample of the posterior, shifted and scaled: latents (B, V, C, h, w), float32, differentiable.

    The images are resized bilinearly (align_corners off) to `image_size` and enter as 2 rgb - 1.
    chunk: images in the encoder at a time, all by default. With fewer, backward encodes each chunk once more instead of
        keeping 1.6 GB (Stable Diffusion, 512 pixels, fp16) for every image; the same result.
    """
    images = _resized(rgb, image_size)
    chunk = min(chunk or len(images), len(images))
    encode = _posterior if chunk == len(images) else partial(checkpoint, _posterior, use_reentrant=False)
    moments = [encode(vae, part) for part in images.split(chunk)]
    mean, std = (torch.cat(parts) for parts in zip(*moments, strict=True))
    latents = (mean + std * noise_like(mean, generator) - _shift(vae)) * vae.config.scaling_factor
    return latents.unflatten(0, rgb.shape[:2])


def encode_mean(vae: Any, rgb: Tensor, image_size: int) -> Tensor:
    """`encode_images` without a draw: the mean of the posterior, shifted and scaled."""
    mean, _ = _posterior(vae, _resized(rgb, image_size))
    return ((mean - _shift(vae)) * vae.config.scaling_factor).unflatten(0, rgb.shape[:2])


def _resized(rgb: Tensor, image_size: int) -> Tensor:
    """Images (B, V, 3, R, R) -> (B V, 3, image_size, image_size)."""
    images, size = rgb.flatten(0, 1), (image_size, image_size)
    if images.shape[-2:] == size:
        return images
    return torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False)


def _shift(vae: Any) -> float:
    """What is taken from latents before they are scaled; 0 for most."""
    return vae.config.get("shift_factor") or 0.0


def _posterior(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (N, C, h, w), float32, of images (N, 3, H, W) in [0, 1]."""
    posterior = vae.encode((2 * images - 1).to(vae.dtype)).latent_dist
    return posterior.mean.float(), posterior.std.float()


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, V, C, h, w) -> images (B, V, 3, H, W), about [0, 1], not clamped, float32, differentiable."""
    rows = (latents.flatten(0, 1) / vae.config.scaling_factor + _shift(vae)).to(vae.dtype)
    images = vae.decode(rows).sample.float()
    return (images / 2 + 0.5).unflatten(0, latents.shape[:2])
