"""The judge: what a view of the toybox world shows. For measuring only, never for guidance.

`python -m jointdreamer.toybox.judge` calibrates it: on held-out true objects, blurred ones, and fronts copied to every
azimuth, whose answers are known.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from jointdreamer.cameras import Cameras, orbit_cameras
from jointdreamer.errors import UserError
from jointdreamer.metrics import is_janus, resultant_length
from jointdreamer.toybox import data
from jointdreamer.toybox.networks import AZIMUTH_BINS, JudgeNet
from jointdreamer.toybox.world import ACCESSORIES, COLORS, KINDS, PATTERNS, Toy, sample_toy

WEIGHTS = Path(__file__).parent / "weights" / "judge" / "model.safetensors"
VIEWS, BACKGROUND = 16, 0.85


@dataclass(frozen=True)
class Verdict:
    """What the judge says of one object seen from 16 azimuths."""

    janus: bool
    resultant_length: float  # R
    attributes: float  # share of the prompt's words that the front views show


def load_judge(path: Path = WEIGHTS) -> JudgeNet:
    """The shipped judge, in evaluation mode. Raises UserError if its weights are missing or damaged."""
    from safetensors.torch import load_file

    judge = JudgeNet()
    try:
        judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    except Exception as error:  # whatever a damaged file provokes
        raise UserError(f"cannot load the judge from {path}: {str(error).splitlines()[0]}") from error
    return judge.eval().requires_grad_(False)


def judging_cameras(resolution: int = data.RESOLUTION) -> Cameras:
    """Sixteen views around, as the toybox's evaluation sees objects (conf/models/toybox.yaml)."""
    return orbit_cameras(VIEWS, resolution, elevation_deg=15, distance=0.95 / math.tan(math.radians(20)), fovy_deg=40)


def verdict(judge: JudgeNet, rgb: Tensor, toy: Toy | None) -> Verdict:
    """Judge the 16 views (16, 3, 64, 64) of one object, azimuth k 360 / 16 degrees; `toy` is what it should be."""
    answers = judge(rgb)
    true = torch.arange(VIEWS) * (2 * math.pi / VIEWS)
    judged = answers["azimuth"].argmax(1) * (2 * math.pi / AZIMUTH_BINS)
    seen = answers["face"].argmax(1).bool()
    return Verdict(
        is_janus(seen), resultant_length(judged, true), math.nan if toy is None else _attributes(answers, toy)
    )


def _attributes(answers: dict[str, Tensor], toy: Toy) -> float:
    """Share of kind, colour, pattern, accessory (and its colour) named rightly by all views' summed log-odds."""
    words = {"kind": KINDS, "color": list(COLORS), "pattern": list(PATTERNS), "accessory": ACCESSORIES}
    if toy.accessory != "none":
        words["accessory_color"] = list(COLORS)
    right = [
        names[int(answers[head].log_softmax(1).mean(0).argmax())] == getattr(toy, head) for head, names in words.items()
    ]
    return sum(right) / len(right)


def true_views(toy: Toy, cameras: Cameras | None = None) -> Tensor:
    """The ray-cast truth (V, 3, R, R) from the one rig, by default the judging cameras, before the judge's grey."""
    return data.true_views(toy, judging_cameras() if cameras is None else cameras, BACKGROUND)


def blurred(rgb: Tensor, size: int = 28) -> Tensor:
    """What is left at `size` pixels."""
    small = torch.nn.functional.interpolate(rgb, size=size, mode="bilinear", antialias=True)
    return torch.nn.functional.interpolate(small, size=rgb.shape[-1], mode="bilinear")


def calibrate(judge: JudgeNet, n: int, seed: int) -> dict[str, list[Verdict]]:
    """Verdicts on n held-out objects as they are, blurred, and with their front copied to every azimuth."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Verdict]] = {"true objects": [], "true objects, blurred": [], "front copied all round": []}
    for _ in range(n):
        toy = sample_toy(rng, shape="held_out", combination=("train", "held_out")[int(rng.integers(2))])
        views = true_views(toy)
        found["true objects"].append(verdict(judge, views, toy))
        found["true objects, blurred"].append(verdict(judge, blurred(views), toy))
        found["front copied all round"].append(verdict(judge, views[:1].expand_as(views), toy))
    return found


def table(rows: dict[str, list[Verdict]]) -> str:
    """A Markdown table of verdicts, one row a group."""
    lines = ["| | Janus | R mean | R median | Janus or R < 0.4 | attributes right |", "|---|---|---|---|---|---|"]
    for name, verdicts in rows.items():
        r = [v.resultant_length for v in verdicts]
        bad = sum(v.janus or v.resultant_length < 0.4 for v in verdicts)
        lines.append(
            f"| {name} | {sum(v.janus for v in verdicts)}/{len(r)} | {sum(r) / len(r):.3f} | {median(r):.3f} | "
            f"{bad}/{len(r)} | {sum(v.attributes for v in verdicts) / len(r):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(table(calibrate(load_judge(), args.objects, args.seed)))


if __name__ == "__main__":
    main()
