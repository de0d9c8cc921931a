"""Colour jitter, grey, blur and solarisation with Pillow, whose filters DINO itself was trained with.

No flip and no crop: they would break the pose.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from jointdreamer.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """How often and how much; the defaults are the release's. Every image draws its own."""

    jitter: float = 0.8  # probability of all four below, in a random order
    brightness: float = 0.4  # factor 1 +- this
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # +- this share of the circle
    grey: float = 0.2  # probabilities again
    blur: float = 0.1
    solarize: float = 0.2
    blur_radius: tuple[float, float] = (0.1, 2.0)  # pixels

    def __post_init__(self):
        for name in ("jitter", "brightness", "contrast", "saturation", "grey", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation.{name}={getattr(self, name)}: wanted a number from 0 to 1")
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"augmentation.hue={self.hue}: wanted a number from 0 to 0.5")
        low, high = self.blur_radius
        if not 0 <= low <= high <= 1000:
            raise UserError(f"augmentation.blur_radius=[{low}, {high}]: wanted [low, high] from 0 to 1000")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """An RGB image, changed."""
        if rng.random() < self.jitter:
            for which in rng.permutation(4):
                image = self._jitter(image, int(which), rng)
        if rng.random() < self.grey:
            image = ImageOps.grayscale(image).convert("RGB")
        if rng.random() < self.blur:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*self.blur_radius)))
        if rng.random() < self.solarize:
            image = ImageOps.solarize(image)
        return image

    def _jitter(self, image: Image.Image, which: int, rng: np.random.Generator) -> Image.Image:
        if which == 3:
            shift = round(255 * rng.uniform(-self.hue, self.hue))
            hue, saturation, value = image.convert("HSV").split()
            turned = hue.point([(level + shift) % 256 for level in range(256)])
            return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
        kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
        amount = (self.brightness, self.contrast, self.saturation)[which]
        return kind(image).enhance(1 + rng.uniform(-amount, amount))


def to_images(
    rgba: np.ndarray,  # (N, R, R, 4) uint8, straight colour
    background: tuple[float, float],  # range of greys
    rng: np.random.Generator,
    augmentation: Augmentation | None = None,
) -> Tensor:
    """Each image over a grey of its own, augmented: (N, 3, R, R) in [0, 1]."""
    grey = rng.uniform(*background, (len(rgba), 1, 1, 1)) * 255
    color, alpha = rgba[..., :3].astype(np.float32), rgba[..., 3:].astype(np.float32) / 255
    pixels = np.round(color * alpha + grey * (1 - alpha)).astype(np.uint8)
    if augmentation is not None:
        pixels = np.stack([np.asarray(augmentation(Image.fromarray(image), rng)) for image in pixels])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def blur(rgba: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Images (N, R, R, C) uint8, each blurred by a Gaussian of its radius (N,) in pixels."""
    filtered = [
        np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(r)))) if r > 0 else image
        for image, r in zip(rgba, radius, strict=True)
    ]
    return np.stack(filtered)
