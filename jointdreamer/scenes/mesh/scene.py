"""DMTet as a scene: a level function on a tetrahedral grid, its surface rasterised, its colours from a hash-grid field.

The second stage of Magic3D (Lin et al. 2023) and of JointDreamer-DMTet: the object of a NeRF is taken over, and then
every pixel sees one surface, at high resolution.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jointdreamer.arguments import Range, Takes
from jointdreamer.cameras import Cameras, rays
from jointdreamer.errors import UserError
from jointdreamer.kernels.ahead import compile_ahead
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.base import Render, Scene
from jointdreamer.scenes.mesh.raster import across_edges, antialias, interpolate, rasterize
from jointdreamer.scenes.mesh.surface import MESH_REGULARIZERS, main_pieces, smoothed, vertex_normals
from jointdreamer.scenes.mesh.tets import GRID_BYTES, MARGIN, MAX_OFFSET, marching_tets, tet_grid
from jointdreamer.scenes.nerf.base import Field
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.scene import NeRF
from jointdreamer.scenes.shading import Shading, sample_shading, shade

MESH_SIZE = 1.3  # of the longest side of a mesh to start from, in radii of the field: a NeRF's objects are as large
EMPTY_STEPS = 10  # without a surface, after which training ends: nothing is seen, so nothing is taught
FINDING = 64  # points at least along each axis of a NeRF, which find its object: less would step over a plate
NEAR = 0.01  # world units before a perspective camera: what is nearer is cut off by a rasteriser with a depth range


class DMTet(Scene):
    """The surface where `level` is 0 on a grid that lies in `box`; its vertices are moved by at most `max_offset`.

    field: its albedo colours the surface, in the field's own box wherever the grid lies; its density is not used
    resolution: of the grid, a multiple of 4: units of the lattice along its side; edges are 2.3 units long
    max_offset: units of the lattice, along each axis. From 4/9 on tetrahedra may turn over; ProlificDreamer allows 0.5,
        the official implementation 1
    threshold: the density at which a NeRF's surface is taken. "auto": where its silhouettes are what cameras see;
        a number: 25 in the official implementation; None: the mean of the densities above 1e-5 on the grid, which is
        threestudio's "auto"
    smoothing: how often a NeRF's levels are averaged with their neighbours', since its densities are noisy at the
        spacing of the grid; 0 in the official implementation
    distilled: what training shows the prior, the lit colours, or the normals (n + 1) / 2 before black, as
        ProlificDreamer's geometry stage does

    Starts as a ball of radius 0.5; `start_from` takes over another scene's object. Levels are positive outside.
    Raises UserError for a resolution that is no multiple of 4.
    """

    regularizer_names = tuple(MESH_REGULARIZERS)

    def __init__(
        self,
        field: Field,
        background: SphericalBackground,
        resolution: Annotated[int, Range(8, 512)] = 128,
        max_offset: Annotated[float, Range(0, 1)] = MAX_OFFSET,
        threshold: Literal["auto"] | Annotated[float, Range(above=0)] | None = "auto",
        smoothing: Annotated[int, Range(0, 100)] = 2,
        distilled: Literal["rgb", "normal"] = "rgb",
    ):
        super().__init__()
        self.field, self.background = field, background
        self.resolution, self.max_offset, self.threshold = resolution, max_offset, threshold
        self.smoothing, self.distilled = smoothing, distilled
        self.grid = tet_grid(resolution)
        self.box: Tensor
        self.register_buffer("box", torch.tensor([[-1.0] * 3, [1.0] * 3]) * field.radius)
        vertices = self.grid.vertices * field.radius
        self.level = nn.Parameter((vertices.norm(dim=1) - 0.5 * field.radius).clamp(-1, 1))
        self.offset = nn.Parameter(torch.zeros_like(vertices))
        self.lr_scale = {"appearance:encoding": field.lr_scale.get("geometry:encoding", 1.0)}
        self.empty_steps, self.n_faces = 0, 0  # n_faces: of the last render in training

    @classmethod
    def build(
        cls,
        field: Annotated[Mapping[str, Any], Takes(HashGridField)],
        background: Annotated[Mapping[str, Any], Takes(SphericalBackground)],
        resolution: Annotated[int, Range(8, 512)] = 128,
        max_offset: Annotated[float, Range(0, 1)] = MAX_OFFSET,
        threshold: Literal["auto"] | Annotated[float, Range(above=0)] | None = "auto",
        smoothing: Annotated[int, Range(0, 100)] = 2,
        distilled: Literal["rgb", "normal"] = "rgb",
        device: torch.device | str = "cpu",
    ) -> "DMTet":
        """From the arguments of `HashGridField` and `SphericalBackground`; not moved yet."""
        colors = HashGridField(**field)
        compile_ahead(torch.device(device), colors.encoding.n_features, mesh=True)
        return cls(colors, SphericalBackground(**background), resolution, max_offset, threshold, smoothing, distilled)

    @classmethod
    def bytes_to_build(cls, resolution: int = 128, **options: Any) -> float:
        return GRID_BYTES * resolution**3

    # The surface

    def surface(self) -> tuple[Tensor, Tensor]:
        """Vertices (P, 3) in the world and faces (F, 3), closed, normals outwards; none if all levels have one sign."""
        self.grid = grid = self.grid.to(self.level.device)
        level = torch.where(grid.outer & (self.level <= 0), 1e-3, self.level)  # what touches the hull would be open
        return marching_tets(level, self.grid_vertices(), grid)

    def grid_vertices(self) -> Tensor:
        """(N, 3) in the world, moved by their offsets."""
        self.grid = grid = self.grid.to(self.level.device)
        low, high = self.box
        moved = grid.vertices + self.max_offset * grid.spacing * torch.tanh(self.offset)
        return (low + high) / 2 + (high - low) / 2 * moved

    @torch.no_grad()
    def start_from(self, other: Scene) -> None:
        if isinstance(other, DMTet):
            self._take_mesh(other)
        elif isinstance(other, NeRF):
            self._take_nerf(other)
        else:
            raise UserError(f"scene dmtet starts from a NeRF or a mesh, not from a {type(other).__name__}")
        self.background.load_state_dict(other.background.state_dict())

    def _take_mesh(self, other: "DMTet") -> None:
        for key in ("resolution", "max_offset"):
            here, there = getattr(self, key), getattr(other, key)
            if here != there:
                raise UserError(f"scene.{key}={here}, and the mesh to start from has {there}: give the same")
        self.load_state_dict(other.state_dict())

    def _take_nerf(self, other: NeRF) -> None:
        """The object where the density passes the threshold, in the box that it fills and a tenth more to each side."""
        from jointdreamer.scenes.export import choose_threshold, density_grid, opacities, solid

        radius = other.field.radius
        sigma = density_grid(other.field, min(128, max(FINDING, self.resolution)))
        chosen = choose_threshold(sigma, radius)  # an empty field is refused here
        if (opacity := opacities(sigma, radius).max()) < 0.5:
            raise UserError(
                f"the NeRF to start from is fog: its densest ray is {opacity:.0%} opaque, so it has no surface; train "
                "it longer, or start from the mesh that it exported, init_from=RUN/mesh/mesh.glb"
            )
        if self.threshold is None:
            threshold = float(sigma[sigma > 1e-5].mean())
        else:
            threshold = chosen if self.threshold == "auto" else float(self.threshold)
        inside = np.argwhere(solid(sigma, threshold) > threshold)
        if len(inside) == 0:
            raise UserError(
                f"the NeRF to start from has no density above scene.threshold={threshold:.3g}, its largest is "
                f"{sigma.max():.3g}: is it finished? Else scene.threshold=auto finds the surface that cameras see"
            )
        step = 2 * radius / (len(sigma) - 1)
        low, high = inside.min(0) * step - radius, inside.max(0) * step - radius
        margin = 0.1 * (high - low) + step
        box = np.stack([(low - margin).clip(-radius), (high + margin).clip(max=radius)])
        self.field.load_state_dict(other.field.state_dict())
        self.box.copy_(torch.from_numpy(box))
        self.offset.zero_()
        vertices = self.grid_vertices()
        parts = vertices.clamp(-radius, radius).split(2**17)
        density = torch.cat([other.field.density(part) for part in parts]).float().clamp(0, 1e6)
        # threshold - density as the official implementation has it, but between -1 and 1 without a clamp, so that the
        # surface lies where it should between two vertices, also where the density jumps
        level = (threshold - density) / (threshold + density)
        level = smoothed(level, self.grid.edges, self.smoothing)
        # where the field ends the object does, before the grid's margin; a tenth of a unit later, since vertices of the
        # grid lie on the field's box
        unit = self.grid.spacing * (self.box[1] - self.box[0]) / 2
        beyond = ((vertices.abs() - radius) / unit).amax(1) - 0.1
        self._take_level(torch.maximum(level, beyond.clamp(-1, 1)))

    def _take_level(self, level: Tensor) -> None:
        level = main_pieces(level, self.grid.edges, self.grid.outer)
        if not bool((level <= 0).any()):
            raise UserError(
                f"the object to start from is too thin for the grid, and nothing of it is left: wanted a larger "
                f"scene.resolution than {self.resolution}, or a thicker object"
            )
        self.level.copy_(level)

    def start_from_mesh(self, corners: np.ndarray, points: np.ndarray, albedo: np.ndarray) -> None:
        from jointdreamer.scenes.mesh.inside import distance, inside, welded

        mesh = welded(corners)
        scale = MESH_SIZE * self.field.radius
        axes = self.lattice()
        solid = inside(scale * np.asarray(mesh.triangles), axes)
        units = torch.round((self.grid.vertices + 1) / self.grid.spacing).long() + MARGIN
        vertices = self.field.radius * self.grid.vertices.cpu().numpy()
        far = distance(vertices, scale * points) / (self.grid.spacing * self.field.radius)
        level = np.where(solid[tuple(units.cpu().numpy().T)], -far, far).clip(-1, 1)
        with torch.no_grad():
            self._take_level(torch.from_numpy(level).to(self.level))
            self.offset.zero_()
        self._fit_colors(torch.from_numpy(scale * points).to(self.level), torch.from_numpy(albedo).to(self.level))

    def lattice(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World coordinates of the grid's lattice along each axis, before offsets, where it fills the field's box."""
        line = (np.arange(self.resolution + 1) - MARGIN) * self.grid.spacing - 1
        line = self.field.radius * line
        return line, line, line

    def _fit_colors(self, points: Tensor, albedo: Tensor, steps: int = 300, batch: int = 4096) -> None:
        """Teach the field the colours of points (N, 3) of the surface, by their mean squared error."""
        generator = torch.Generator().manual_seed(0)
        groups = self.parameter_groups()
        taught = [p for name, group in groups.items() if name.startswith("appearance") for p in group]
        optimizer = torch.optim.Adam(taught, lr=0.01)
        for _ in range(steps):
            rows = torch.randint(len(points), (batch,), generator=generator).to(points.device)
            loss = F.mse_loss(self.field.albedo(points[rows]), albedo[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    # As a scene

    @torch.no_grad()
    def bounds(self) -> Tensor:
        vertices, _ = self.surface()
        return torch.stack([vertices.amin(0), vertices.amax(0)]) if len(vertices) else self.box

    def render(
        self,
        cameras: Cameras,
        now: SimpleNamespace | None = None,
        generator: torch.Generator | None = None,
        chunk: int | None = None,  # points of the field at a time
        normals: bool = True,
    ) -> Render:
        """Draws from the generator: the shading, the background. `now.distilled` goes before the scene's own."""
        training, shading = False, Shading()
        if generator is not None and now is not None:
            training, shading = True, sample_shading(generator, now.shading)
        background = self.background.draw(generator)
        vertices, faces = self.surface()
        if training:
            self.n_faces = len(faces)
        shape, size = cameras.azimuth.shape, cameras.resolution
        views = rays(cameras.c2w, cameras.fovy, size, cameras.orthographic)
        rays_o, rays_d = (x.flatten(0, 1) for x in views)  # (M, R, R, 3)
        clip = to_clip(vertices, cameras).flatten(0, 1)
        raster = rasterize(clip, faces, (size, size))
        seen = raster.triangle > 0  # (M, R, R)
        attributes = torch.cat([vertices, vertex_normals(vertices, faces)], 1)
        position, normal = interpolate(attributes, raster, faces)[seen].split(3, 1)  # (S, 3) at the pixels that see it
        normal = F.normalize(normal, dim=1)

        if training and getattr(now, "distilled", self.distilled) == "normal":
            color, behind = (normal + 1) / 2, torch.zeros_like(rays_d)
        else:
            parts = [self.field.albedo(part) for part in position.split(chunk or max(1, len(position)))]
            light = cameras.light.flatten(0, 1)[torch.nonzero(seen)[:, 0]]
            color, behind = shade(torch.cat(parts).to(position), normal, position, light, shading), background(rays_d)
        depth = ((position - rays_o[seen]) * rays_d[seen]).sum(1, keepdim=True)
        # the composite is antialiased: the colours alone, blended by an antialiased mask, would have every edge twice
        image = torch.cat([behind, torch.zeros_like(behind[..., :1]).expand(*behind.shape[:-1], 5)], -1)
        image[seen] = torch.cat([color, torch.ones_like(depth), normal, depth], 1).to(image)
        opposite, beyond = across_edges(faces)
        image = antialias(image, raster, clip, faces, opposite, beyond=beyond)
        rgb, opacity, normal_map, depth_map = (
            part.permute(0, 3, 1, 2).unflatten(0, shape) for part in image.split([3, 1, 3, 1], -1)
        )
        return Render(rgb, opacity, depth_map, normal_map, n_samples=int(seen.sum()))

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Raises UserError after `EMPTY_STEPS` steps without a surface."""
        self.empty_steps = 0 if self.n_faces else self.empty_steps + 1
        if self.empty_steps >= EMPTY_STEPS:
            raise UserError(
                f"the surface is gone for {EMPTY_STEPS} steps, so nothing can be taught: lower schedule.lr.geometry, "
                "or start from an object that is denser; the checkpoints before stay"
            )

    def check_state(self) -> None:
        if self.empty_steps:
            raise UserError("the surface is gone, so no checkpoint was written and the one before stays")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        of_field = self.field.parameter_groups()
        colors = {"appearance:encoding": of_field["geometry:encoding"]} if "geometry:encoding" in of_field else {}
        return {
            "geometry": [self.level, self.offset],
            **colors,
            "appearance": of_field["appearance"],
            **self.background.parameter_groups(),
        }

    def regularizers(
        self, render: Render, weights: SimpleNamespace, cameras: Cameras, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        wanted = [name for name in MESH_REGULARIZERS if getattr(weights, name, 0)]
        if not wanted:
            return {}
        vertices, faces = self.surface()
        if not len(faces):
            return {}
        return {name: MESH_REGULARIZERS[name](vertices, faces) for name in wanted}

    def describe(self) -> dict[str, str]:
        encoding = getattr(self.field, "encoding", None)
        return {"encoding": encoding.backend} if encoding is not None else {}

    def surface_colors(self, resolution: int) -> Callable[[Tensor, Tensor], Tensor]:
        @torch.no_grad()
        def colors(points: Tensor, normals: Tensor) -> Tensor:
            return self.field.albedo(points.to(self.level)).float().cpu()

        return colors

    @torch.no_grad()
    def mesh(self, resolution: int) -> Any:
        """As fine as the grid is, whatever the resolution."""
        import trimesh

        vertices, faces = self.surface()
        if not len(faces):
            raise UserError("the mesh has no surface left to export")
        rgb = self.field.albedo(vertices)
        rgba = torch.cat([rgb, torch.ones_like(rgb[:, :1])], 1).mul(255).round().to(torch.uint8)
        return trimesh.Trimesh(
            vertices.cpu().numpy(), faces.cpu().numpy(), vertex_colors=rgba.cpu().numpy(), process=False
        )


def to_clip(points: Tensor, cameras: Cameras) -> Tensor:
    """World points (P, 3) -> clip coordinates (B, V, P, 4) for `rasterize`: y up, z / w growing with the distance.

    z / w is within (-1, 1), where rasterisers with a depth range cut nothing off: before a perspective camera from
    `NEAR` on, before and behind an orthographic one at D from the origin between -3 D and 5 D.
    """
    with torch.autocast(points.device.type, enabled=False):  # half precision would move the points by whole pixels
        rotation, position = cameras.c2w[..., :3, :3], cameras.c2w[..., :3, 3]
        x, y, z = ((points - position[..., None, :]) @ rotation).unbind(-1)  # (B, V, P); the camera looks along -z
        half = torch.tan(cameras.fovy / 2)[..., None]
        if cameras.orthographic:
            far = position.norm(dim=-1, keepdim=True)
            return torch.stack([x / (half * far), y / (half * far), -(z / far + 1) / 4, torch.ones_like(z)], -1)
        return torch.stack([x / half, y / half, torch.full_like(z, -NEAR), -z], -1)  # z / w = -NEAR / distance
