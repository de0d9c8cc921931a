"""What the diffusion models' recipes share: latents, tokens, the loss, and sampling for the sheets."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdreamer.diffusion import scaled_linear_alphas_cumprod
from jointdreamer.files import atomic_path
from jointdreamer.precision import network_dtype
from jointdreamer.priors.placement import place
from jointdreamer.toybox import data, networks
from jointdreamer.toybox.recipes.base import half_precision

SHEET_STEPS = 25


@torch.no_grad()
def latents_of(folder: Path, name: str, pictures: data.Pictures, vae: Any) -> np.ndarray:
    """(N, V, C, 16, 16) float16 scaled latents of all pictures, each rig on a light grey of its own; made once."""
    path = folder / name / "latents.npy"
    if not path.exists():
        cpu = torch.device("cpu")
        encoder: Any = place(copy.deepcopy(vae).to(network_dtype("auto", cpu)), cpu)  # as a run encodes its renders
        rng, n, v = np.random.default_rng(5), len(pictures), pictures.azimuth.shape[1]
        latents = np.empty((n, v, vae.config.latent_channels, networks.LATENT_SIZE, networks.LATENT_SIZE), np.float16)
        for k in range(0, n, 64):
            rgba = pictures.rgba[k : k + 64]
            rgb = data.composite(rgba, data.random_background(rng, len(rgba))[:, None].repeat(v, 1)).flatten(0, 1)
            mean = encoder.encode((2 * rgb - 1).to(encoder.dtype)).latent_dist.mean.float()
            latents[k : k + 64] = (mean * vae.config.scaling_factor).unflatten(0, (-1, v)).numpy()
            if k % 6400 == 0:
                print(f"latents of {name}: {k} of {n}", flush=True)
        with atomic_path(path) as temporary:
            np.save(temporary, latents)
    return np.load(path)


def denoising_loss(
    unet: Any, x0: Tensor, timesteps: Tensor, words: Tensor, abar: Tensor | None = None, **condition: Tensor
) -> Tensor:
    """x0-prediction, weighted by min(1 / sigma_t^2, 10). abar: (1000,), Stable Diffusion's by default."""
    abar = (scaled_linear_alphas_cumprod() if abar is None else abar)[timesteps].float()[:, None, None, None]
    noisy = abar.sqrt() * x0 + (1 - abar).sqrt() * torch.randn_like(x0)
    with half_precision():
        predicted = unet(noisy, timesteps, words, **condition).sample.float()
    weight = (1 / (1 - abar)).clamp(max=10)
    return (weight * (predicted - x0).square()).mean()


@torch.no_grad()
def ddim(predict: Any, noise: Tensor, words: Tensor, guidance_scale: float, abar: Tensor | None = None) -> Tensor:
    """Deterministic sampling for the sheets. `words` holds the captions' rows, then the empty ones'; abar as above."""
    abar, x = (scaled_linear_alphas_cumprod() if abar is None else abar).float(), noise
    times = torch.linspace(999, 0, SHEET_STEPS + 1).long()
    for now, after in zip(times[:-1], times[1:], strict=True):
        cond, uncond = predict(torch.cat([x, x]), now.repeat(2 * len(x)), words).chunk(2)
        x0 = uncond + guidance_scale * (cond - uncond)
        noise = (x - abar[now].sqrt() * x0) / (1 - abar[now]).sqrt()
        x = abar[after].sqrt() * x0 + (1 - abar[after]).sqrt() * noise
    return x


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Scaled latents (N, C, 16, 16) -> images (N, 3, 64, 64), about [0, 1]."""
    return vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5
