"""What each score distillation costs, a step's seconds and memory beside those of SDS.

    python -m benchmarks.distillations                          every method of `tables distillation`, without an energy
    python -m benchmarks.distillations --methods vsd,csd        two of them
    python -m benchmarks.distillations models=toybox seed=1     any words that train.py takes

Each is train.py in a process of its own, in the first stage (stretch of constant resolution) of its schedule, as
`benchmarks.step` measures it.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.command import options, run, table, verdict_lines
from benchmarks.step import command_words, measure_run
from jointdreamer.tables.definitions import METHODS, read_methods

MOST_VSD = 2.2  # times SDS


def main() -> int:
    parser = options("distillations", __doc__, repeats=32)
    parser.add_argument("words", nargs="*", help="for train.py, e.g. models=toybox seed=1")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas between them; jsd is SDS")
    parser.add_argument("--warmup", type=int, default=None, help="steps before those that count (4)")
    return run("distillations", parser, measure)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.machine import rates

    args.paper_size = False
    machine_rates = rates(args.device, clock=args.clock, quick=args.quick)
    methods = dict.fromkeys(["jsd", *read_methods("--methods", args.methods)])
    with tempfile.TemporaryDirectory() as temporary:
        words = command_words(args, Path(temporary))
        found = {}
        for method in methods:
            own = [*words, f"distillation={method}", "energy=none"]
            result = measure_run(args, own, 0, machine_rates, Path(temporary))
            found[method] = {"failed": result["failed"]} if "failed" in result else cost(result)
            print(f"{method}: {found[method]}", flush=True)
    rows = relative(found)
    print(table(["method", "s/step", "times SDS", "GB", "times SDS"], rows))
    verdicts = judge(found)
    print(verdict_lines(verdicts, args.quick))
    return {"rates": machine_rates, "methods": found, "verdicts": verdicts}


def cost(result: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step and GB at most, of the one resolution that was measured."""
    (stage,) = result["resolutions"].values()
    return {"seconds_per_step": stage["seconds_per_step"]["mean"], "peak_memory_gb": result["peak_memory_gb"]}


def relative(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row a method, beside SDS."""
    rows = []
    for method, one in found.items():
        if "failed" in one or "failed" in found["jsd"]:
            rows.append([METHODS[method], str(one.get("failed", "")), "-", "-", "-"])
            continue
        seconds, gb = (one[key] for key in ("seconds_per_step", "peak_memory_gb"))
        base = found["jsd"]
        more = [f"{seconds / base['seconds_per_step']:.2f}", f"{gb:.2f}", f"{gb / base['peak_memory_gb']:.2f}"]
        rows.append([METHODS[method], f"{seconds:.3f}", *more])
    return rows


def judge(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    verdicts = [
        {"claim": f"{METHODS[method]} runs: {one['failed']}", "holds": False}
        for method, one in found.items()
        if "failed" in one
    ]
    if not verdicts and "vsd" in found:
        times = found["vsd"]["seconds_per_step"] / found["jsd"]["seconds_per_step"]
        claim = f"a step of VSD takes {times:.2f} times as long as one of SDS (wanted: at most {MOST_VSD})"
        verdicts.append({"claim": claim, "holds": times <= MOST_VSD})
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
