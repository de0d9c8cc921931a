"""The hash-grid NeRF of the paper as a scene: a field, a background, and the volume renderer that sees them."""

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from jointdreamer.arguments import Takes
from jointdreamer.cameras import Cameras
from jointdreamer.errors import UserError
from jointdreamer.kernels.ahead import compile_ahead
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.base import Render, Scene
from jointdreamer.scenes.nerf.base import Field
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.volume import VolumeRenderer
from jointdreamer.scenes.regularizers import REGULARIZERS, needs_normals, regularizers
from jointdreamer.scenes.shading import Shading, sample_shading


class NeRF(Scene):
    """A field in a box, before a background."""

    regularizer_names = tuple(REGULARIZERS)

    def __init__(self, field: Field, background: SphericalBackground, renderer: VolumeRenderer):
        super().__init__()
        self.field, self.background, self.renderer = field, background, renderer
        self.lr_scale = field.lr_scale

    @classmethod
    def build(
        cls,
        field: Annotated[Mapping[str, Any], Takes(HashGridField)],
        background: Annotated[Mapping[str, Any], Takes(SphericalBackground)],
        renderer: Annotated[Mapping[str, Any], Takes(VolumeRenderer)],
        device: torch.device | str = "cpu",
    ) -> "NeRF":
        """From the arguments of `HashGridField`, `SphericalBackground` and `VolumeRenderer`; not moved yet."""
        grid = HashGridField(**field)
        compile_ahead(torch.device(device), grid.encoding.n_features)
        return cls(grid, SphericalBackground(**background), VolumeRenderer(field_radius=grid.radius, **renderer))

    def render(
        self,
        cameras: Cameras,
        now: SimpleNamespace | None = None,
        generator: torch.Generator | None = None,
        chunk: int | None = None,
        normals: bool = True,
    ) -> Render:
        """Draws from the generator: the shading, the offset of the samples of each ray, the background."""
        shading = Shading()
        if generator is not None and now is not None:
            shading, normals = sample_shading(generator, now.shading), needs_normals(now.loss)
        return self.renderer(
            self.field, self.background, cameras, shading=shading, normals=normals, generator=generator, chunk=chunk
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {**self.field.parameter_groups(), **self.background.parameter_groups()}

    def regularizers(
        self, render: Render, weights: SimpleNamespace, cameras: Cameras, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        return regularizers(render, weights, self.field, cameras, generator)

    def bounds(self) -> Tensor:
        return self.renderer.bounds()

    def start_from(self, other: Scene) -> None:
        if not isinstance(other, NeRF):
            raise UserError(f"scene nerf starts from a NeRF, not from a {type(other).__name__}")
        self.field.load_state_dict(other.field.state_dict())
        self.background.load_state_dict(other.background.state_dict())

    def before_step(self, step: int, generator: torch.Generator) -> None:
        self.renderer.update_occupancy(self.field, step, generator)

    def describe(self) -> dict[str, str]:
        encoding = getattr(self.field, "encoding", None)
        found = {"encoding": encoding.backend} if encoding is not None else {}
        return found | {"rays": self.renderer.backend}

    def mesh(self, resolution: int) -> Any:
        from jointdreamer.scenes.export import extract_mesh

        return extract_mesh(self.field, resolution)

    def surface_colors(self, resolution: int) -> Callable[[Tensor, Tensor], Tensor]:
        from jointdreamer.scenes.export import seen_depth, vertex_colors

        return partial(vertex_colors, self.field, depth=seen_depth(self.field, resolution))
