"""Runs side by side: `python -m jointdreamer.toybox.picture runs/none/.../seed0 runs/mvs/.../seed0 --out janus.png`

One row of eight azimuths a run, rendered from its newest checkpoint, with the energy's name on it.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from jointdreamer.cameras import orbit_cameras
from jointdreamer.errors import UserError, one_line, printable
from jointdreamer.images import grid, write_png
from jointdreamer.runs.pictures import load_scene, render_views
from jointdreamer.terminal import safe_output


def row(folder: Path, views: int, resolution: int) -> np.ndarray:
    """A labelled picture of one run, its views from left to right."""
    scene, config = load_scene(folder)
    look = {key: config["output"][key] for key in ("elevation_deg", "distance", "fovy_deg")}
    rgb = render_views(scene, orbit_cameras(views, resolution, **look)).rgb[0]
    name = {"none": "SDS", "mvs": "JSD (mvs)"}.get(config["energy"]["name"], config["energy"]["name"])
    labels = [f"{name} {360 * view // views}" for view in range(views)]
    return grid(rgb.clamp(0, 1), views, labels)


def main() -> int:
    safe_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("picture.png"))
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=96)
    args = parser.parse_args()
    try:
        write_png(args.out, np.concatenate([row(run, args.views, args.resolution) for run in args.runs]))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(printable(args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
