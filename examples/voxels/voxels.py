"""A scene of one's own: density and colour in a dense grid.

PYTHONPATH=examples/voxels python train.py --config-dir examples/voxels/conf scene=voxels prompt="a green bear"
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, softplus

from jointdreamer.cameras import rays
from jointdreamer.scenes.base import Render, Scene
from jointdreamer.scenes.regularizers import regularizers


class Voxels(Scene):
    """Trilinear in a grid of `size`^3 voxels over [-1, 1]^3, `n_samples` samples a ray."""

    regularizer_names = ("sparsity", "opaque")

    def __init__(self, size: int = 32, n_samples: int = 48):
        super().__init__()
        axis = torch.linspace(-1, 1, size)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        self.density = nn.Parameter((10 * (1 - 2 * (x**2 + y**2 + z**2).sqrt()))[None, None])
        self.color = nn.Parameter(0.1 * torch.randn(1, 3, size, size, size))
        self.n_samples = n_samples

    def render(self, cameras, now=None, generator=None, chunk=None, normals=True) -> Render:
        cameras = cameras.to(self.density.device)
        rays_o, rays_d = rays(cameras.c2w, cameras.fovy, cameras.resolution, cameras.orthographic)  # (B, V, R, R, 3)
        step = 2 * 3**0.5 / self.n_samples
        near = (cameras.distance - 3**0.5)[..., None, None, None]
        t = near + step * (torch.arange(self.n_samples, device=near.device) + 0.5)  # (B, V, 1, 1, N)
        x = rays_o[..., None, :] + t[..., None] * rays_d[..., None, :]  # (B, V, R, R, N, 3)
        alpha = 1 - torch.exp(-step * softplus(self.at(self.density, x)[..., 0]))
        light = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha], -1), -1)
        weights = light[..., :-1] * alpha
        opacity = weights.sum(-1)[..., None]
        grey = 0.85 if generator is None else float(torch.rand((), generator=generator))
        rgb = (weights[..., None] * self.at(self.color, x).sigmoid()).sum(-2) + (1 - opacity) * grey
        return Render(rgb.movedim(-1, 2), opacity.movedim(-1, 2))

    @staticmethod
    def at(grid: Tensor, x: Tensor) -> Tensor:
        """(1, C, N, N, N) at points (..., 3) -> (..., C); 0 outside."""
        found = grid_sample(grid, x.reshape(1, -1, 1, 1, 3), align_corners=True, padding_mode="zeros")
        return found[0, :, :, 0, 0].T.reshape(*x.shape[:-1], -1)

    def parameter_groups(self):
        return {"geometry": [self.density], "appearance": [self.color]}

    def regularizers(self, render, weights, cameras, generator):
        return regularizers(render, weights)
