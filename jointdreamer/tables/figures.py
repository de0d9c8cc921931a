"""Fig. 8, the training losses of SDS and JSD, and Fig. 10, sums of SDS and MVDream, as tables and pictures."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from jointdreamer.errors import one_line
from jointdreamer.images import plot_curves
from jointdreamer.reading import DAMAGED, MIB, Unreadable, is_number, is_whole, open_file, parse_json
from jointdreamer.tables.definitions import FIG10_SUM, Table
from jointdreamer.tables.runs import Job
from jointdreamer.tables.scores import ABSENT, Groups

EVERY = 10  # steps between the losses that are compared: a finer log must not change the answer
Curve = dict[int, float]
Lines = dict[str, tuple[list[float], list[float]]]


def loss_curve(folder: Path) -> Curve:
    """Step -> distillation loss (unweighted) of a finished run, each EVERY steps. Rows that hold no loss are skipped.

    Raises Unreadable.
    """
    curve = {}
    with open_file(folder / "metrics.jsonl") as stream:
        for line in iter(lambda: stream.readline(MIB), b""):
            try:
                row = parse_json(line)
            except ValueError:
                continue
            step, loss = (row.get("step"), row.get("loss/jsd")) if isinstance(row, dict) else (None, None)
            if isinstance(step, int) and is_whole(step, 0) and step % EVERY == 0 and is_number(loss):
                curve[step] = loss
    if not curve:
        raise Unreadable(folder / "metrics.jsonl", DAMAGED, "it holds no loss")
    return curve


def average(curves: Sequence[Curve]) -> Curve:
    """The mean curve, at the steps that all of them have."""
    shared = set.intersection(*(set(curve) for curve in curves))
    return {step: mean(curve[step] for curve in curves) for step in sorted(shared)}


def fluctuation(curve: Curve) -> float:
    """How much a loss jumps, whatever its size: mean |log(next / this)| over its steps. NaN with fewer than two."""
    values = [curve[step] for step in sorted(curve) if curve[step] > 0]
    jumps = [abs(math.log(after / before)) for before, after in zip(values, values[1:], strict=False)]
    return mean(jumps) if jumps else math.nan


def figure8(table: Table, models: str, jobs: Sequence[Job], picture: Path) -> str:
    """How much the losses jump, as a table; the curves, averaged over prompts and seeds, as a picture."""
    lines = [f"### {table.title}, models={models}", ""]
    lines += ["| | runs | jump of the mean curve | jump of one run (deviation) | mean loss |", "|---|---|---|---|---|"]
    panels: tuple[Lines, Lines] = ({}, {})
    for row in table.rows:
        curves = []
        for job in (job for job in jobs if job.row == row and job.done):
            try:
                curves.append(loss_curve(job.folder))
            except Unreadable as error:
                print(one_line(f"left out: {error}"), file=sys.stderr)
        if not curves or not average(curves):
            lines.append(f"| {row.label} | 0 | {ABSENT} | {ABSENT} | {ABSENT} |")
            continue
        whole, single = average(curves), [fluctuation(curve) for curve in curves]
        spread = f" ({stdev(single):.2f})" if len(single) > 1 else ""
        jumps = f"{fluctuation(whole):.2f} | {mean(single):.2f}{spread}"
        lines.append(f"| {row.label} | {len(curves)} | {jumps} | {mean(whole.values()):.3g} |")
        for panel, curve in zip(panels, (whole, curves[0]), strict=True):
            size = mean(curve.values())
            panel[row.label] = ([float(step) for step in curve], [value / size for value in curve.values()])
    titles = ("loss over its mean, all runs", "loss over its mean, one run")
    plot_curves(picture, dict(zip(titles, panels, strict=True)))
    lines += ["", f"A jump is mean |log(next / this)|, {EVERY} steps apart. {table.note} {picture}"]
    return "\n".join(lines)


def figure10(table: Table, models: str, groups: Groups, picture: Path) -> str:
    """Janus rate and R-Precision over the weight, as a picture; what has no weight is a level line."""
    panels: dict[str, Lines] = {}
    for key, title in {"janus": "Janus, %", "r_precision": "R-Precision, %"}.items():
        sums: Curve | dict[float, float] = {}
        level: Mapping[str, float] = {}
        for row in table.rows:
            value = (groups.get(row.name(models)) or {}).get(key)
            if value is None:
                continue
            if row.experiment == FIG10_SUM:
                sums = {**sums, math.log10(float(row.words[0].partition("=")[2])): value["mean"]}
            else:
                level = {**level, row.label: value["mean"]}
        x = sorted(sums) or [0.0]
        lines: Lines = {"SDS + weight x MVDream": (x, [sums[at] for at in x])} if sums else {}
        lines |= {label: ([x[0], x[-1]], [y, y]) for label, y in level.items()}
        panels[f"{title}, over log10 of the weight"] = lines
    return str(plot_curves(picture, panels))
