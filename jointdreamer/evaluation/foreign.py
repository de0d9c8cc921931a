"""Objects of any method, as meshes or as pictures, scored as our own runs are: against captions, or true views.

    python evaluate.py meshes='theirs/*.glb' captions=captions.txt           a caption a line, in the order of the names
    python evaluate.py pictures='theirs/*' captions=captions.txt             a folder of pictures for each object
    python evaluate.py meshes='theirs/*.glb' truth=views                     python -m jointdreamer.data.render_views

Meshes are drawn by the rasteriser of `scenes.mesh`, in their albedo before white, as our own turntables are.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from jointdreamer.cameras import Cameras, orbit_cameras
from jointdreamer.classifier.views import Damaged, ViewFolder
from jointdreamer.data.meshes import SUFFIXES, BadMesh, TriangleMesh, load_mesh
from jointdreamer.data.render_views import FOVY_DEG
from jointdreamer.errors import UserError, one_line
from jointdreamer.evaluation.networks import Clip, resized
from jointdreamer.evaluation.statistics import mean
from jointdreamer.evaluation.table import number_cell
from jointdreamer.formats.surface import linear_to_srgb
from jointdreamer.images import read_picture
from jointdreamer.metrics import clip_score, psnr, recall_at, retrieval_ranks, ssim, unit
from jointdreamer.reading import Unreadable, entries, find
from jointdreamer.scenes.mesh.raster import rasterize
from jointdreamer.scenes.mesh.scene import MESH_SIZE, to_clip

ORBIT = {"elevation_deg": 15.0, "distance": 3.0, "fovy_deg": 40.0}  # train.py's `output`
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
RECALLS = {"r_precision": 1, "r_at_5": 5}
FINE = 2  # samples along each side of a pixel
Row = dict[str, Any]


def find_objects(patterns: Sequence[str], meshes: bool) -> list[Path]:
    """The mesh files, or the folders of pictures, that match; sorted by name. Raises UserError for none."""
    key = "meshes" if meshes else "pictures"
    matches = {path for pattern in patterns for path in find(pattern)}
    found = [one for one in matches if one.is_dir() != meshes and (not meshes or one.suffix.lower() in SUFFIXES)]
    if not found:
        wanted = f"files that end in {', '.join(SUFFIXES)}" if meshes else "a folder of pictures for each object"
        raise UserError(f"{key}={' '.join(patterns)} matches nothing: wanted {wanted}")
    return sorted(found, key=lambda path: (path.name, str(path)))


def draw(mesh: TriangleMesh, corners: np.ndarray, cameras: Cameras) -> Tensor:
    """The mesh's albedo before white from one rig of cameras: (V, 3, R, R) in [0, 1].

    corners: (F, 3, 3), where its triangles lie in the world
    """
    size = FINE * cameras.resolution
    vertices = torch.from_numpy(corners.reshape(-1, 3)).float()
    faces = torch.arange(len(vertices)).view(-1, 3)
    seen = []
    for view in range(cameras.n_views):
        camera = cameras.select(torch.tensor([[view]]))
        raster = rasterize(to_clip(vertices, camera)[0], faces, (size, size))
        hit = raster.triangle[0] > 0
        face = (raster.triangle[0][hit] - 1).numpy()
        weight = raster.barycentric[0][hit].double().numpy()
        weight = np.concatenate([weight, 1 - weight.sum(1, keepdims=True)], 1)
        color, alpha = mesh.color_at(face, weight)
        rgb = linear_to_srgb(color).clip(0, 1) * alpha[:, None] + 1 - alpha[:, None]
        picture = torch.ones(size, size, 3)
        picture[hit] = torch.from_numpy(np.asarray(rgb)).float()
        seen.append(avg_pool2d(picture.permute(2, 0, 1), FINE))
    return torch.stack(seen)


def mesh_views(mesh: TriangleMesh, n_views: int, resolution: int) -> Tensor:
    """From all around, as our own objects are: the front, -y of `load_mesh`, turned to azimuth 0."""
    x, y, z = mesh.corners[..., 0], mesh.corners[..., 1], mesh.corners[..., 2]
    return draw(mesh, MESH_SIZE * np.stack([-y, x, z], -1), orbit_cameras(n_views, resolution, **ORBIT))


def picture_views(folder: Path, resolution: int) -> Tensor:
    """The pictures in a folder, by their names, before white. Raises UserError for none, or one that is damaged."""
    files = [Path(entry.path) for entry in entries(folder) if entry.name.lower().endswith(PICTURES)]
    if not files:
        raise UserError(f"{folder}: no picture in it; wanted files that end in {', '.join(PICTURES)}")
    found = []
    for file in files:
        try:
            rgba = torch.from_numpy(read_picture(file).astype(np.float32) / 255).permute(2, 0, 1)
        except Unreadable as error:
            raise UserError(f"{file}: {error.why}") from error
        rgb = rgba[:3] * rgba[3:] + 1 - rgba[3:]
        side = min(rgb.shape[1:])
        top, left = ((length - side) // 2 for length in rgb.shape[1:])
        found.append(resized(rgb[None, :, top : top + side, left : left + side], resolution)[0])
    return torch.stack(found)


def true_views(truth: ViewFolder, name: str, resolution: int) -> tuple[Tensor, Cameras]:
    """An object's true views (V, 3, R, R) before white, and their cameras, one rig. Raises UserError."""
    if name not in truth.ids:
        raise UserError(f"truth={truth.name} has no object {name!r}: wanted a folder for each mesh, by its name")
    index = truth.ids.index(name)
    try:
        c2w = torch.from_numpy(truth.poses(index)).float()[None]
        rgba = truth.images(index, range(c2w.shape[1]), resolution)
    except Damaged as error:
        raise UserError(f"truth={truth.name}: {name}: {error}") from error
    image = torch.from_numpy(rgba.astype(np.float32) / 255).permute(0, 3, 1, 2)
    distance = c2w[..., :3, 3].norm(dim=-1)
    x, y, z = (c2w[..., :3, 3] / distance[..., None]).unbind(-1)
    fovy = torch.full_like(distance, math.radians(FOVY_DEG))
    cameras = Cameras(c2w, fovy, z.asin(), torch.atan2(y, x), distance, c2w[..., :3, 3], resolution)
    return image[:, :3] * image[:, 3:] + 1 - image[:, 3:], cameras


def load(file: Path) -> TriangleMesh:
    """What of it could not be read is said on stderr. Raises UserError for a mesh that cannot be read."""
    try:
        mesh = load_mesh(file)
    except BadMesh as error:
        raise UserError(f"{file}: {error}") from error
    if mesh.notes:
        print(one_line(f"incomplete {file}: {'; '.join(mesh.notes)}"), file=sys.stderr)
    return mesh


def score(
    files: Sequence[Path],
    captions: Sequence[str] | None,
    truth: ViewFolder | None,
    clip: Clip,
    n_views: int,
    resolution: int,
) -> list[Row]:
    """A row of numbers for each object. Among k captions or fewer all are the first k: no recall at k then.

    captions: the first is the first file's, and so on; further ones are there to be confused with
    truth: only of meshes

    Raises UserError, one line, for fewer captions than objects and for an object that cannot be read.
    """
    if captions is not None and len(captions) < len(files):
        raise UserError(
            f"captions: {len(captions)} for {len(files)} objects; wanted one a line, in the order of their names "
            f"({files[0].name} first)"
        )
    choice = list(dict.fromkeys(captions or ()))  # a caption of two objects is no distractor of either
    texts = clip.texts(choice) if choice else None
    rows: list[Row] = []
    for number, file in enumerate(files):
        mesh = None if file.is_dir() else load(file)
        row: Row = {"object": str(file)}
        if texts is not None and captions is not None:
            rgb = picture_views(file, resolution) if mesh is None else mesh_views(mesh, n_views, resolution)
            features = clip.images(rgb)
            own = choice.index(captions[number])
            ranks = retrieval_ranks(features, texts, own)
            row |= {"caption": captions[number], "clip_score": clip_score(features, texts[own])}
            row |= {name: recall_at(ranks, k) for name, k in RECALLS.items() if len(choice) > k}
        if truth is not None:
            if mesh is None:
                raise UserError("truth=FOLDER compares meshes, which can be drawn from its cameras: give meshes=GLOB")
            true, cameras = true_views(truth, file.stem, resolution)
            rgb = draw(mesh, mesh.corners, cameras)
            cosine = (unit(clip.images(rgb)) * unit(clip.images(true))).sum(1).mean()
            row |= {"psnr": float(psnr(rgb, true).mean()), "ssim": float(ssim(rgb, true).mean())}
            row |= {"clip_similarity": float(cosine)}
        rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], confidence: float) -> str:
    """The means with their intervals, and a row for each object. names: column -> its title."""
    shown = [key for key in names if key in rows[0]]
    lines = [f"| object | {' | '.join(names[key] for key in shown)} |", "|" + "---|" * (len(shown) + 1)]
    cells = []
    for key in shown:
        found = mean([float(row[key]) for row in rows], confidence)
        cells.append(number_cell(found and found.as_dict(), 2))
    lines.append(f"| all {len(rows)} | {' | '.join(cells)} |")
    for row in rows:
        lines.append(f"| {Path(row['object']).name} | {' | '.join(f'{row[key]:.2f}' for key in shown)} |")
    return "\n".join(lines) + "\n"
