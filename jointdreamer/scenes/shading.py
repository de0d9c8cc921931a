"""How the light falls: a point light with Lambert's law over an ambient term."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jointdreamer.ranks import shared

Mode = Literal["albedo", "textureless", "diffuse"]


@dataclass(frozen=True)
class Shading:
    """One way to colour the samples. The default shows the albedo, as evaluation does."""

    mode: Mode = "albedo"
    ambient: float = 1.0
    diffuse: float = 0.0

    @property
    def needs_normals(self) -> bool:
        return self.mode != "albedo"


def sample_shading(generator: torch.Generator, enabled: bool) -> Shading:
    """The shading of one training step: albedo with odds 1/4, else textureless or diffuse alike; point light U(0, 1).

    Not enabled (the coarse stage): albedo, and the generator is left alone.
    """
    if not enabled:
        return Shading()
    diffuse, coin = torch.rand(2, generator=shared(generator), device=generator.device).tolist()
    mode: Mode = "albedo" if coin < 0.25 else "textureless" if coin < 0.625 else "diffuse"
    return Shading(mode=mode, ambient=1 - diffuse, diffuse=diffuse)


def shade(
    albedo: Tensor,  # (N, 3)
    normal: Tensor | None,  # (N, 3) unit length; None only if the mode is "albedo"
    position: Tensor,  # (N, 3) of the samples
    light: Tensor,  # (N, 3) position of the point light that shines on each
    shading: Shading,
) -> Tensor:
    """Colours (N, 3) in [0, 1] if ambient + diffuse <= 1. Raises ValueError for a shaded mode without normals."""
    if not shading.needs_normals:
        return albedo
    if normal is None:
        raise ValueError(f"shading {shading.mode!r} needs normals: ask the field for them")
    lambert = (normal * F.normalize(light - position, dim=-1)).sum(-1, keepdim=True).clamp_min(0)
    irradiance = shading.ambient + shading.diffuse * lambert
    return irradiance.expand_as(albedo) if shading.mode == "textureless" else albedo * irradiance
