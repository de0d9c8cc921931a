"""What a run shows: previews on the way; turntable, contact sheet and mesh at the end."""

import dataclasses
import inspect
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdreamer.cameras import Cameras, orbit_cameras
from jointdreamer.diffusion import alpha_sigma, x0_from_noise
from jointdreamer.errors import UserError, one_line
from jointdreamer.files import try_folder
from jointdreamer.images import (
    VideoError,
    contact_sheet,
    normals_to_rgb,
    to_uint8,
    try_video,
    video_writer,
    write_png,
)
from jointdreamer.priors.base import Guidance, NoisePrediction, NoisyLatents
from jointdreamer.reading import is_out_of_memory
from jointdreamer.runs.folder import read_run
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.export import extract_mesh, write_mesh
from jointdreamer.scenes.nerf.base import Field
from jointdreamer.scenes.nerf.encoding import HashEncoding
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.volume import Render, VolumeRenderer

log = logging.getLogger(__name__)

Scene = tuple[VolumeRenderer, Field, SphericalBackground]

RAYS = 2**13  # rendered at a time: what a small card has room for beside the networks


@torch.no_grad()
def render_views(renderer: VolumeRenderer, field: Field, background: SphericalBackground, cameras: Cameras) -> Render:
    """Evaluation renders with normals, without a graph, in chunks that fit small memories."""
    return renderer(field, background, cameras, normals=True, chunk=RAYS)


def save_views(
    path: Path, renderer: VolumeRenderer, field: Field, background: SphericalBackground, cameras: Cameras
) -> Path:
    """One row each of rgb, normals and opacity for every camera of the one rig; returns the PNG."""
    views = list(one_by_one(renderer, field, background, cameras))
    azimuth = torch.rad2deg(cameras.azimuth[0]).tolist()
    write_png(path, contact_sheet({name: [view[name] for view in views] for name in views[0]}, azimuth))
    return path


def one_by_one(
    renderer: VolumeRenderer, field: Field, background: SphericalBackground, cameras: Cameras
) -> Iterator[dict[str, np.ndarray]]:
    """rgb, normal and opacity of each camera of the one rig, uint8 (R, R, 3): of a render only its pixels are kept."""
    for view in range(cameras.n_views):
        render = render_views(renderer, field, background, cameras.select(torch.tensor([[view]])))
        assert render.normal is not None  # rendered with normals=True
        normal = normals_to_rgb(render.normal, render.opacity)
        shown = {"rgb": render.rgb, "normal": normal, "opacity": render.opacity}
        yield {name: to_uint8(image[0, 0]) for name, image in shown.items()}


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
    files = {name: folder / f"{name}.mp4" for name in ("rgb", "normal")}
    with ExitStack() as stack:
        videos = {name: stack.enter_context(video_writer(file, fps)) for name, file in files.items()}
        for view in one_by_one(renderer, field, background, cameras):
            for name, add in videos.items():
                add(view[name])
    return list(files.values())


def save_mesh(path: Path, field: Field, resolution: int) -> Path | None:
    """The mesh as GLB; None, with a warning, for a field that is empty: the rest of the run is still worth having."""
    try:
        mesh = extract_mesh(field, resolution)
    except UserError as error:
        log.warning("no mesh: %s", error)
        return None
    write_mesh(path, mesh)
    return path


# All of them, whatever becomes of one


@dataclass
class Made:
    """The files that a run shows, by name, and what could not be made."""

    files: dict[str, list[Path]] = dataclasses.field(default_factory=dict)
    failed: dict[str, Exception] = dataclasses.field(default_factory=dict)

    def attempt(self, name: str, make: Callable[[], Path | list[Path] | None]) -> None:
        """Make one thing. That it fails, for want of memory, of ffmpeg, of anything, costs this one thing only."""
        try:
            made = make()
        except Exception as error:
            self.failed[name] = error
            log.warning("no %s: %s", name, why(error))
        else:
            self.files[name] = [made] if isinstance(made, Path) else made or []

    @property
    def missing(self) -> dict[str, str]:
        """What could not be made, by name, and why, a line each."""
        return {name: why(error) for name, error in self.failed.items()}

    def complain(self, folder: Path) -> None:
        """Raise UserError, one line, if something could not be made; a fault of ours as it came."""
        for error in self.failed.values():
            if not is_of_the_machine(error):
                raise error
        if self.failed:
            said = "; ".join(f"no {name} ({said})" for name, said in self.missing.items())
            raise UserError(f"{said}; everything else is in {folder}, and the same command makes what is missing")


def is_of_the_machine(error: Exception) -> bool:
    """Whether `error` says that the machine lacks something (memory, room, ffmpeg) or the user erred; else we did."""
    return isinstance(error, UserError | MemoryError | OSError | VideoError) or is_out_of_memory(error)


def why(error: Exception) -> str:
    """One line of an error."""
    said = "out of memory" if is_out_of_memory(error) else one_line(error)[:300]
    return said if is_of_the_machine(error) else f"{type(error).__name__}: {said}"


def save_previews(
    folder: Path,
    done: int,  # steps
    scene: Scene,
    cameras: Cameras,  # one rig
    energy: tuple[Any, ...] | None,  # what `save_energy` takes after the path, or None for no picture of it
) -> dict[str, Path]:
    """views/ and energy/ after a step; the files by name. One that cannot be made is a warning: the run goes on."""
    made, picture = Made(), f"step_{done:06d}.png"
    made.attempt("views", lambda: save_views(folder / "views" / picture, *scene, cameras))
    if energy is not None:
        made.attempt("energy", lambda: save_energy(folder / "energy" / picture, *energy))
    return {name: files[0] for name, files in made.files.items()}


def save_outputs(
    folder: Path,
    scene: Scene,
    views: int,
    resolution: int,
    fps: int,
    mesh_resolution: int,
    say: Callable[[str], None],
    **orbit: float,
) -> Made:
    """What a run was for: contact sheet, turntable (none for 0 views) and mesh, with a line for each as it is begun.

    orbit: the camera's height, distance and opening, as `orbit_cameras` takes them.
    """
    made, field = Made(), scene[1]
    sheet = orbit_cameras(16, resolution, **orbit)
    say(f"making the contact sheet: 16 views of {resolution} px")
    made.attempt("contact sheet", lambda: save_views(folder / "contact_sheet.png", *scene, sheet))
    if views:
        turn = orbit_cameras(views, resolution, **orbit)
        say(f"making the turntable: two videos of {views} views of {resolution} px")
        made.attempt("turntable", lambda: save_turntable(folder / "turntable", *scene, turn, fps))
    say(f"making the mesh: {mesh_resolution}^3 points")
    made.attempt("mesh", lambda: save_mesh(folder / "mesh" / "mesh.glb", field, mesh_resolution))
    return made


def try_outputs(folder: Path, turntable: bool, needed_bytes: float) -> None:
    """Try before the first step what would fail after the last: the paths, the room on the disk, and ffmpeg.

    A missing ffmpeg is a warning: the rest is worth having. Raises UserError for the others.
    """
    for name in ("contact_sheet.png", "turntable/rgb.mp4", "turntable/normal.mp4", "mesh/mesh.glb"):
        file = folder / name
        try_folder(file.parent)
        if file.is_dir():
            raise UserError(f"cannot write {file}: a folder has its name; move that away, or choose out_dir=...")
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise UserError(
            f"the run needs about {needed_bytes / 1e6:.0f} MB in {folder} and the disk has {free / 1e6:.0f} MB left: "
            "free some space, or choose another place with out_dir=..."
        )
    if turntable:
        try:
            try_video(folder)
        except VideoError as error:
            log.warning("no turntable at the end, as it is now: %s", why(error))


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
