"""What a run shows: previews on the way; turntable, contact sheet and mesh at the end."""

import dataclasses
import logging
import math
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
from jointdreamer.errors import UserError, one_line
from jointdreamer.files import to_json, try_folder, write_text
from jointdreamer.images import (
    VideoError,
    contact_sheet,
    normals_to_rgb,
    to_uint8,
    try_video,
    video_writer,
    write_png,
)
from jointdreamer.reading import is_out_of_memory
from jointdreamer.runs.folder import read_run
from jointdreamer.runs.versions import current_config, current_parts
from jointdreamer.scenes.base import Render, Scene
from jointdreamer.scenes.registry import build_scene

log = logging.getLogger(__name__)

OUTPUTS = ("contact_sheet.png", "turntable/rgb.mp4", "turntable/normal.mp4", "turntable/transforms.json")
OUTPUTS += ("mesh/mesh.glb",)
# What a setting that cannot be provokes, in this code or in torch
IMPOSSIBLE = (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, ValueError, MemoryError)
RAYS = 2**13  # rendered at a time: what a small card has room for beside the networks


@torch.no_grad()
def render_views(scene: Scene, cameras: Cameras) -> Render:
    """Evaluation renders with normals, without a graph, in chunks that fit small memories."""
    return scene.render(cameras, chunk=RAYS)


def save_views(path: Path, scene: Scene, cameras: Cameras) -> Path:
    """One row each of rgb, normals and opacity for every camera of the one rig; returns the PNG."""
    views = list(one_by_one(scene, cameras))
    azimuth = torch.rad2deg(cameras.azimuth[0]).tolist()
    write_png(path, contact_sheet({name: [view[name] for view in views] for name in views[0]}, azimuth))
    return path


def one_by_one(scene: Scene, cameras: Cameras) -> Iterator[dict[str, np.ndarray]]:
    """rgb, normal and opacity of each camera of the one rig, uint8 (R, R, 3): of a render only its pixels are kept."""
    for view in range(cameras.n_views):
        render = render_views(scene, cameras.select(torch.tensor([[view]])))
        shown = {"rgb": render.rgb, "opacity": render.opacity}
        if render.normal is not None:
            shown = {"rgb": render.rgb, "normal": normals_to_rgb(render.normal, render.opacity), **shown}
        yield {name: to_uint8(image[0, 0]) for name, image in shown.items()}


def save_rows(path: Path, rows: Mapping[str, Tensor]) -> Path:
    """Rows of pictures (V, 3, H, W) by name, a column for each view; returns the PNG."""
    write_png(path, contact_sheet(rows))
    return path


def save_turntable(
    folder: Path,
    scene: Scene,
    cameras: Cameras,  # one rig, a view a frame
    fps: int,
) -> list[Path]:
    """rgb.mp4 and normal.mp4 of a full turn, and their cameras as transforms.json; returns the videos."""
    paths: dict[str, Path] = {}
    with ExitStack() as stack:
        videos = {}
        for view in one_by_one(scene, cameras):
            for name in (name for name in ("rgb", "normal") if name in view):
                if name not in videos:
                    paths[name] = folder / f"{name}.mp4"
                    videos[name] = stack.enter_context(video_writer(paths[name], fps))
                videos[name](view[name])
    save_cameras(folder, cameras)
    return list(paths.values())


def save_cameras(folder: Path, cameras: Cameras) -> Path:
    """transforms.json: the views of the one rig as nerfstudio and instant-ngp read them; lengths in world units.

    Its pictures are rgb/0001.png and so on, as `ffmpeg -i rgb.mp4 rgb/%04d.png` makes them of the video beside it.
    """
    size, fovy = cameras.resolution, float(cameras.fovy[0, 0])
    focal = size / 2 / math.tan(fovy / 2)
    frames = [
        {"file_path": f"rgb/{number:04d}.png", "transform_matrix": c2w.tolist()}
        for number, c2w in enumerate(cameras.c2w[0].cpu(), 1)
    ]
    camera = {"camera_model": "OPENCV", "camera_angle_x": fovy, "camera_angle_y": fovy, "fl_x": focal, "fl_y": focal}
    camera |= {"cx": size / 2, "cy": size / 2, "w": size, "h": size}
    write_text(folder / "transforms.json", to_json({**camera, "frames": frames}, indent=2) + "\n")
    return folder / "transforms.json"


def save_mesh(path: Path, scene: Scene, resolution: int, texture: int) -> Path | None:
    """The mesh as GLB; None, with a warning, for a scene that is empty: the rest of the run is still worth having."""
    from jointdreamer.scenes.export import asset, write_mesh  # its packages take a second to import

    try:
        mesh = asset(scene, resolution, texture)
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
    rows: Mapping[str, Tensor],  # what the terms saw, (V, 3, H, W) by name; none for no picture of it
) -> dict[str, Path]:
    """views/ and energy/ after a step; the files by name. One that cannot be made is a warning: the run goes on."""
    made, picture = Made(), f"step_{done:06d}.png"
    made.attempt("views", lambda: save_views(folder / "views" / picture, scene, cameras))
    if rows:
        made.attempt("energy", lambda: save_rows(folder / "energy" / picture, rows))
    return {name: files[0] for name, files in made.files.items()}


def save_outputs(
    folder: Path,
    scene: Scene,
    views: int,
    resolution: int,
    fps: int,
    mesh_resolution: int,
    texture: int,
    say: Callable[[str], None],
    **orbit: float,
) -> Made:
    """What a run was for: contact sheet, turntable (none for 0 views) and mesh, with a line for each as it is begun.

    texture: pixels along a side of the mesh's, 0 for colours at its vertices.
    orbit: the camera's height, distance and opening, as `orbit_cameras` takes them.
    """
    made = Made()
    sheet = orbit_cameras(16, resolution, **orbit)
    say(f"making the contact sheet: 16 views of {resolution} px")
    made.attempt("contact sheet", lambda: save_views(folder / "contact_sheet.png", scene, sheet))
    if views:
        turn = orbit_cameras(views, resolution, **orbit)
        say(f"making the turntable: two videos of {views} views of {resolution} px")
        made.attempt("turntable", lambda: save_turntable(folder / "turntable", scene, turn, fps))
    colors = f"a texture of {texture} px" if texture else "colours at the vertices"
    say(f"making the mesh: {mesh_resolution}^3 points, {colors}")
    made.attempt("mesh", lambda: save_mesh(folder / "mesh" / "mesh.glb", scene, mesh_resolution, texture))
    return made


def try_outputs(folder: Path, turntable: bool, needed_bytes: float) -> None:
    """Try before the first step what would fail after the last: the paths, the room on the disk, and ffmpeg.

    A missing ffmpeg is a warning: the rest is worth having. Raises UserError for the others.
    """
    for name in OUTPUTS:
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


def load_scene(folder: Path) -> tuple[Scene, dict[str, Any]]:
    """A run's scene and config, from its newest checkpoint, on the CPU.

    Raises UserError for a folder that is no run, has no readable checkpoint, or is of another version of the code.
    """
    config, checkpoint = read_run(folder)
    try:
        return scene_of(config, checkpoint), config
    except IMPOSSIBLE as error:
        raise of_another_version(folder, error) from error


def of_another_version(folder: Path, error: BaseException) -> UserError:
    """The error for a run whose settings and checkpoint this code cannot make an object of."""
    return UserError(
        f"{folder} was made by another version of this code ({one_line(error)[:160] or type(error).__name__}): "
        "take that version, or name runs that do not include it"
    )


def scene_of(config: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Scene:
    """A run's scene as a checkpoint left it, on the CPU, for looking at; runs of earlier versions included."""
    config = current_config(config)
    scene = build_scene(groups=config, **config["scene"])
    scene.load_state_dict(current_parts(checkpoint["parts"])["scene"])
    return scene.eval()
