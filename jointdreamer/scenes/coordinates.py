"""Canonical coordinate maps: at each pixel, where on the object one looks (SweetDreamer, Li et al. 2023, Sec. 4.1)."""

import torch
from torch import Tensor

from jointdreamer.cameras import Cameras, rays


def as_latents(maps: Tensor, scale: float = 1.0) -> Tensor:
    """Maps (..., 4, R, R) in [0, 1] as a diffusion model noises them: scale (2 x - 1) of coordinates, 2 o - 1."""
    return (2 * maps - 1) * maps.new_tensor([scale, scale, scale, 1.0])[:, None, None]


def as_maps(latents: Tensor, scale: float = 1.0) -> Tensor:
    """The inverse of `as_latents`."""
    return latents / latents.new_tensor([scale, scale, scale, 1.0])[:, None, None] / 2 + 0.5


def coordinate_map(
    opacity: Tensor,  # (B, V, 1, R, R) sum w, as of a `Render`
    depth: Tensor,  # (B, V, 1, R, R) sum w t along the unit ray
    cameras: Cameras,  # (B, V)
    box: Tensor,  # (2, 3) corners of the canonical box in the world: the coordinates 0 and 1
) -> Tensor:
    """(B, V, 4, R, R) in [0, 1]: the coordinates in the box, averaged along the ray, and the opacity. Differentiable.

    A sample at o + t d with weight w adds w (o + t d), so the sum along a ray is o sum w + d sum w t: opacity and depth
    know it, of volumes and of surfaces. What is not covered counts as the middle of the box, as the official
    implementation's sums of coordinates in [-1, 1] do.
    """
    rays_o, rays_d = (
        x.movedim(-1, 2).to(depth) for x in rays(cameras.c2w, cameras.fovy, cameras.resolution, cameras.orthographic)
    )
    low, high = (corner.to(depth).view(3, 1, 1) for corner in box)
    position = rays_o * opacity + rays_d * depth
    coordinates = (position - opacity * (low + high) / 2) / (high - low) + 0.5
    return torch.cat([coordinates, opacity], 2)
