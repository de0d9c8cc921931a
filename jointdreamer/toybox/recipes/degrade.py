"""Views as a half-trained NeRF may show them, for the networks that judge pictures: the CLIP and the judge."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jointdreamer.toybox import data
from jointdreamer.toybox.recipes.base import Recipe


def degraded_views(recipe: Recipe, rng: np.random.Generator, n: int) -> tuple[Tensor, list]:
    """Views as a half-trained NeRF may show them: blurred, noisy, off in contrast; two in five stay clean."""
    rgba, origins = recipe.random_views(rng, n)
    return degrade(data.composite(rgba, data.random_background(rng, n)), rng), origins


def degrade(rgb: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur (a low resolution and back), smooth and fine noise, contrast: each on some of the images (N, 3, 64, 64)."""
    out = rgb.clone()
    for i in range(len(rgb)):
        if rng.random() < 0.4:
            continue
        image = rgb[i : i + 1]
        if rng.random() < 0.7:
            size = int(rng.integers(18, 56))
            small = F.interpolate(image, size=size, mode="bilinear", antialias=True)
            image = F.interpolate(small, size=64, mode="bilinear")
        if rng.random() < 0.5:
            blotches = torch.from_numpy(rng.normal(0, 0.06, (1, 3, 8, 8))).float()
            image = image + F.interpolate(blotches, size=64, mode="bicubic")
        if rng.random() < 0.3:
            image = image + torch.from_numpy(rng.normal(0, 0.04, (1, 3, 64, 64))).float()
        contrast, light = rng.uniform(0.8, 1.25), rng.uniform(-0.08, 0.08)
        out[i] = ((image - 0.5) * contrast + 0.5 + light)[0].clamp(0, 1)
    return out
