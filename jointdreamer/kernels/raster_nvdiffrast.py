"""NVIDIA's rasteriser (nvdiffrast, Laine et al. 2020) as a backend of `scenes/mesh/raster.py`: CUDA only.

Its row 0 is the bottom of an image: it is given clip coordinates with y negated, everywhere, and its images are ours.
Its triangles are not always ours: it cuts off what lies before the near or behind the far plane, and breaks ties by
rules of its own. Only its CUDA context is used; from 0.4 on it has no other. Its licence allows no commercial use.
"""

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from jointdreamer.errors import UserError


def is_installed() -> bool:
    return importlib.util.find_spec("nvdiffrast") is not None


def require() -> None:
    """Raises UserError if nvdiffrast is not installed."""
    if not is_installed():
        raise UserError(
            "rasteriser backend nvdiffrast: it is not installed (from github.com/NVlabs/nvdiffrast; it needs CUDA and "
            "nvcc); leave it out, or choose torch"
        )


@cache
def context(device: torch.device) -> Any:
    import nvdiffrast.torch as dr  # pyright: ignore[reportMissingImports]  (cannot be installed by pip alone)

    return dr.RasterizeCudaContext(device)


def rasterize(clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """`barycentric`, `depth` and `triangle` as `raster.rasterize` has them; differentiable."""
    import nvdiffrast.torch as dr  # pyright: ignore[reportMissingImports]

    rast, _ = dr.rasterize(context(clip.device), flipped(clip), faces.int(), resolution, grad_db=False)
    return rast[..., :2], rast[..., 2].detach(), rast[..., 3].detach().long()


def interpolate(attributes: Tensor, barycentric: Tensor, depth: Tensor, triangle: Tensor, faces: Tensor) -> Tensor:
    """Values (M, H, W, K) of attributes (M or 1, N, K); differentiable."""
    import nvdiffrast.torch as dr  # pyright: ignore[reportMissingImports]

    return dr.interpolate(attributes.contiguous(), packed(barycentric, depth, triangle), faces.int())[0]


def antialias(
    color: Tensor, barycentric: Tensor, depth: Tensor, triangle: Tensor, clip: Tensor, faces: Tensor
) -> Tensor:
    """Blended colours (M, H, W, K); differentiable. What lies across an edge it finds by itself."""
    import nvdiffrast.torch as dr  # pyright: ignore[reportMissingImports]

    return dr.antialias(color.contiguous(), packed(barycentric, depth, triangle), flipped(clip), faces.int())


def flipped(clip: Tensor) -> Tensor:
    return clip * clip.new_tensor([1, -1, 1, 1])


def packed(barycentric: Tensor, depth: Tensor, triangle: Tensor) -> Tensor:
    """Its raster (M, H, W, 4): b0, b1, z / w and the face + 1, which a float32 counts up to 2^24."""
    return torch.cat([barycentric, depth[..., None], triangle[..., None].to(depth)], dim=-1)
