"""What a run shows: previews on the way; turntable, contact sheet and mesh at the end."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.cameras import Cameras
from jointdreamer.errors import UserError
from jointdreamer.export import extract_mesh, write_mesh
from jointdreamer.fields.background import SphericalBackground
from jointdreamer.fields.base import Field
from jointdreamer.fields.hash_grid import HashGridField
from jointdreamer.images import contact_sheet, normals_to_rgb, write_png, write_video
from jointdreamer.renderers.volume import Render, VolumeRenderer
from jointdreamer.run import read_run

log = logging.getLogger(__name__)

RAYS = 2**15  # rendered at a time


@torch.no_grad()
def render_views(renderer: VolumeRenderer, field: Field, background: SphericalBackground, cameras: Cameras) -> Render:
    """Evaluation renders with normals, without a graph, in chunks that fit small memories."""
    return renderer(field, background, cameras, normals=True, chunk=RAYS)


def save_views(
    path: Path, renderer: VolumeRenderer, field: Field, background: SphericalBackground, cameras: Cameras
) -> Path:
    """One row each of rgb, normals and opacity for every camera of the one rig; returns the PNG."""
    render = render_views(renderer, field, background, cameras)
    azimuth = torch.rad2deg(cameras.azimuth[0]).tolist()
    write_png(path, contact_sheet(_rows(render), azimuth))
    return path


def _rows(render: Render) -> dict[str, Tensor]:
    assert render.normal is not None  # rendered with normals=True
    normal = normals_to_rgb(render.normal, render.opacity)
    return {"rgb": render.rgb[0], "normal": normal[0], "opacity": render.opacity[0]}


def save_turntable(
    folder: Path,
    renderer: VolumeRenderer,
    field: Field,
    background: SphericalBackground,
    cameras: Cameras,  # one rig, a view a frame
    fps: int,
) -> list[Path]:
    """rgb.mp4 and normal.mp4 of a full turn; returns both paths."""
    frames: dict[str, list[Tensor]] = {"rgb": [], "normal": []}
    for view in range(cameras.n_views):
        one = Cameras(**{k: v[:, view : view + 1] if isinstance(v, Tensor) else v for k, v in vars(cameras).items()})
        rows = _rows(render_views(renderer, field, background, one))
        for name, kept in frames.items():
            kept.append(rows[name][0].cpu())
    paths = []
    for name, kept in frames.items():
        paths.append(folder / f"{name}.mp4")
        write_video(paths[-1], kept, fps)
    return paths


def save_mesh(path: Path, field: Field, resolution: int) -> Path | None:
    """The mesh as GLB; None, with a warning, for a field that is empty: the rest of the run is still worth having."""
    try:
        mesh = extract_mesh(field, resolution)
    except UserError as error:
        log.warning("no mesh: %s", error)
        return None
    write_mesh(path, mesh)
    return path


def load_scene(folder: Path) -> tuple[VolumeRenderer, HashGridField, SphericalBackground, dict[str, Any]]:
    """A run's renderer, field, background and config, from its newest checkpoint, on the CPU.

    Raises UserError for a folder that is no run or has no readable checkpoint.
    """
    config, checkpoint = read_run(folder)
    field = HashGridField(**config["field"])
    scene = (
        VolumeRenderer(field_radius=field.radius, **config["renderer"]),
        field,
        SphericalBackground(**config["background"]),
    )
    for name, module in zip(("renderer", "field", "background"), scene, strict=True):
        module.load_state_dict(checkpoint["parts"][name])
        module.eval()
    return *scene, config
