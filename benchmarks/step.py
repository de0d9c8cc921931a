"""Where the time of one training step goes, in train.py itself.

    python -m benchmarks.step                                     energy=none, cls, i2i and mvs
    python -m benchmarks.step models=toybox energy=mvs seed=1     any words that train.py takes
    python -m benchmarks.step models=toybox energy=mvs scene=dmtet init_from=RUN_FOLDER
    python -m benchmarks.step --whole                             the schedule as it is, from its first step to its last
    python -m benchmarks.step --paper-size                        Stable Diffusion 2.1 and MVDream, random weights

Each energy and each stage (stretch of constant resolution) of the schedule is a process of its own, with the settings
of the middle of that stage and a new object; --whole runs the real schedule instead, whose object changes as it does in
training. Sections are timed with the device synchronised at their borders; `s/step` comes from steps without that.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.command import options, run, table, verdict_lines
from jointdreamer.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "prompt=a red robot with a blue hat"
QUICK = ["schedule.resolution=8", "renderer.n_samples=16", "renderer.grid_resolution=8"]
MOST_STARTUP, LEAST_SHARE, LEAST_RATE, MOST_ENERGY, MOST_RASTERISER = 10.0, 0.6, 0.5, 1.08, 0.25


def main() -> int:
    parser = options("step", __doc__, repeats=32)
    parser.add_argument("words", nargs="*", help="for train.py, e.g. models=toybox energy=none,mvs schedule=smoke")
    parser.add_argument("--whole", action="store_true", help="run the whole schedule as it is")
    parser.add_argument("--paper-size", action="store_true", help="SD 2.1 and MVDream in full size, random weights")
    parser.add_argument("--weights", type=Path, help="folder that keeps the random weights (a temporary one)")
    parser.add_argument("--warmup", type=int, default=None, help="steps before those that count (4)")
    return run("step", parser, measure)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.machine import rates

    with tempfile.TemporaryDirectory() as temporary:
        words = command_words(args, Path(temporary))
        machine_rates = rates(args.device, clock=args.clock, quick=args.quick)
        matmul = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in machine_rates["matmul"].items())
        print(f"matmul {matmul}; copy {machine_rates['copy'] / 1e9:,.1f} GB/s", flush=True)
        runs = []
        for energy in energies(args):
            stage = 0 if not args.whole else None
            while True:
                result = measure_run(args, [*words, f"energy={energy}"], stage, machine_rates, Path(temporary))
                runs.append({"energy": energy, "stage": stage, **result})
                show(runs[-1])
                if stage is None or args.quick or stage + 1 >= len(result["stages"]):
                    break
                stage += 1
    totals = [whole_schedule(energy, runs) for energy in dict.fromkeys(r["energy"] for r in runs)]
    for total in totals:
        print(f"energy={total['energy']}: {total['minutes']:.1f} minutes for the {total['steps']} steps of the schedule"
              + ("" if total["complete"] else ", stages missing"))  # fmt: skip
    verdicts = judge(runs)
    print("\n" + verdict_lines(verdicts, args.quick))
    return {"rates": machine_rates, "runs": runs, "schedules": totals, "verdicts": verdicts}


def energies(args: argparse.Namespace) -> list[str]:
    given = [word.removeprefix("energy=") for word in args.words if word.startswith("energy=")]
    return given[-1].split(",") if given else ["mvs"] if args.quick else ["none", "cls", "i2i", "mvs"]


def command_words(args: argparse.Namespace, temporary: Path) -> list[str]:
    """train.py's command line without the energy."""
    given = [word for word in args.words if not word.startswith("energy=")]
    if wrong := [word for word in given if "=" not in word and word[:1] not in "+~"]:
        raise UserError(f"{wrong[0]!r}: wanted words like train.py's, e.g. models=toybox schedule=smoke")
    words = [f"device={args.device}"] if not any(word.startswith("device=") for word in given) else []
    if not any(word.startswith(("prompt=", "prompt_file=")) for word in given):
        words.append(PROMPT)
    if args.paper_size:
        from benchmarks import architectures

        size = "tiny" if args.quick else "paper"
        if args.device == "cpu" and not args.quick:
            print("--paper-size on a CPU: minutes a step, and 16 GB of memory", flush=True)
        folders = architectures.write_weights(args.weights or temporary, size, args.device)
        words += architectures.words(folders, size)
    if args.quick:
        words += [word for word in QUICK if not any(g.startswith(word.partition("=")[0]) for g in given)]
    return [*words, *given]


def measure_run(
    args: argparse.Namespace,
    words: list[str],
    stage: int | None,
    machine_rates: dict[str, Any],
    temporary: Path,
    seconds: float | None = None,
) -> dict[str, Any]:
    """What `measured_run` found in a process of its own, or why it `failed`, e.g. for want of memory.

    Raises UserError, with train.py's line, for words that it does not take; subprocess.TimeoutExpired after `seconds`.
    """
    warmup = args.warmup if args.warmup is not None else 1 if args.quick else 4
    job = {"words": words, "stage": stage, "warmup": warmup, "repeats": args.repeats, "threads": args.threads}
    job |= {"clock": args.clock, "rates": machine_rates, "out": str(temporary / "result.json")}
    file = temporary / "job.json"
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(args.threads)} if args.threads else {})}
    file.write_text(json.dumps({**job, "launched": time.time()}), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.measured_run", str(file)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=seconds,
    )
    said = done.stderr.strip().splitlines() or [""]
    if done.returncode in (2, 130):
        raise UserError(said[-1].removeprefix("error: "))
    out = temporary / "result.json"
    result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    out.unlink(missing_ok=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        failed = said[-1][:200] or f"status {done.returncode}"
        return {"stages": [], **result, "resolutions": {}, "failed": failed}
    return result


def show(result: dict[str, Any]) -> None:
    """The tables of one process."""
    if "failed" in result:
        print(f"\nenergy={result['energy']}, stage {result['stage']}: failed: {result['failed']}\n", flush=True)
        return
    for resolution, found in result["resolutions"].items():
        s = found["seconds_per_step"]
        spread = f"median {s['median']:.4f}, best {s['best']:.4f}, " if s["median"] else ""
        print(f"\n{result['models']}, energy={result['energy']}, {resolution} pixels: {s['mean']:.4f} s/step "
              f"({spread}{found['steps_measured']} steps), peak memory {result['peak_memory_gb']:.2f} GB, "
              f"{found['share_of_peak'] or 0:.0%} of the matmul rate over the whole step")  # fmt: skip
        rows = [[name, f"{v['ms']:.1f}", f"{v['percent']:.1f}"] for name, v in found["sections"].items()]
        print(table(["section", "ms", "%"], rows))
        rows = [
            [name, n["dtype"], n["gflop"], n["ms"], n["gflop_per_s"], f"{n['share_of_matmul_rate']:.0%}",
             f"{n['share_of_roofline']:.0%}"]
            for name, n in found["networks"].items()
        ]  # fmt: skip
        print(table(["network", "dtype", "GFLOP/step", "ms/step", "GFLOP/s", "of matmul", "of roofline"], rows))
    print(f"start-up: {result['startup_seconds']:.1f} s to the first step, "
          f"{result['startup_and_first_step_seconds']:.1f} s with it\n", flush=True)  # fmt: skip


def whole_schedule(energy: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Minutes of all steps of the schedule, at each stage's mean time of a step."""
    mine = [r for r in runs if r["energy"] == energy]
    every = mine[0]["stages"]
    seconds, known = 0.0, 0
    for number, stage in enumerate(every):
        for r in mine:
            found = r["resolutions"].get(str(stage["resolution"]))
            if found and r["stage"] in (None, number):
                seconds += (stage["end"] - stage["first"]) * found["seconds_per_step"]["mean"]
                known += 1
    complete = 0 < known == len(every)
    return {"energy": energy, "steps": mine[0].get("steps", 0), "minutes": seconds / 60, "complete": complete}


def judge(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is wanted of a step, and whether it is so."""
    found = []
    for r in runs:
        if "failed" in r:
            found.append({"claim": f"energy={r['energy']} stage {r['stage']} runs: {r['failed']}", "holds": False})
        for resolution, stage in r["resolutions"].items():
            where = f"{r['models']} energy={r['energy']} {resolution} px"
            part = stage["share_of_networks"]["UNets and autoencoders"]
            unets = stage["share_of_networks"]["UNets"]
            claim = f"{where}: {part:.0%} of the step is in the diffusion networks (UNets alone {unets:.0%}; "
            found.append({"claim": f"{claim}wanted: {LEAST_SHARE:.0%})", "holds": part >= LEAST_SHARE})
            if drawn := stage["share_of_rasteriser"]:
                claim = f"{where}: {drawn:.0%} of the step is in the rasteriser (wanted: at most {MOST_RASTERISER:.0%})"
                found.append({"claim": claim, "holds": drawn <= MOST_RASTERISER})
            if every := stage["networks"].get("all"):
                rate = every["share_of_matmul_rate"]
                claim = f"{where}: they run at {rate:.0%} of the matmul rate (wanted: {LEAST_RATE:.0%})"
                found.append({"claim": claim, "holds": rate >= LEAST_RATE})
    if startups := [r["startup_seconds"] for r in runs if "failed" not in r]:
        claim = f"start-up {max(startups):.1f} s (wanted: below {MOST_STARTUP:g} s)"
        found.append({"claim": claim, "holds": max(startups) < MOST_STARTUP})
    wholes = {energy: whole_schedule(energy, runs) for energy in dict.fromkeys(r["energy"] for r in runs)}
    if all(energy in wholes and wholes[energy]["complete"] for energy in ("none", "mvs")):
        ratio = wholes["mvs"]["minutes"] / wholes["none"]["minutes"]
        claim = f"the schedule takes {ratio:.2f} times as long with energy=mvs as with none (one H200: {MOST_ENERGY})"
        judged = any(r.get("device") == "cuda" and r["models"] == "sd21" for r in runs)
        found.append({"claim": claim, "holds": ratio <= MOST_ENERGY if judged else None})
    return found


if __name__ == "__main__":
    sys.exit(main())
