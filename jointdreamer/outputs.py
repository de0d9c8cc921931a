"""What a run shows: previews on the way; turntable, contact sheet and mesh at the end."""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import alpha_sigma, x0_from_noise
from jointdreamer.errors import UserError
from jointdreamer.export import extract_mesh, write_mesh
from jointdreamer.fields.background import SphericalBackground
from jointdreamer.fields.base import Field
from jointdreamer.fields.encoding import HashEncoding
from jointdreamer.fields.hash_grid import HashGridField
from jointdreamer.guidance.base import Guidance, NoisePrediction, NoisyLatents
from jointdreamer.images import contact_sheet, normals_to_rgb, write_png, write_video
from jointdreamer.renderers.volume import Render, VolumeRenderer
from jointdreamer.run import read_run

log = logging.getLogger(__name__)

RAYS = 2**13  # rendered at a time: what a small card has room for beside the networks


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


@torch.no_grad()
def save_energy(
    path: Path,
    guidance: Guidance,
    noised: NoisyLatents,
    pred: NoisePrediction,
    energy_grad: Tensor,  # (B, V, C, h, w) dC/dx_t
    joint_noise_pred: Tensor,  # (B, V, C, h, w) what distillation follows
    energy_x0: str = "uncond",
) -> Path:
    """What the energy did to one step, decoded, a column for each view of the first rig; returns the PNG.

    Rows, by the names in the picture: the noised latents; the prior's guided one-step x0; what the energy wants, the x0
    that it saw plus dC/dx0: for Eq. 8 the multi-view model's own x0, where the mask is 1; and the joint x0, after the
    energy. Draws no random number.
    """
    x_t = noised.latents_noisy
    alpha_t, sigma_t = alpha_sigma(guidance.alphas_cumprod, noised.timesteps)
    seen = x0_from_noise(x_t, pred.for_energy(energy_x0), alpha_t, sigma_t)
    rows = {
        "noised": x_t,
        "x0 of the prior": x0_from_noise(x_t, pred.noise, alpha_t, sigma_t),
        # dC/dx0 = alpha_t dC/dx_t
        "x0 that the energy wants": seen + alpha_t * energy_grad,
        "x0 after the energy": x0_from_noise(x_t, joint_noise_pred, alpha_t, sigma_t),
    }
    write_png(path, contact_sheet({name: guidance.decode(latents[:1])[0] for name, latents in rows.items()}))
    return path


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
        cut: dict[str, Any] = {k: v[:, view : view + 1] for k, v in vars(cameras).items() if isinstance(v, Tensor)}
        one = replace(cameras, **cut)
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
    return *build_scene(config, checkpoint), config


def field_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A config's field; runs from before 2026-11-25 have the encoding's settings among the field's own."""
    if "encoding" in options:
        return dict(options)
    moved = [name for name in inspect.signature(HashEncoding).parameters if name in options]
    kept = {name: value for name, value in options.items() if name not in moved}
    return kept | {"encoding": {name: options[name] for name in moved}}


def build_scene(
    config: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> tuple[VolumeRenderer, HashGridField, SphericalBackground]:
    """A run's renderer, field and background as a checkpoint left them, on the CPU, for looking at."""
    field = HashGridField(**field_options(config["field"]))
    scene = (
        VolumeRenderer(field_radius=field.radius, **config["renderer"]),
        field,
        SphericalBackground(**config["background"]),
    )
    for name, module in zip(("renderer", "field", "background"), scene, strict=True):
        module.load_state_dict(checkpoint["parts"][name])
        module.eval()
    return scene
