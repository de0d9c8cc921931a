"""Steps of train.py under torch's profiler, in a process of its own: `python -m benchmarks.profiled_run JOB.json`.

`benchmarks.gpu` starts it. A job, all keys: words (the command line of train.py), steps (of the profile), trace (file
that Perfetto and chrome://tracing read), out (JSON with the operations that take longest).
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measured_run import Enough

WARM_UP = 3
MOST = 40  # operations


class Profiled:
    def __init__(self, job: dict[str, Any]):
        self.job = job
        self.begun: Any = None

    def optimise(self, training: Any, start: int, run: Any, logger: Any, stop: Any) -> bool:
        """`train.optimise`, of which steps after the first few are profiled; it ends with them."""
        import train

        at, first = training.plan.at, min(WARM_UP, training.plan.steps - 1)
        last = min(first + self.job["steps"], training.plan.steps - 1)

        def begin(step: int) -> Any:
            if step == first:
                from torch.profiler import profile

                self.begun = profile(record_shapes=True)
                self.begun.__enter__()
            if step == last and self.begun is not None and step > first:
                self.begun.__exit__(None, None, None)
                self.write(last - first)
                raise Enough
            return at(0)  # the first resolution throughout

        training.plan.at = begin
        return train.optimise(training, start, run, logger, stop)

    def write(self, steps: int) -> None:
        self.begun.export_chrome_trace(self.job["trace"])
        averages, key = self.begun.key_averages(), "self_device_time_total"
        if not any(getattr(one, key, 0) for one in averages):
            key = "self_cpu_time_total"
        rows = sorted(averages, key=lambda one: -getattr(one, key))[:MOST]
        operations = [
            {"name": one.key, "calls_per_step": one.count / steps, "ms_per_step": getattr(one, key) / 1e3 / steps}
            for one in rows
        ]
        found = {"steps": steps, "time": key, "operations": operations}
        Path(self.job["out"]).write_text(json.dumps(found), encoding="utf-8")

    def measure(self, cfg: dict[str, Any]) -> int:
        import train

        cfg["every"] |= {"view": 0, "checkpoint": 0}
        with tempfile.TemporaryDirectory() as folder:
            try:
                return train.train({**cfg, "out_dir": folder}, self.optimise)
            except Enough:
                return 0


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    from jointdreamer.cli import main as cli

    sys.argv = ["train.py", *job["words"]]
    return cli.main("config", Profiled(job).measure)


if __name__ == "__main__":
    sys.exit(main())
