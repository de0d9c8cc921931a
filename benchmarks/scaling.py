"""How the cost of rendering (forward and backward) grows: with pixels, views, samples, hash levels, and empty space.

    python -m benchmarks.scaling

Pixels and views are fitted with a straight line, the rest with a power. Issue B wants the first two linear, and the
cost of empty space sub-linear: of a box that grows around an object, and of one that is emptied, cell by random cell.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.command import options, run, table, verdict_lines
from benchmarks.fits import exponent, line
from benchmarks.render import FIELDS, SAMPLES, Scene
from benchmarks.timing import milliseconds, race


def main() -> int:
    parser = options("scaling", __doc__, repeats=9)
    parser.add_argument("--field", choices=tuple(FIELDS), help="whose sizes (toybox on a CPU, paper on a GPU)")
    return run("scaling", parser, measure)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    args.field = args.field or ("paper" if args.device == "cuda" else "toybox")
    series = [measure_series(args, *one) for one in plan(args)]
    print()
    for one in series:
        print(one["text"])
    verdicts = judge({one["name"]: one for one in series})
    print("\n" + verdict_lines(verdicts, args.quick))
    return {"series": series, "verdicts": verdicts}


def plan(args: argparse.Namespace) -> list[tuple[str, str, list[tuple[float, Callable[[], Scene]]]]]:
    """(name, unit, [(x, scene)]) of every series."""
    big, quick = args.device == "cuda", args.quick
    resolution = 8 if quick else 96 if big else 48
    samples = 16 if quick else SAMPLES[args.field]
    common: dict[str, Any] = {"resolution": resolution, "n_views": 4, "n_samples": samples, "device": args.device}
    common |= {"cells": 8 if quick else 32, "field": FIELDS[args.field]}

    def scene(**changes: Any) -> Callable[[], Scene]:
        return lambda: Scene(**{**common, **changes})

    sides = [6, 8, 10] if quick else [48, 64, 96, 128, 160] if big else [24, 32, 48, 64, 80]
    views = [1, 2, 4] if quick else [1, 2, 3, 4, 6, 8]
    counts = [8, 16] if quick else [64, 128, 256, 512] if big else [24, 48, 96, 192]
    levels = [1, 2] if quick else [2, 4, 8, 16]
    empty = [0.0, 0.5, 0.9] if quick else [0.0, 0.25, 0.5, 0.75, 0.9, 0.98]
    radii = [1, 2] if quick else [1, 2, 3, 4]
    small = {**FIELDS[args.field]}
    encoding = small.get("encoding", {})
    return [
        ("pixels", "pixels a view", [(r * r, scene(resolution=r)) for r in sides]),
        ("views", "views", [(v, scene(n_views=v)) for v in views]),
        ("samples", "samples along the diagonal", [(n, scene(n_samples=n)) for n in counts]),
        (
            "levels",
            "hash levels",
            [(n, scene(field={**small, "encoding": {**encoding, "n_levels": n}})) for n in levels],
        ),
        ("emptied", "empty share of the box", [(e, scene(filled=1 - e, scattered=True)) for e in empty]),
        ("surrounded", "box volume around the same object", [(r**3, scene(radius=r, filled=0.5)) for r in radii]),
    ]


def measure_series(
    args: argparse.Namespace, name: str, unit: str, points: list[tuple[float, Callable[[], Scene]]]
) -> dict[str, Any]:
    """The times of one series, whose points take turns, and its fit."""
    scenes = {x: make() for x, make in points}
    print(f"{name}: {', '.join(f'{x:g}' for x in scenes)} {unit} ...", flush=True)
    entries = {str(x): (lambda s=s: s.step) for x, s in scenes.items()}
    times = race(entries, args.repeats, args.device, args.clock)
    ms = {x: milliseconds(times[str(x)]) for x in scenes}
    xs, ys = list(scenes), [ms[x]["median_ms"] for x in scenes]
    result: dict[str, Any] = {
        "name": name,
        "unit": unit,
        "x": xs,
        "ms": [ms[x] for x in xs],
        "samples": [s.n_samples for s in scenes.values()],
    }
    if name in ("pixels", "views"):
        fit = line(xs, ys)
        result["fit"] = {**fit._asdict(), "linear": fit.linear()}
        said = f"{fit.slope:.4g} ms x + {fit.intercept:.3g} ms, R^2 {fit.r2:.4f}, worst point {fit.worst:.0%} off"
    elif name == "emptied":
        fit = line([1 - x for x in xs], ys)  # over the full share: what is left at 0 is the cost of empty space
        result["fit"] = fit._asdict()
        result["cost_of_empty"] = fit.intercept / (fit.intercept + fit.slope)
        said = f"{fit.slope:.4g} ms (1 - x) + {fit.intercept:.3g} ms: empty costs {result['cost_of_empty']:.1%} of full"
    else:
        result["exponent"] = exponent(xs, ys)
        said = f"cost ~ x^{result['exponent']:.2f}"
    rows = [[f"{x:g}", n, ms[x]["median_ms"], ms[x]["best_ms"]] for x, n in zip(xs, result["samples"], strict=True)]
    result["text"] = f"\n{name}: {said}\n" + table([unit, "samples", "median ms", "best ms"], rows)
    return result


def judge(series: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims of issue B."""
    found = []
    for name in ("pixels", "views"):
        fit = series[name]["fit"]
        claim = (
            f"linear in {name}: slope {fit['slope']:.4g} ms, intercept {fit['intercept']:.3g} ms, R^2 {fit['r2']:.4f}"
        )
        found.append({"claim": claim, "holds": fit["linear"]})
    power = series["surrounded"]["exponent"]
    x, ms = series["surrounded"]["x"], series["surrounded"]["ms"]
    growth = ms[-1]["median_ms"] / ms[0]["median_ms"]
    claim = f"sub-linear in empty space around an object: a box {x[-1] / x[0]:g} times larger costs {growth:.2f} times"
    found.append({"claim": f"{claim} as much (x^{power:.2f})", "holds": power < 0.5})
    share = series["emptied"]["cost_of_empty"]
    claim = f"a cell that is empty, among full ones, costs {share:.1%} of a full one (sub-linear: below 50%)"
    found.append({"claim": claim, "holds": share < 0.5})
    return found


if __name__ == "__main__":
    sys.exit(main())
