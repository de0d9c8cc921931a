"""What a small training step is made of: a scene, a term with a known need of memory, a plan."""

from typing import Any

import torch

from jointdreamer.distillation.base import Term
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.scene import NeRF
from jointdreamer.scenes.nerf.volume import VolumeRenderer
from jointdreamer.schedules import Plan


def nerf(n_samples=64, n_levels=6, backend="auto") -> NeRF:
    torch.manual_seed(0)
    field = HashGridField({"n_levels": n_levels, "log2_table_size": 8}, hidden=16)
    return NeRF(field, SphericalBackground(), VolumeRenderer(n_samples=n_samples, backend=backend))


class Images(Term):
    """A term that takes ten million bytes for each image at a time, and keeps a thousand."""

    asked = 0

    def forward(self, scene, render, cameras, now, generator):
        self.asked += 1
        n_images = render.rgb.shape[0] * render.rgb.shape[1]
        torch.empty(2_500_000 * (self.chunk or n_images))
        self.kept = torch.empty(250)
        torch.rand(1)  # its own luck
        return {"images": render.rgb.square().sum() + torch.rand((), generator=generator)}


def plan(**changes: Any) -> Plan:
    spec: dict[str, Any] = {
        "steps": 9,
        "resolution": [[0, 8], [3, 16], [6, 8]],
        "shading": False,
        "energy_weight": 1,
        "loss": {"images": 1, "orient": [[0, 0], [2, 1]]},
    }
    return Plan(spec | changes)
