"""How rough are the surfaces? `python -m jointdreamer.toybox.surfaces runs/table/mvs/*/seed0`

The mean angle, in degrees, between the normals of neighbouring pixels inside the silhouette, over sixteen views: of
each run's newest checkpoint, and beside it of the true object that its prompt names, as far as it names one. Curvature
and edges are in both; what a run has beyond its true object is noise.
"""

import argparse
import sys
from pathlib import Path

import torch

from jointdreamer.errors import UserError, one_line
from jointdreamer.metrics import roughness
from jointdreamer.runs.pictures import load_scene
from jointdreamer.terminal import safe_output
from jointdreamer.toybox import data
from jointdreamer.toybox.judge import judging_cameras
from jointdreamer.toybox.world import SECOND, Toy, parse_caption

RESOLUTION = 96


def of_run(folder: Path) -> tuple[float, str]:
    """The roughness of a run's object, and its prompt."""
    scene, config = load_scene(folder)
    with torch.no_grad():
        render = scene.render(judging_cameras(RESOLUTION))
    assert render.normal is not None
    return roughness(render.normal[0], render.opacity[0]), str(config["prompt"])


def of_toy(toy: Toy) -> float:
    """The roughness of a true object."""
    rgba, _, normal = data.cast(toy, judging_cameras(RESOLUTION))
    rgba, normal = torch.from_numpy(rgba), torch.from_numpy(normal)
    return roughness(normal.movedim(-1, 1), rgba[..., 3:].movedim(-1, 1))


def main() -> int:
    safe_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    args = parser.parse_args()
    found: list[tuple[float, float]] = []
    for run in args.runs:
        try:
            rough, prompt = of_run(run)
        except UserError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
        toy = parse_caption(prompt, SECOND)
        found.append((rough, of_toy(toy) if toy else float("nan")))
        print(f"{found[-1][0]:6.1f} degrees (the true object {found[-1][1]:.1f})  {prompt}", flush=True)
    mean, true = torch.tensor(found, dtype=torch.float64).nanmean(0).tolist()
    print(f"{mean:6.1f} degrees on average (true objects {true:.1f}), {len(found)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
