"""What a radiance field answers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class FieldOutput:
    """A field at N points."""

    sigma: Tensor  # (N,) density per unit of length, >= 0
    albedo: Tensor  # (N, 3) in [0, 1]
    normal: Tensor | None  # (N, 3) unit length, world frame, outward; None if not asked for


class Field(nn.Module, ABC):
    """Density and albedo in the box [-radius, radius]^3 of the world."""

    radius: float
    lr_scale: Mapping[str, float] = {}  # as of `Scene`

    @abstractmethod
    def density(self, x: Tensor) -> Tensor:
        """World points (N, 3) -> sigma (N,). The cheap question: occupancy, pruning and meshes ask only this."""

    def density_and_features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """`density` without a graph, and features (N, ...) of these points that `forward` can use again, or None.

        `forward` takes the rows of the points that are left after pruning.
        """
        return self.density(x), None

    @abstractmethod
    def forward(self, x: Tensor, normals: bool = False, features: Tensor | None = None) -> FieldOutput:
        """World points (N, 3) -> density, albedo and, only if asked for, normals."""

    def albedo(self, x: Tensor) -> Tensor:
        """World points (N, 3) -> albedo (N, 3) in [0, 1], of a surface that has them."""
        return self(x).albedo

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by role, as in `Scene.parameter_groups`."""
