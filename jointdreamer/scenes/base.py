"""What a scene is: something with parameters that cameras can see."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jointdreamer.cameras import Cameras
from jointdreamer.errors import UserError

CHANNELS = {"rgb": 3, "opacity": 1, "depth": 1, "normal": 3, "z_variance": 1, "facing_away": 1}  # of a Render


@dataclass(frozen=True)
class Render:
    """B rigs of V views with R x R pixels. Lengths in world units.

    What a scene does not know is None. Sums over the samples of each pixel only: what is kept for every sample would
    grow with the resolution.
    """

    rgb: Tensor  # (B, V, 3, R, R) in [0, 1]
    opacity: Tensor  # (B, V, 1, R, R) in [0, 1]
    depth: Tensor | None = None  # (B, V, 1, R, R) sum w t along the ray: not divided by the opacity
    normal: Tensor | None = None  # (B, V, 3, R, R) sum w n in the world frame, not normalised
    z_variance: Tensor | None = None  # (B, V, 1, R, R) sum w (t - depth)^2
    facing_away: Tensor | None = None  # (B, V, 1, R, R) sum stopgrad(w) max(0, n . d)^2, d the ray's unit direction
    n_samples: int = 0  # of all pixels together


def check_render(render: Render, cameras: Cameras, name: str) -> None:
    """Raise UserError, one line, if what a scene of this name renders is no `Render` of the right shapes."""
    if not isinstance(render, Render):
        raise UserError(f"scene {name}: render must return a Render, got {type(render).__name__}")
    size = (*cameras.azimuth.shape, cameras.resolution, cameras.resolution)
    for key, channels in CHANNELS.items():
        value, wanted = getattr(render, key), (*size[:2], channels, *size[2:])
        if value is None and key not in ("rgb", "opacity"):
            continue
        if not isinstance(value, Tensor) or value.shape != wanted:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"scene {name}: render's {key} must be {wanted}, (B, V, channels, R, R), got {came}")


class Scene(nn.Module, ABC):
    """What is optimised, and how cameras see it."""

    lr_scale: Mapping[str, float] = {}

    @abstractmethod
    def render(
        self,
        cameras: Cameras,  # (B, V)
        now: SimpleNamespace | None = None,
        generator: torch.Generator | None = None,
        chunk: int | None = None,
        normals: bool = True,
    ) -> Render:
        """What the cameras see.

        now: the plan at this step (`now.shading`, `now.loss`); `now.distilled`, if it is there, is rgb: colours are
            wanted, also of a scene that shows its priors something else
        generator: every random draw of training comes from it; without one this is evaluation: no random draw, the
            evaluation's background
        chunk: pixels that are in memory at a time, all by default; changes nothing but the last bits
        normals: whether an evaluation wants them
        """

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by role, as `schedule.lr` names them: "geometry", "appearance", "background", ...

        A part of a role has a name behind a colon, "geometry:encoding"; `lr_scale` may hold a factor for it.
        """

    def regularizers(
        self, render: Render, weights: SimpleNamespace, cameras: Cameras, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """Losses by name, not multiplied by `weights`; only those whose weight is there and not 0."""
        return {}

    regularizer_names: tuple[str, ...] = ()  # the losses that `regularizers` knows

    def bounds(self) -> Tensor | None:
        """Corners (2, 3) of the box that the object fills now, world units; None, as here: the scene does not know."""
        return None

    @classmethod
    def bytes_to_build(cls, **options: Any) -> float:
        """The most memory that building it with these options of `scene` takes at a time, beyond its field."""
        return 0.0

    def start_from(self, other: "Scene") -> None:
        """Take over another scene's object, as a second stage does. Raises UserError for one that it cannot take."""
        raise UserError(f"{type(self).__name__} cannot start from another scene")

    def start_from_mesh(self, corners: np.ndarray, points: np.ndarray, albedo: np.ndarray) -> None:
        """Take over a closed surface, z up and front +x: corners of its faces (F, 3, 3), the longest side of its box 1.

        points, albedo: samples of it, (N, 3), and their colours (N, 3) in [0, 1]
        Raises UserError for a scene that cannot, and for a surface that is not closed.
        """
        raise UserError(f"{type(self).__name__} cannot start from a mesh")

    def check_state(self) -> None:
        """Raise UserError if the object is not worth a checkpoint: the one before it then stays."""

    def before_step(self, step: int, generator: torch.Generator) -> None:
        """Called before the render of each step, e.g. to update an occupancy grid."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Called after the optimiser, e.g. to densify Gaussians."""

    def describe(self) -> dict[str, str]:
        """What runs it where it is now, for the log: {"encoding": "numba"}."""
        return {}

    def mesh(self, resolution: int) -> Any:
        """The surface as a trimesh.Trimesh with vertex colours. Raises UserError for a scene without one."""
        raise UserError(f"{type(self).__name__} has no surface to export")

    def surface_colors(self, resolution: int) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What a texture of `mesh(resolution)` shows: points of it and unit outward normals, both (N, 3), -> albedo
        (N, 3) in [0, 1]. None, as here: the mesh's vertex colours are all there is to know."""
        return None
