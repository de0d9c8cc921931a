"""How OpenMP's threads should wait for each other: asleep, or spinning, alone on the machine and beside a busy process.

    python -m benchmarks.waiting
    python -m benchmarks.waiting --threads 4 --repeats 8

Forward and backward of the toybox's text-to-image UNet on eight views; each policy is a process of its own, because
OpenMP reads it once. Policies take turns. For a machine that does nothing else.
"""

import argparse
import os
import subprocess
import sys
from statistics import median
from typing import Any

from benchmarks.command import options, positive, run, table

POLICIES = {
    "passive": {"OMP_WAIT_POLICY": "passive"},  # ours: jointdreamer/__init__.py
    "spin 3,000 times": {"GOMP_SPINCOUNT": "3000"},
    "spin 30,000 times": {"GOMP_SPINCOUNT": "30000"},
    "spin 300,000 times": {"GOMP_SPINCOUNT": "300000"},  # libgomp's default
}
STEP = """
import sys, time, torch
from diffusers import UNet2DConditionModel
from jointdreamer.evaluation.networks import TOYBOX
threads, repeats, views = map(int, sys.argv[1:])
torch.set_num_threads(threads)
unet = UNet2DConditionModel.from_pretrained(TOYBOX / "text_to_image" / "unet", torch_dtype=torch.float32)
x = torch.randn(views, unet.config.in_channels, 16, 16, requires_grad=True)
text = torch.randn(views, 77, unet.config.cross_attention_dim)
for repeat in range(repeats + 2):
    began = time.perf_counter()
    unet(x, 500, text)[0].sum().backward()
    if repeat > 1:
        print(time.perf_counter() - began)
"""


def main() -> int:
    parser = options("waiting", __doc__, repeats=4)
    parser.add_argument("--rounds", type=positive, default=2, help="processes of each policy (2)")
    return run("waiting", parser, measure)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    args.threads = args.threads or 2
    seconds: dict[str, dict[str, list[float]]] = {name: {"alone": [], "busy": []} for name in POLICIES}
    for beside in ("alone", "busy"):
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside == "busy" else None
        try:
            for _ in range(1 if args.quick else args.rounds):
                for name, policy in POLICIES.items():
                    seconds[name][beside] += times(policy, args.threads, args.repeats, 1 if args.quick else 8)
        finally:
            if neighbour is not None:
                neighbour.kill()
                neighbour.wait()
    rows = [[name, *(median(found[beside]) for beside in ("alone", "busy"))] for name, found in seconds.items()]
    print(table(["seconds, median", "alone", "beside a busy process"], rows))
    return {"seconds": seconds}


def times(policy: dict[str, str], threads: int, repeats: int, views: int) -> list[float]:
    """Seconds of each repeat, in a new process."""
    others = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-c", STEP, str(threads), str(repeats), str(views)]
    done = subprocess.run(command, env=others | policy, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


if __name__ == "__main__":
    sys.exit(main())
