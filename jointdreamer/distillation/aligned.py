"""SweetDreamer's aligned geometric prior as a term: score distillation of the object's coordinate maps.

The second half of SweetDreamer (Li et al. 2023, Sec. 4.3): beside the score distillation of pictures, one of what the
same cameras see of the geometry, by a diffusion model that knows how objects stand. Its gradient reaches the geometry
alone; colours are not in the maps.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor

from jointdreamer.cameras import Cameras
from jointdreamer.distillation.base import Term
from jointdreamer.distillation.joint import JointScoreDistillation
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Prior
from jointdreamer.priors.prompts import TextEmbeddings
from jointdreamer.scenes.base import Render, Scene
from jointdreamer.scenes.coordinates import coordinate_map

MARGIN = 1.1  # of the box around the object, as the official implementation has it


class AlignedGeometry(Term):
    """Eq. 2 on coordinate maps.

    prior: a diffusion model over coordinate maps (B, V, 4, R, R) in [0, 1]
    text: the prompt, embedded by the prior
    name: of its loss in `schedule.loss`
    weighting: w(t), as of `JointScoreDistillation`

    Where the coordinates are 0 and 1 is the prior's: its `extent`, half the side of a cube around the origin, in world
    units; without one, 1.1 times what the object fills now, around its centre.
    """

    def __init__(
        self,
        prior: Prior,
        text: TextEmbeddings,
        name: str = "agp",
        weighting: Literal["sds", "uniform", "fantasia3d", "x0", "velocity"] = "sds",
    ):
        super().__init__()
        self.sds = JointScoreDistillation(prior, text, name=name, weighting=weighting)
        self.extent: float | None = getattr(prior, "extent", None)
        self.maps: Tensor | None = None  # of the last step's first rig

    @property
    def name(self) -> str:
        return self.sds.name

    @property
    def t(self) -> Tensor:
        """(B,) the last step's timesteps."""
        return self.sds.t

    def forward(
        self, scene: Scene, render: Render, cameras: Cameras, now: SimpleNamespace, generator: torch.Generator
    ) -> dict[str, Tensor]:
        self.maps = None
        if not getattr(now.loss, self.name, 0):
            return {}
        if render.depth is None:
            raise UserError(
                f"scene {type(scene).__name__} renders no depth, from which term {self.name} makes coordinates: take "
                "scene=nerf or dmtet, or give your scene's renders a depth"
            )
        maps = coordinate_map(render.opacity, render.depth, cameras, self.box(scene).to(render.depth))
        self.maps = maps[0].detach()
        return self.sds(scene, replace(render, rgb=maps), cameras, now, generator)

    @torch.no_grad()
    def box(self, scene: Scene) -> Tensor:
        """(2, 3) corners of the canonical cube in the world.

        Raises UserError for a scene that does not know where its object is.
        """
        if self.extent is not None:
            return torch.tensor([[-self.extent] * 3, [self.extent] * 3])
        if (filled := scene.bounds()) is None:
            raise UserError(
                f"scene {type(scene).__name__} does not say which box its object fills: say how large the canonical "
                f"cube is, models.coordinates.extent=1"
            )
        low, high = filled
        center, half = (low + high) / 2, MARGIN * (high - low).max() / 2
        return torch.stack([center - half, center + half])

    def describe(self) -> dict[str, str]:
        return self.sds.describe()

    def sources(self) -> list[Path]:
        return self.sds.sources()

    def pictures(self) -> dict[str, Tensor]:
        """The coordinates that the cameras of the first rig saw."""
        return {} if self.maps is None else {"coordinates": self.maps[:, :3].clamp(0, 1)}
