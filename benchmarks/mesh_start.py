"""Where a mesh starts and what can carve it: `python -m benchmarks.mesh_start RUN`

Of a finished NeRF run, without any training: the roughness of its surface as the evaluation measures it, and that of
the mesh that `scene=dmtet` makes of it, for several numbers of `scene.smoothing`; with the volume that is left. Then,
for balls of more and more faces and pictures of more and more pixels, the share of the pairs of pixels along the
outline that antialiasing blends, as nvdiffrast does and with the walk of `scenes/mesh/raster.py`: only these have
gradients of the silhouette.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import trimesh

from benchmarks.command import parser_of, table
from jointdreamer.cameras import orbit_cameras
from jointdreamer.errors import UserError, one_line
from jointdreamer.evaluation.measure import surface_roughness
from jointdreamer.runs.pictures import load_scene
from jointdreamer.scenes.mesh.raster import across_edges, antialias, rasterize
from jointdreamer.scenes.mesh.scene import to_clip
from jointdreamer.scenes.registry import build_scene

SMOOTHING = (0, 1, 2, 4)
SUBDIVISIONS, PIXELS = (1, 2, 3, 4, 5), (64, 128, 512)


@torch.no_grad()
def starts(run: Path, resolution: int) -> list[list[str]]:
    """Rows of the first table. Raises UserError for a folder that is no finished run, or whose NeRF has no surface."""
    first, config = load_scene(run)
    orbit = {key: float(config["output"][key]) for key in ("elevation_deg", "distance", "fovy_deg")}
    rows = [["the NeRF", f"{surface_roughness(first, orbit):.1f}", "-", "-"]]
    for times in SMOOTHING:
        scene = build_scene("dmtet", config, resolution=resolution, smoothing=times)
        scene.start_from(first)
        mesh = scene.mesh(resolution)
        rows.append(
            [f"smoothing {times}", f"{surface_roughness(scene, orbit):.1f}", f"{mesh.volume:.3f}", str(len(mesh.faces))]
        )
    return rows


@torch.no_grad()
def blended(subdivisions: int, pixels: int, walk: bool) -> float:
    """The share of the outline's pairs of pixels, side by side, that antialiasing blends: four views of a ball."""
    ball = trimesh.creation.icosphere(subdivisions, radius=0.5)
    vertices, faces = torch.tensor(ball.vertices, dtype=torch.float32), torch.tensor(ball.faces)
    clip = to_clip(vertices, orbit_cameras(4, pixels)).flatten(0, 1)
    raster = rasterize(clip, faces, (pixels, pixels))
    mask = (raster.triangle > 0).float()[..., None]
    opposite, beyond = across_edges(faces)
    image = antialias(mask, raster, clip, faces, opposite, beyond=beyond if walk else None)
    pairs = sum(int((mask.diff(dim=axis) != 0).sum()) for axis in (1, 2))
    return int((image != mask).sum()) / pairs


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of("mesh_start", __doc__)
    parser.add_argument("run", type=Path, help="a finished run of scene=nerf")
    parser.add_argument("--resolution", type=int, default=64, help="of the tetrahedral grid (64)")
    args = parser.parse_args(argv)
    try:
        rows = starts(args.run, args.resolution)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(table(["", "roughness, degrees", "volume", "faces"], rows), end="\n\n")
    columns = [(size, walk) for walk in (False, True) for size in PIXELS]
    shares = [[str(20 * 4**n), *(f"{blended(n, *column):.2f}" for column in columns)] for n in SUBDIVISIONS]
    print(table(["faces", *(f"{size} px{', walked' if walk else ''}" for size, walk in columns)], shares))
    return 0


if __name__ == "__main__":
    sys.exit(main())
