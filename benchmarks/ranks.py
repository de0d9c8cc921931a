"""Weak scaling: a rig on each rank, 1, 2, ... of them; what of a step is communication, and how much is sent.

    python -m benchmarks.ranks                                    1 and 2 ranks, energy=none, on this machine
    python -m benchmarks.ranks --ranks 1,2,4 models=toybox energy=mvs       any words that train.py takes
    python -m benchmarks.ranks --plan 8                           on paper: 8 cards, Stable Diffusion 2.1

Each is train.py on so many processes. What is measured is a step's seconds; the seconds that the first rank spends in
reductions, where it waits for the slower ranks, too; and one reduction of all gradients with nothing to wait for. The
plan counts the gradients of the paper's scene, sends them around a ring, 2 (N - 1) / N times, and sets that beside the
seconds of a step that `benchmarks.step --paper-size` measured on one card.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.command import RESULTS, options, positive, positives, run, table, verdict_lines
from benchmarks.step import PROMPT, QUICK, ROOT
from jointdreamer.errors import UserError

MEASURED = RESULTS / "step-paper-size-nvidia-h200.json"
# GB/s in each direction between two of eight cards, as their makers name them
LINKS = {"NVLink 4 (H100, H200)": 450.0, "PCIe 5 x16": 64.0, "Ethernet, 100 Gbit/s": 12.5, "Ethernet, 10 Gbit/s": 1.25}
LEAST_EFFICIENCY = 0.9  # of two ranks, where each has a core, or a card, of its own


def main() -> int:
    parser = options("ranks", __doc__, repeats=20)
    parser.add_argument("words", nargs="*", help="for train.py, e.g. models=toybox energy=mvs")
    parser.add_argument("--ranks", type=positives, default=[1, 2], help="how many, with commas between them (1,2)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that count (3)")
    parser.add_argument("--plan", type=positive, default=None, metavar="N", help="no run: N cards on paper")
    on_paper = any(word.startswith("--plan") for word in sys.argv[1:])  # another file than what was measured
    return run("ranks-plan" if on_paper else "ranks", parser, measure)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.plan is not None:
        return {"plan": plan(args.plan)}
    found = {}
    for n in args.ranks:
        print(f"{n} rank{'s' if n > 1 else ''} ...", flush=True)
        found[str(n)] = measured(args, n)
    rows = [
        [n, one["seconds_per_step"], one["efficiency"], one["share_reducing"], one["reduction_alone"], one["megabytes"]]
        for n, one in compared(found).items()
    ]
    header = ["ranks", "s/step", "efficiency", "in reductions", "s of one alone", "MB/step"]
    print("\n" + table(header, rows))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    verdicts = judge(found, enough=args.device == "cuda" or cores >= max(args.ranks))
    print("\n" + verdict_lines(verdicts, args.quick))
    return {"ranks": found, "verdicts": verdicts}


def measured(args: argparse.Namespace, n: int) -> dict[str, Any]:
    """A run on n ranks with n rigs. Raises UserError where it fails."""
    given = [PROMPT, "energy=none", f"device={args.device}", *(QUICK if args.quick else [])]
    mine = {word.partition("=")[0] for word in args.words}
    with tempfile.TemporaryDirectory() as temporary:
        out, file = Path(temporary, "result.json"), Path(temporary, "job.json")
        words = [*(word for word in given if word.partition("=")[0] not in mine), *args.words]
        words += [f"cameras.n_rigs={n}", f"out_dir={temporary}/runs"]
        job = {"words": words, "warmup": args.warmup, "repeats": args.repeats, "out": str(out)}
        file.write_text(json.dumps(job), encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads or 1), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "jointdreamer.cli.spawn", str(n), "-m", "benchmarks.ranked_run", str(file)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode or not out.exists():
            said = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
            raise UserError(f"{n} ranks: {said[-1].removeprefix('error: ')[:300]}")
        result = json.loads(out.read_text(encoding="utf-8"))
    laps = result["laps"]
    seconds = statistics.median(lap["seconds"] for lap in laps)
    return {
        "seconds_per_step": seconds,
        "seconds": [lap["seconds"] for lap in laps],
        "share_reducing": sum(lap["reducing"] for lap in laps) / sum(lap["seconds"] for lap in laps),
        "reduction_alone": result["reduction_alone"],
        "megabytes": statistics.median(lap["bytes"] for lap in laps) / 1e6,
    }


def compared(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """With the efficiency of each: the time of a step on the fewest ranks over its own."""
    first = next(iter(found.values()))["seconds_per_step"]
    return {n: {**one, "efficiency": first / one["seconds_per_step"]} for n, one in found.items()}


def judge(found: dict[str, dict[str, Any]], enough: bool) -> list[dict[str, Any]]:
    """What is wanted of the scaling; nothing where ranks share a core (not enough)."""
    verdicts = []
    for n, one in list(compared(found).items())[1:]:
        claim = f"{n} ranks do {n} rigs at {one['efficiency']:.0%} of the pace of one (wanted: {LEAST_EFFICIENCY:.0%})"
        verdicts.append({"claim": claim, "holds": one["efficiency"] >= LEAST_EFFICIENCY if enough else None})
    return verdicts


def plan(n: int, measured_file: Path = MEASURED) -> dict[str, Any]:
    """N cards on paper: bytes that a step reduces, and seconds beside those of a step on one card."""
    sizes = gradient_sizes()
    total = sum(sizes.values())
    steps = seconds_on_one_card(measured_file)
    ring = 2 * (n - 1) / n * 4 * total
    print(f"{n} cards: {total:,} gradients ({', '.join(f'{role} {size:,}' for role, size in sizes.items())}), "
          f"{4 * total / 1e6:.1f} MB a step, of which each card sends {ring / 1e6:.1f} MB around a ring\n")  # fmt: skip
    rows, links = [], {}
    for name, rate in LINKS.items():
        links[name] = seconds = ring / (rate * 1e9)
        shares = [f"{seconds / (seconds + step):.1%}" for step in steps.values()]
        rows.append([name, f"{1e3 * seconds:.2f}", *shares])
    print(table(["link", "ms", *(f"of a step of {name}" for name in steps)], rows))
    return {"cards": n, "gradients": sizes, "bytes": 4 * total, "ring_bytes": ring, "seconds": links, "steps": steps}


def gradient_sizes() -> dict[str, int]:
    """How many numbers of each role the paper's NeRF has."""
    from jointdreamer.cli.main import composed
    from jointdreamer.scenes.registry import build_scene

    cfg = composed("config", [PROMPT, "energy=mvs"], "sd21")
    scene = build_scene(groups=cfg, device="cpu", **cfg["scene"])
    return {role: sum(p.numel() for p in group) for role, group in scene.parameter_groups().items()}


def seconds_on_one_card(file: Path) -> dict[str, float]:
    """Seconds of a step by energy and pixels, as `benchmarks.step --paper-size` found them."""
    try:
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} has no steps: make it with benchmarks.step --paper-size on a card") from error
    return {
        f"{one['energy']} {pixels} px": stage["seconds_per_step"]["mean"]
        for one in runs
        for pixels, stage in one["resolutions"].items()
    }


if __name__ == "__main__":
    sys.exit(main())
