"""The toybox's Janus table: `python -m jointdreamer.toybox.table`

Makes every object that is missing (16 prompts x 2 seeds x energies, each a run of train.py), lets the judge see all of
them from 16 azimuths, says what it saw of each, and prints the table. OUT/table_ENERGY.png shows the objects from eight
azimuths, one seed beside the other, and OUT/table3.png those of the first seed from four, one energy beside the other.
The same command again goes on where it was.
The runs are those of `python -m jointdreamer.tables table3 out_dir=OUT`, which adds costs and further measures; the
other tables read them too.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jointdreamer.errors import UserError, one_line
from jointdreamer.images import grid, write_png
from jointdreamer.priors.prompts import read_prompts
from jointdreamer.project import ROOT
from jointdreamer.runs.folder import run_path
from jointdreamer.runs.pictures import load_scene, render_views
from jointdreamer.runs.processes import train_runs
from jointdreamer.terminal import safe_output
from jointdreamer.toybox.judge import Verdict, judging_cameras, load_judge, table, verdict
from jointdreamer.toybox.networks import EDITIONS, SHIPPED_EDITION
from jointdreamer.toybox.world import FIRST, Toy, Words, caption, parse_caption, sample_toy

PROMPTS = ROOT / "prompts" / "toybox16.txt"
PROMPT_SEED = 16  # of the set that is measured; tuning used TUNING_SEED's only
TUNING_SEED = 4


def draw_prompts(n: int, seed: int, words: Words = FIRST) -> list[str]:
    """N different captions, every other one a combination that nothing was trained on."""
    rng = np.random.default_rng(seed)
    found: list[str] = []
    while len(found) < n:
        text = caption(sample_toy(rng, combination=("train", "held_out")[len(found) % 2], words=words))
        if text not in found:
            found.append(text)
    return found


def write_sheet(path: Path, objects: Sequence[Sequence[Tensor | None]], azimuths: int) -> None:
    """A row for each prompt: its objects, each by 16 cameras (16, 3, H, W), from so many of them; None is blank."""
    shape = next((rgb.shape for row in objects for rgb in row if rgb is not None), None)
    if shape is None:
        return
    shown = [torch.ones(shape) if rgb is None else rgb for row in objects for rgb in row]
    strips = [grid(rgb[:: shape[0] // azimuths], azimuths, padding=1) for rgb in shown]
    write_png(path, grid(strips, len(objects[0]), padding=4))


def main() -> int:
    safe_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, default=PROMPTS)
    parser.add_argument("--first", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--draw", type=int, metavar="N", help="print N prompts for a file of their own, and stop")
    parser.add_argument("--draw-seed", type=int, default=PROMPT_SEED)
    parser.add_argument(
        "--edition", type=int, choices=list(EDITIONS), default=SHIPPED_EDITION, help="of the words drawn"
    )
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0 to this less 1")
    parser.add_argument("--energies", nargs="+", default=["none", "mvs"])
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each")
    parser.add_argument("overrides", nargs="*", help="further words for train.py, e.g. schedule=smoke")
    args = parser.parse_args()
    if args.first is not None and args.first < 1:
        parser.error(f"--first {args.first}: wanted a whole number from 1 up")
    if args.draw is not None:
        print("\n".join(draw_prompts(args.draw, args.draw_seed, EDITIONS[args.edition].words)))
        return 0
    try:
        prompts = read_prompts(args.prompts)[: args.first]
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    jobs = [(p, s, e) for s in range(args.seeds) for p in range(len(prompts)) for e in args.energies]
    words = {word.partition("=")[0]: word for word in args.overrides}
    name = words.pop("name", "").removeprefix("name=")
    names = {energy: name or f"table3/{energy}" for energy in args.energies}
    common = ["models=toybox", f"prompt_file={args.prompts}", f"out_dir={args.out}", *words.values()]
    runs = [
        (
            f"{energy} prompt {number} seed {seed}",
            [f"prompt_id={number}", f"seed={seed}", f"energy={energy}", f"name={names[energy]}", *common],
        )
        for number, seed, energy in jobs
    ]
    try:
        failed = train_runs(runs, max(1, args.jobs), threads=1)
    except KeyboardInterrupt as error:
        print("interrupted: what was under way is saved, the same command goes on", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)

    rows: dict[str, list[Verdict]] = {energy: [] for energy in args.energies}
    seen: dict[tuple[str, int, int], Tensor] = {}
    judge, cameras = load_judge(), judging_cameras()
    for number, seed, energy in jobs:
        folder = run_path(args.out, names[energy], prompts[number], seed)
        try:
            scene, _ = load_scene(folder)
        except UserError as error:
            print(f"left out: {one_line(error)}", file=sys.stderr)
            continue
        rgb = render_views(scene, cameras).rgb[0].clamp(0, 1)
        toy: Toy | None = parse_caption(prompts[number])
        rows[energy].append(verdict(judge, rgb, toy))
        last = rows[energy][-1]
        r, words = last.resultant_length, last.attributes
        print(f"{energy:>6}  seed {seed}  janus {last.janus!s:5}  R {r:.2f}  words {words:.2f}  {prompts[number]}")
        write_png(args.out / "judged" / f"{energy}_{number:02d}_{seed}.png", grid(rgb[::2], 8))
        seen[energy, number, seed] = rgb
    for energy in args.energies:
        of_seeds = [[seen.get((energy, n, seed)) for seed in range(args.seeds)] for n in range(len(prompts))]
        write_sheet(args.out / f"table_{energy}.png", of_seeds, 8)
    of_energies = [[seen.get((energy, n, 0)) for energy in args.energies] for n in range(len(prompts))]
    write_sheet(args.out / "table3.png", of_energies, 4)
    print(table({energy: verdicts for energy, verdicts in rows.items() if verdicts}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
