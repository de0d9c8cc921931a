"""One rank of a run of train.py whose steps and reductions are timed: `python -m benchmarks.ranked_run JOB.json`.

`benchmarks.ranks` starts it. A job, all keys: words (the command line of train.py), warmup, repeats (steps), out (file
that the first rank writes).
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measured_run import Enough


class Timed:
    """Seconds of each step, and within them of the reductions, and the bytes that these carry."""

    def __init__(self, job: dict[str, Any]):
        self.job = job
        self.laps: list[dict[str, float]] = []
        self.reducing, self.bytes, self.alone = 0.0, 0, 0.0

    def optimise(self, training: Any, start: int, run: Any, logger: Any, stop: Any) -> bool:
        """`train.optimise`, with a lap for each step; ends after those that count."""
        import torch

        import train
        from benchmarks.timing import synchronize

        ranks, device, at = training.ranks, training.accelerator.device.type, training.plan.at
        reduce, began = ranks._reduce, [time.perf_counter()]

        def timed(x: Any, *how: Any) -> None:
            synchronize(device)
            then = time.perf_counter()
            reduce(x, *how)
            synchronize(device)
            self.reducing += time.perf_counter() - then
            self.bytes += x.nbytes

        def lap(step: int) -> Any:
            synchronize(device)
            now = time.perf_counter()
            self.laps.append({"seconds": now - began[0], "reducing": self.reducing, "bytes": self.bytes})
            self.reducing, self.bytes, began[0] = 0.0, 0, now
            if len(self.laps) > self.job["warmup"] + self.job["repeats"]:
                biggest = torch.zeros(sum(p.numel() for p in parameters), device=training.accelerator.device)
                if ranks.count > 1:
                    self.alone = alone(reduce, biggest, device)
                raise Enough
            return at(step)

        ranks._reduce, training.plan.at = timed, lap
        parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
        return train.optimise(training, start, run, logger, stop)

    def measure(self, cfg: dict[str, Any]) -> int:
        import train

        cfg["every"] |= {"view": 0, "checkpoint": 0}
        with tempfile.TemporaryDirectory() as folder:
            try:
                return train.train({**cfg, "out_dir": folder} if "RANK" not in os.environ else cfg, self.optimise)
            except Enough:
                return 0


def alone(reduce: Any, x: Any, device: str, repeats: int = 5) -> float:
    """Seconds of a reduction of x with nothing to wait for: the best of several."""
    from benchmarks.timing import seconds_of

    return min(seconds_of(lambda: reduce(x), repeats, device))


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    from jointdreamer.cli import main as cli

    timed = Timed(job)
    sys.argv = ["train.py", *job["words"]]
    status = cli.main("config", timed.measure)
    if status == 0 and os.environ.get("RANK", "0") == "0":
        kept = timed.laps[job["warmup"] + 1 :]  # a lap ends where the next step begins: the first is empty
        Path(job["out"]).write_text(json.dumps({"laps": kept, "reduction_alone": timed.alone}), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
