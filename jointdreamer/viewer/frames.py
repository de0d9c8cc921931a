"""What a browser is shown: an object as its camera sees it, in several kinds of pictures side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor

from jointdreamer.cameras import Cameras
from jointdreamer.images import PAPER, grid, normals_to_rgb, to_uint8
from jointdreamer.runs.pictures import RAYS
from jointdreamer.scenes.base import Render, Scene
from jointdreamer.scenes.mesh.raster import Raster, interpolate, rasterize
from jointdreamer.scenes.mesh.scene import to_clip

CHANNELS = ("rgb", "normals", "depth", "opacity", "mesh")
FOVY = (math.radians(1), math.radians(120))
LARGEST_CELL = 512  # pixels that a browser gets along a side of one picture


def camera_of(wxyz: Sequence[float], position: Sequence[float], fovy: float, resolution: int) -> Cameras:
    """A camera of the browser as one rig of one view, its light beside it; on the CPU.

    wxyz: its rotation to the world as a quaternion; its axes are right, down, forward. position: world units. fovy:
    radians. Raises ValueError for what is no camera.
    """
    quaternion = np.asarray(wxyz, np.float64)
    norm = float(np.linalg.norm(quaternion))
    where = np.asarray(position, np.float64)
    if not (np.isfinite(norm) and norm > 0 and np.isfinite(where).all() and math.isfinite(fovy)):
        raise ValueError(f"the browser's camera has no pose: {[*quaternion]} at {[*where]}, fovy {fovy}")
    rotation = Rotation.from_quat(np.roll(quaternion, -1)).as_matrix()  # scipy has w last
    c2w = np.eye(4)
    c2w[:3, :3] = rotation * (1, -1, -1)  # up and backward, as OpenGL has them
    c2w[:3, 3] = where
    distance = float(np.linalg.norm(where))
    elevation = math.asin(max(-1.0, min(1.0, where[2] / max(distance, 1e-9))))
    azimuth = math.atan2(where[1], where[0])
    one = [torch.tensor([[value]], dtype=torch.float32) for value in (fovy, elevation, azimuth, distance)]
    one[0].clamp_(*FOVY)
    pose = torch.tensor(c2w, dtype=torch.float32)[None, None]
    return Cameras(pose, *one, light=pose[..., :3, 3].clone(), resolution=resolution)


def depth_to_rgb(depth: Tensor, opacity: Tensor, distance: float, radius: float = 0.7) -> Tensor:
    """Depth (..., 1, H, W), a sum along the ray, as grey over white: bright at distance - radius, black at + radius."""
    mean = depth / opacity.clamp_min(1e-3)
    near = (0.5 + (distance - mean) / (2 * radius)).clamp(0, 1)
    return opacity * near + (1 - opacity)


@torch.no_grad()
def pictures_of(scene: Scene, cameras: Cameras, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """The pictures of CHANNELS that are wanted, but for the mesh, of one camera: uint8 (R, R, 3) by name.

    What the scene does not know is left out.
    """
    wanted = [name for name in wanted if name != "mesh"]
    if not wanted:
        return {}
    device = next(scene.parameters()).device
    render = scene.render(cameras.to(device), chunk=RAYS, normals="normals" in wanted)
    shown = {name: _picture(name, render, float(cameras.distance[0, 0])) for name in wanted}
    return {name: to_uint8(image[0, 0]) for name, image in shown.items() if image is not None}


def _picture(name: str, render: Render, distance: float) -> Tensor | None:
    if name == "normals":
        return None if render.normal is None else normals_to_rgb(render.normal, render.opacity)
    if name == "depth":
        return None if render.depth is None else depth_to_rgb(render.depth, render.opacity, distance)
    return render.opacity if name == "opacity" else render.rgb


@dataclass(frozen=True)
class Surface:
    """A mesh as `mesh_picture` draws it, on the CPU."""

    vertices: Tensor  # (N, 3) world
    faces: Tensor  # (F, 3) int64
    colors: Tensor  # (N, 3) in [0, 1]
    normals: Tensor  # (N, 3) unit

    @classmethod
    def of(cls, mesh: Any) -> "Surface":
        """Of a trimesh.Trimesh with colours at its vertices."""
        parts = (mesh.vertices, mesh.faces, np.asarray(mesh.visual.vertex_colors)[:, :3] / 255, mesh.vertex_normals)
        vertices, faces, colors, normals = (torch.from_numpy(np.array(part)) for part in parts)
        return cls(vertices.float(), faces.long(), colors.float(), normals.float())


@torch.no_grad()
def mesh_picture(surface: Surface, cameras: Cameras) -> np.ndarray:
    """The mesh from one camera, lit from there, over white: uint8 (R, R, 3)."""
    size = (cameras.resolution, cameras.resolution)
    raster: Raster = rasterize(to_clip(surface.vertices, cameras)[0], surface.faces, size)
    seen = interpolate(torch.cat([surface.colors, surface.normals], 1), raster, surface.faces)[0]  # (R, R, 6)
    towards = cameras.c2w[0, 0, :3, 2]
    light = 0.35 + 0.65 * (seen[..., 3:] @ towards).clamp_min(0)
    covered = (raster.triangle[0] > 0)[..., None]
    return to_uint8(torch.where(covered, seen[..., :3] * light[..., None], torch.ones(())).permute(2, 0, 1))


def arrange(n_rows: int, n_columns: int, width: int, height: int) -> int:
    """Columns for n_rows x n_columns pictures in a window, so that they come out largest: of one row any number."""
    n = n_rows * n_columns
    choices = range(1, n + 1) if n_rows == 1 else (n_columns,)
    return max(choices, key=lambda columns: min(width / columns, height / math.ceil(n / columns)))


def compose(
    cells: Sequence[tuple[str, np.ndarray | None]],  # name and picture, uint8 (R, R, 3); None: there is none
    columns: int,
    width: int,  # of the window, pixels
    height: int,
) -> np.ndarray:
    """One picture in the proportions of the window: uint8 (H, W, 3), row by row, a name above each."""
    rows = math.ceil(len(cells) / columns)
    cell = max(16, min(LARGEST_CELL, width // columns - 4, height // rows - 28))
    blank = np.full((cell, cell, 3), 235, np.uint8)
    pictures = [blank if picture is None else _resized(picture, cell) for _, picture in cells]
    sheet = grid(pictures, columns, [name for name, _ in cells])
    tall, wide = sheet.shape[:2]
    full_width = max(wide, math.ceil(tall * width / height))
    full_height = max(tall, math.ceil(full_width * height / width))
    window = np.full((full_height, full_width, 3), PAPER, np.uint8)
    top, left = (full_height - tall) // 2, (full_width - wide) // 2
    window[top : top + tall, left : left + wide] = sheet
    return window


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    if picture.shape[0] == side:
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))
