"""Cameras: the conventions, the random rig of V views, the orbit, rays, relative poses.

World: right-handed, z up, azimuth 0 = +x = the front of the object, elevation 0 = the horizon. A camera looks at the
origin; `c2w` is OpenGL camera-to-world: its columns are right, up, backward (it looks along its own -z) and position.
Angles are radians here and `_deg` where a person writes them. Letters: B rigs, V views, R pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import pi, radians, tau
from typing import Literal

import torch
from torch import Tensor

from jointdreamer.errors import UserError


@dataclass(frozen=True)
class Cameras:
    """B rigs of V cameras, and the point light each of them carries."""

    c2w: Tensor  # (B, V, 4, 4) camera to world, OpenGL
    fovy: Tensor  # (B, V) radians
    elevation: Tensor  # (B, V) radians
    azimuth: Tensor  # (B, V) radians
    distance: Tensor  # (B, V) from the origin, world units
    light: Tensor  # (B, V, 3) position of the point light, world units
    resolution: int  # R, pixels along each side
    orthographic: bool = False  # parallel rays; at the origin the image is as wide as the perspective one

    @property
    def n_rigs(self) -> int:
        return self.c2w.shape[0]

    @property
    def n_views(self) -> int:
        return self.c2w.shape[1]

    def to(self, device: torch.device | str) -> "Cameras":
        """The same cameras on another device."""
        return self._map(lambda x: x.to(device))

    @property
    def front(self) -> Tensor:
        """(B,) the number of each rig's view that looks most from the front, azimuth 0."""
        return self.azimuth.cos().argmax(1)

    def select(self, views: Tensor) -> "Cameras":
        """Of each rig these views, by number: (B, K) -> B rigs of K."""
        rows = torch.arange(self.n_rigs, device=views.device)[:, None]
        return self._map(lambda x: x[rows.to(x.device), views.to(x.device)])

    def __getitem__(self, rigs: slice) -> "Cameras":
        """Some of the rigs."""
        return self._map(lambda x: x[rigs])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Cameras":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(x) for name, x in tensors.items()})


@dataclass(frozen=True)
class Rig:
    """How a training rig is drawn: V views 90 degrees apart (360 / V), one elevation, fov and distance for all.

    `relative_distance` is divided by tan(fovy / 2), so the object keeps its size in the image whatever the fov.
    `elevation_sampler`: a fair coin per rig picks uniform in angle or uniform on the sphere. "sphere" draws the latter
    uniformly in sin(elevation); "released" uses the official formula asin(2p - 1), p uniform in angle, which is not
    area-uniform and never exceeds 19.47 degrees for the range 0..30.

    `azimuth_deg`: for models of fixed views, where the views stand instead, counted from the first of them and positive
    to its right. They go around the first camera's own up axis, as it sees the object, whatever its elevation.
    `first_azimuth_deg`: the range in which the first view stands; null is anywhere. A model that tells views from one
    of them has no idea of where the front is: with the first near it, what the text says of the front stays there.
    `projection`: orthographic cameras show as much of the world as perspective ones do at the origin, which is
    2 `relative_distance` from edge to edge.

    Raises UserError for ranges that no camera can have.
    """

    n_rigs: int = 1
    n_views: int = 4
    elevation_deg: tuple[float, float] = (0.0, 30.0)
    fovy_deg: tuple[float, float] = (15.0, 60.0)
    relative_distance: tuple[float, float] = (0.8, 1.0)
    light_distance: tuple[float, float] = (0.8, 1.5)
    elevation_sampler: Literal["sphere", "released"] = "sphere"
    azimuth_deg: Sequence[float] | None = None
    first_azimuth_deg: tuple[float, float] | None = None
    projection: Literal["perspective", "orthographic"] = "perspective"

    def __post_init__(self):
        if self.n_rigs < 1 or self.n_views < 1:
            raise UserError(f"a rig needs n_rigs and n_views of at least 1, got {self.n_rigs} and {self.n_views}")
        limits = {
            "elevation_deg": (-90.0, 90.0),
            "fovy_deg": (1e-3, 179.0),
            "relative_distance": (1e-3, 1e3),
            "light_distance": (0.0, 1e6),
        }
        for name, (lowest, highest) in limits.items():
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise UserError(
                    f"cameras.{name} must be [low, high] within [{lowest:g}, {highest:g}], got [{low}, {high}]"
                )
        if self.first_azimuth_deg is not None:
            low, high = self.first_azimuth_deg
            if not -180 <= low <= high <= 180:
                raise UserError(
                    f"cameras.first_azimuth_deg must be [low, high] within [-180, 180], got [{low}, {high}]"
                )
        if self.elevation_sampler not in ("sphere", "released"):
            raise UserError(f"unknown elevation_sampler {self.elevation_sampler!r}: choose sphere or released")
        if self.projection not in ("perspective", "orthographic"):
            raise UserError(f"unknown cameras.projection {self.projection!r}: choose perspective or orthographic")
        if self.azimuth_deg is not None and (len(self.azimuth_deg) != self.n_views or self.azimuth_deg[0] != 0):
            raise UserError(
                f"cameras.azimuth_deg must be {self.n_views} angles (cameras.n_views), counted from the first, which "
                f"is 0; got {list(self.azimuth_deg)}"
            )


def sample_cameras(rig: Rig, resolution: int, generator: torch.Generator) -> Cameras:
    """B random rigs of V views (docs/conventions.md, Cameras), on the generator's device.

    Azimuth of view v is -180 + (u + v) 360 / V degrees with one random phase u per rig; with `rig.azimuth_deg` that of
    the first is -180 + 360 u, and the others stand around it; with `rig.first_azimuth_deg` the first is drawn from
    there. Everything else is drawn once per rig. The light stands in the direction of the camera plus a standard
    normal, at `light_distance`.
    """
    b, v = rig.n_rigs, rig.n_views

    def uniform(low: float, high: float) -> Tensor:  # (B, 1)
        u = torch.rand(b, 1, generator=generator, device=generator.device)
        return low + (high - low) * u

    elevation = _sample_elevation(rig, uniform)
    phase = uniform(0.0, 1.0)
    fovy = torch.deg2rad(uniform(*rig.fovy_deg))
    distance = uniform(*rig.relative_distance) / torch.tan(fovy / 2)
    light_distance = uniform(*rig.light_distance)
    light_noise = torch.randn(b, 1, 3, generator=generator, device=generator.device)

    elevation, fovy, distance = (x.expand(b, v).clone() for x in (elevation, fovy, distance))
    start = -pi + phase * (tau if rig.azimuth_deg is not None else tau / v)  # azimuth (B, 1) of the first view
    if rig.first_azimuth_deg is not None:
        low, high = (radians(angle) for angle in rig.first_azimuth_deg)
        start = low + (high - low) * phase
    if rig.azimuth_deg is None:
        azimuth = start + torch.arange(v, device=phase.device) / v * tau  # (B, V)
        c2w = look_at(elevation, azimuth, distance)
    else:
        first = look_at(elevation[:, :1], start, distance[:, :1])
        c2w = turn(first, torch.deg2rad(phase.new_tensor(list(rig.azimuth_deg)))[None])
        x, y, z = c2w[..., :3, 2].unbind(-1)  # backward: the direction from the origin to the camera
        elevation, azimuth = torch.asin(z.clamp(-1, 1)), torch.atan2(y, x)
    light = torch.nn.functional.normalize(c2w[..., :3, 3] + light_noise, dim=-1) * light_distance[..., None]
    return Cameras(c2w, fovy, elevation, azimuth, distance, light, resolution, rig.projection == "orthographic")


def _sample_elevation(rig: Rig, uniform) -> Tensor:
    """Radians (B, 1). Both formulas are evaluated, so that the number of draws does not depend on the coin."""
    low, high = (radians(x) for x in rig.elevation_deg)
    coin, in_angle, u = uniform(0.0, 1.0), uniform(low, high), uniform(0.0, 1.0)
    if rig.elevation_sampler == "sphere":
        sines = torch.tensor([low, high], dtype=torch.float64).sin().tolist()
    else:
        sines = [2 * (x + pi / 2) / pi - 1 for x in (low, high)]
    on_sphere = torch.asin(sines[0] + (sines[1] - sines[0]) * u)
    return torch.where(coin < 0.5, in_angle, on_sphere)


def orbit_cameras(
    n_views: int, resolution: int, elevation_deg: float = 15.0, distance: float = 3.0, fovy_deg: float = 40.0
) -> Cameras:
    """One rig of n views around the object, azimuth k 360 / n degrees: view 0 is the front.

    The end is not repeated, so a video made of the views loops without a doubled frame (the official implementation
    renders 0 and 360). The light is at the camera. On the CPU.
    """
    azimuth = torch.arange(n_views, dtype=torch.float32)[None] * (tau / n_views)
    elevation, fovy, far = (torch.full_like(azimuth, x) for x in (radians(elevation_deg), radians(fovy_deg), distance))
    c2w = look_at(elevation, azimuth, far)
    return Cameras(c2w, fovy, elevation, azimuth, far, c2w[..., :3, 3].clone(), resolution)


def look_at(elevation: Tensor, azimuth: Tensor, distance: Tensor) -> Tensor:
    """Camera-to-world (..., 4, 4) of cameras that look at the origin; radians, world units.

    Built from the angles rather than from a cross product with z, so it also holds straight above the object.
    """
    ce, se, ca, sa = elevation.cos(), elevation.sin(), azimuth.cos(), azimuth.sin()
    zero = torch.zeros_like(ce)
    right = torch.stack([-sa, ca, zero], -1)
    up = torch.stack([-se * ca, -se * sa, ce], -1)
    backward = torch.stack([ce * ca, ce * sa, se], -1)
    c2w = torch.stack([right, up, backward, distance[..., None] * backward], -1)  # (..., 3, 4)
    last = torch.zeros_like(c2w[..., :1, :])
    last[..., 3] = 1
    return torch.cat([c2w, last], -2)


def turn(c2w: Tensor, angle: Tensor) -> Tensor:
    """Cameras (..., 4, 4) that look at the origin, carried around it to their right by `angle` (...), radians.

    The axis is the camera's own up: what it sees of the object turns as on a potter's wheel, whatever its elevation.
    """
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    about_y = torch.stack([cos, zero, sin, zero, zero + 1, zero, -sin, zero, cos], -1).unflatten(-1, (3, 3))
    rotation = c2w[..., :3, :3] @ about_y
    position = c2w[..., :3, 3:].norm(dim=-2, keepdim=True) * rotation[..., 2:]
    top = torch.cat([rotation, position], -1)
    return torch.cat([top, c2w[..., 3:, :].expand(*top.shape[:-2], 1, 4)], -2)


def rays(
    c2w: Tensor,  # (B, V, 4, 4) camera to world
    fovy: Tensor,  # (B, V) radians
    resolution: int,
    orthographic: bool = False,
) -> tuple[Tensor, Tensor]:
    """Ray origins and unit directions, both (B, V, R, R, 3), through pixel centres; row 0 is the top of the image.

    Orthographic rays are parallel and start on the plane through the camera; the image is 2 |position| tan(fovy / 2)
    from edge to edge, what the perspective one shows at the origin.
    """
    with torch.autocast(c2w.device.type, enabled=False):  # half precision would bend the rays by whole pixels
        return _parallel_rays(c2w, fovy, resolution) if orthographic else _rays(c2w, fovy, resolution)


def _parallel_rays(c2w: Tensor, fovy: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    half = c2w[..., :3, 3].norm(dim=-1) * torch.tan(fovy / 2)  # (B, V) world units
    centre = (torch.arange(resolution, dtype=c2w.dtype, device=c2w.device) + 0.5) / resolution * 2 - 1
    y, x = torch.meshgrid(-centre, centre, indexing="ij")
    in_plane = torch.stack([x, y], -1) * half[..., None, None, None]
    rays_o = torch.einsum("bvij,bvrcj->bvrci", c2w[..., :3, :2], in_plane) + c2w[..., None, None, :3, 3]
    return rays_o, -c2w[..., None, None, :3, 2].expand_as(rays_o)


def _rays(c2w: Tensor, fovy: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    focal = 0.5 * resolution / torch.tan(fovy / 2)  # (B, V) pixels
    centre = torch.arange(resolution, dtype=c2w.dtype, device=c2w.device) + 0.5 - resolution / 2
    y, x = torch.meshgrid(-centre, centre, indexing="ij")
    in_camera = torch.stack([x, y, torch.zeros_like(x)], -1) / focal[..., None, None, None]
    in_camera = in_camera - in_camera.new_tensor([0.0, 0.0, 1.0])
    rays_d = torch.einsum("bvij,bvrcj->bvrci", c2w[..., :3, :3], in_camera)
    rays_d = torch.nn.functional.normalize(rays_d, dim=-1)
    rays_o = c2w[..., None, None, :3, 3].expand_as(rays_d)
    return rays_o, rays_d


def relative_pose(c2w_1: Tensor, c2w_2: Tensor) -> Tensor:
    """Camera 2 in the frame of camera 1, (..., 4, 4): inverse(c2w_1) c2w_2, a true rigid motion."""
    rotation = c2w_1[..., :3, :3].transpose(-1, -2)
    world_to_1 = torch.zeros_like(c2w_1)
    world_to_1[..., :3, :3] = rotation
    world_to_1[..., :3, 3] = -(rotation @ c2w_1[..., :3, 3:])[..., 0]
    world_to_1[..., 3, 3] = 1
    return world_to_1 @ c2w_2


def camera_numbers(c2w_1: Tensor, c2w_2: Tensor) -> Tensor:
    """What M_CLS is told about two cameras (..., 4, 4): (..., 16), row by row.

    Camera 2 in the frame of camera 1 (a rigid motion), lengths in units of camera 1's distance from the origin: the
    object keeps its size in the image whatever the fov, so absolute distances would tell the fov and nothing else.
    """
    pose = relative_pose(c2w_1, c2w_2)
    distance = c2w_1[..., :3, 3].norm(dim=-1)[..., None, None].clamp_min(1e-6)
    top = torch.cat([pose[..., :3, :3], pose[..., :3, 3:] / distance], -1)
    return torch.cat([top, pose[..., 3:, :]], -2).flatten(-2)


def mvdream_camera(c2w: Tensor) -> Tensor:
    """What the multi-view UNet is told: (..., 4, 4) -> (..., 16), row by row, with a translation of unit length.

    The argument stays as it is: the official function normalises it in place, under the renderer's feet.
    """
    translation = c2w[..., :3, 3:]
    unit = translation / (translation.norm(dim=-2, keepdim=True) + 1e-8)
    top = torch.cat([c2w[..., :3, :3], unit], -1)
    return torch.cat([top, c2w[..., 3:, :]], -2).flatten(-2)
