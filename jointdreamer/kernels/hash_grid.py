"""What the hash kernels look at of an encoding (scenes/nerf/encoding.py)."""

import os
from typing import Any, Protocol

from torch import Tensor


class Grid(Protocol):
    """A multiresolution hash grid: L levels of F features, their tables one behind the other."""

    params: Any  # Tensor (entries * F,)
    n_features: int
    log2_table_size: int
    base_resolution: int
    growth: float
    scales: Any  # (L,) float64
    resolutions: Any  # (L,) int64, vertices along an axis
    offsets: Any  # (L + 1,) int64, first entry of each level

    @property
    def n_levels(self) -> int: ...

    @property
    def out_features(self) -> int: ...  # L * F


class Kernels(Protocol):
    """What a module of kernels for a Grid offers; x are points (N, 3) in the unit cube."""

    def gather(self, grid: Grid, x: Tensor, params: Tensor, along: Tensor | None = None) -> Tensor:
        """Features (N, L * F) of the points (N, 3), or their derivative along a direction (N, 3)."""
        ...

    def scatter(self, grid: Grid, x: Tensor, grad: Tensor, along: Tensor | None = None) -> Tensor:
        """The transpose of `gather`: (N, L * F) -> float32 gradient of the parameters."""
        ...

    def position_gradient(
        self, grid: Grid, x: Tensor, params: Tensor, grad: Tensor, along: Tensor | None = None
    ) -> Tensor:
        """Gradient of (grad . features) with respect to the points (N, 3), or its derivative along a direction."""
        ...


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU. Triton reads this when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"
