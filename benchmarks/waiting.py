"""How OpenMP's threads should wait for each other: asleep, or spinning, alone on the machine and beside a busy process.

    python -m benchmarks.waiting
    python -m benchmarks.waiting --threads 4 --repeats 8

Forward and backward of the toybox's text-to-image UNet on eight views; each policy is a process of its own, because
OpenMP reads it once; they take turns, one at work while the others sleep. For a machine that does nothing else.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

from benchmarks.command import options, positive, run, table
from jointdreamer.errors import UserError

POLICIES = {
    "spinning while alone": {},  # ours: jointdreamer/kernels/waiting.py
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 3,000 times": {"GOMP_SPINCOUNT": "3000"},
    "spin 30,000 times": {"GOMP_SPINCOUNT": "30000"},
    "spin 300,000 times": {"GOMP_SPINCOUNT": "300000"},  # libgomp's default
}
QUIET = 2.5  # seconds before a turn: whoever watches what others do looks back one
STEP = """
import sys, time, torch
from diffusers import UNet2DConditionModel
from jointdreamer.evaluation.networks import TOYBOX
from jointdreamer.kernels.waiting import spinning_while_alone
threads, repeats, views = map(int, sys.argv[1:])
torch.set_num_threads(threads)
unet = UNet2DConditionModel.from_pretrained(TOYBOX / "text_to_image" / "unet", torch_dtype=torch.float32)
x = torch.randn(views, unet.config.in_channels, 16, 16, requires_grad=True)
text = torch.randn(views, 77, unet.config.cross_attention_dim)
with spinning_while_alone():
    for line in sys.stdin:
        for repeat in range(repeats + 2):
            began = time.perf_counter()
            unet(x, 500, text)[0].sum().backward()
            if repeat > 1:
                print(time.perf_counter() - began, flush=True)
"""


def main() -> int:
    parser = options("waiting", __doc__, repeats=4)
    parser.add_argument("--rounds", type=positive, default=2, help="turns of each policy (2)")
    return run("waiting", parser, measure)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    args.threads = args.threads or 2
    views, rounds = (1, 1) if args.quick else (8, args.rounds)
    seconds: dict[str, dict[str, list[float]]] = {name: {"alone": [], "busy": []} for name in POLICIES}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(policy, args, views)) for name, policy in POLICIES.items()}
        for beside in ("alone", "busy"):
            if beside == "busy":
                neighbour = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                stack.callback(neighbour.kill)
            for _ in range(rounds):
                for name, process in workers.items():
                    seconds[name][beside] += turn(process, args.repeats)
    rows = [[name, *(median(found[beside]) for beside in ("alone", "busy"))] for name, found in seconds.items()]
    print(table(["seconds, median", "alone", "beside a busy process"], rows))
    return {"seconds": seconds}


@contextmanager
def worker(policy: dict[str, str], args: argparse.Namespace, views: int) -> Iterator[subprocess.Popen]:
    """A process that does its repeats whenever it is sent a line, and says how long each took."""
    others = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-c", STEP, str(args.threads), str(args.repeats), str(views)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=others | policy, text=True, **pipes) as process:
        yield process  # whose input is closed at the end


def turn(process: subprocess.Popen, repeats: int) -> list[float]:
    """Seconds of each repeat. Raises UserError if the process ended."""
    assert process.stdin is not None and process.stdout is not None
    time.sleep(QUIET)
    process.stdin.write("\n")
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(repeats)]
    if not lines[-1]:
        raise UserError("a measuring process ended: are the toybox's weights there?")
    return [float(line) for line in lines]


if __name__ == "__main__":
    sys.exit(main())
