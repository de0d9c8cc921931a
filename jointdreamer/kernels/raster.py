"""What the twins of the rasteriser (scenes/mesh/raster.py) have in common.

M images of H x W pixels, N vertices, F faces, K channels. Tensors are contiguous, and of one dtype where they hold
floats.
"""

from typing import Protocol

import torch
from torch import Tensor

LEAST_W = 1e-6  # faces with a vertex whose w is not above this are not drawn: they reach the plane of the camera
LEAST_AREA = 1e-6  # |A| and ...
LEAST_HEIGHT = 1e-3  # ... |dy| in pixels are larger by this where gradients are divided by them
SLACK = 1 / 16  # pixels: how far outside of two pixel centres an edge may cross the line through them
STEPS = 32  # faces that are walked over in search of the outline
MARGIN = 1 / 64  # pixels: what the box around a face may be off by rounding


def centres(n: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Centres (n,) of a row of pixels in normalised device coordinates, from -1 to 1.

    Found on the CPU: a GPU divides by a number as it multiplies by its reciprocal, and triangles would differ.
    """
    return ((torch.arange(n, dtype=dtype) * 2 + 1) / n - 1).to(device)


class Twin(Protocol):
    """The rasteriser's operations and their gradients, as a module: equations in torch, or compiled loops."""

    def rasterize(self, clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """`barycentric` (M, H, W, 2), `depth` (M, H, W) and `triangle` (M, H, W) of clip (M, N, 4), faces (F, 3)."""
        ...

    def rasterize_backward(
        self, clip: Tensor, faces: Tensor, barycentric: Tensor, triangle: Tensor, grad: Tensor
    ) -> Tensor:
        """Gradient of clip; grad (M, H, W, 2) is that of barycentric."""
        ...

    def interpolate(self, attributes: Tensor, barycentric: Tensor, triangle: Tensor, faces: Tensor) -> Tensor:
        """Values (M, H, W, K) of attributes (M, N, K), or (1, N, K) where all images have the same."""
        ...

    def interpolate_backward(
        self, attributes: Tensor, barycentric: Tensor, triangle: Tensor, faces: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of attributes and barycentric; grad (M, H, W, K) is that of the values."""
        ...

    def find_crossings(
        self, clip: Tensor, faces: Tensor, opposite: Tensor, beyond: Tensor, triangle: Tensor, depth: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The C pairs of neighbouring pixels with a silhouette edge between their centres, in ascending order.

        beyond (F, 3): the face across each edge, -1 for none, to walk over at most STEPS of them; (0, 3): not to walk.

        pair (C,) int64: twice the number of the first pixel among all M H W, plus 1 where the second is the one below
        it and not the one to its right; edge (C, 2) int64: two vertices, numbered through all images; alpha (C,): the
        share of the second's colour minus the first's that is added to the first if it is positive, else to the second.
        """
        ...

    def antialias(self, color: Tensor, pair: Tensor, alpha: Tensor) -> Tensor:
        """The colours (M, H, W, K) with those shares added."""
        ...

    def antialias_backward(
        self, color: Tensor, clip: Tensor, pair: Tensor, edge: Tensor, alpha: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of color and clip; grad (M, H, W, K) is that of the result."""
        ...
