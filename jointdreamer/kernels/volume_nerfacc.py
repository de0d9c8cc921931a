"""nerfacc (Li et al. 2023, version 0.5.3) as the renderer's marcher and scan: CUDA only, the extra `cuda`.

Its two-pass kernel walks each ray through the occupancy grid cell by cell, so that empty space costs nothing, and its
scan sums along packed rays. Conventions differ in names only: a sample is the middle of a step, and it exists if its
middle lies in an occupied cell; the walk starts at a plane of its own for each ray, which carries the offset.

Whether nerfacc can run is decided by what is installed and where the tensors are, never by trying a call: its kernels
are compiled at the first one, and on a machine without a compiler every call fails in another way.
"""

import importlib.util
import shutil
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from jointdreamer.errors import UserError


@cache
def can_run() -> bool:
    """Whether nerfacc is installed with its kernels compiled, or with an nvcc on the path that will compile them."""
    spec = importlib.util.find_spec("nerfacc")
    if spec is None or spec.origin is None:
        return False
    return any(Path(spec.origin).parent.glob("csrc*.so")) or shutil.which("nvcc") is not None


def require() -> None:
    """Raises UserError if nerfacc is not installed."""
    if importlib.util.find_spec("nerfacc") is None:
        raise UserError(
            'renderer.backend=nerfacc: nerfacc is not installed (pip install "nerfacc>=0.5.3,<0.6"; it needs CUDA and '
            "nvcc); leave it out, or choose torch"
        )


def march(
    occupied: Tensor,  # (G, G, G) bool, indexed x, y, z
    radius: float,
    step_size: float,
    rays_o: Tensor,  # (R, 3)
    rays_d: Tensor,  # (R, 3) unit length
    offset: Tensor,  # (R,) in steps
) -> tuple[Tensor, Tensor]:
    """`VolumeRenderer.march`: the packed `ray_indices` (N,) and distances `t` (N,) of samples in occupied cells."""
    import nerfacc  # pyright: ignore[reportMissingImports]  (an optional extra)

    aabb = torch.tensor([[-radius] * 3 + [radius] * 3], device=rays_o.device, dtype=rays_o.dtype)
    _, samples, _ = nerfacc.traverse_grids(
        rays_o, rays_d, occupied[None], aabb, near_planes=offset * step_size, step_size=step_size
    )
    return samples.ray_indices, samples.vals


def alpha_and_transmittance(tau: Tensor, ray_indices: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """As `samples.alpha_and_transmittance`: alpha and T (N,) from packed optical depths, differentiable."""
    import nerfacc  # pyright: ignore[reportMissingImports]  (an optional extra)

    if len(tau) == 0:  # a kernel cannot be launched for nothing
        return tau, tau
    packed_info = torch.stack([counts.cumsum(0) - counts, counts], dim=-1)
    # not its own alpha, 1 - exp(-tau): that loses the digits of thin air
    return -torch.expm1(-tau), torch.exp(-nerfacc.exclusive_sum(tau, packed_info))
