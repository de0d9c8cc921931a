"""What the viewer costs and how fast it turns: `python -m benchmarks.viewer --threads 2 [energy=mvs ...]`

One training (models=toybox unless a word says otherwise) with a browser that nobody turns. Blocks of steps in which the
viewer serves it alternate with blocks in which it does not, so that both see the same object and the same machine; the
slow-down is the ratio of their times, pair by pair. Then the run's object is turned, at 256 pixels and at the size that
the viewer chooses: pictures a second, until the browser's end of the line has them. Wants viser.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.command import options, run, show, table, verdict_lines

SIDE, LIMIT = 256, 0.05  # pixels of the issue; how much training may be slowed
WARM = 20  # steps at the beginning that count for nothing: they compile


class Alternating:
    """A viewer that serves its browser in every other block of `block` steps; `seconds` of each step, by block."""

    def __init__(self, viewer: Any, block: int):
        self.viewer, self.block = viewer, block
        self.asked = 0  # steps done
        self.blocks: list[float] = []
        self._before = 0.0

    @property
    def watched(self) -> bool:
        """Asked once a step, at its end: what comes after belongs to this block."""
        clock, number = time.perf_counter(), (self.asked - WARM) // self.block
        if self.asked > WARM:
            place = (self.asked - 1 - WARM) // self.block
            self.blocks += [0.0] * (place + 1 - len(self.blocks))
            self.blocks[place] += clock - self._before
        self._before = clock
        self.asked += 1
        # on, off, off, on: what drifts slowly hits both alike
        return self.viewer.watched and (self.asked <= WARM or number % 4 in (0, 3))

    def show(self, *arguments: Any) -> None:
        self.viewer.show(*arguments)


def slow_down(blocks: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of on / off - 1 over pairs of blocks that are on, off, off, on, ..."""
    pairs = [sorted((i, i + 1), key=lambda number: number % 4 in (1, 2)) for i in range(0, len(blocks) - 1, 2)]
    ratios = [blocks[on] / blocks[off] - 1 for on, off in pairs]
    return fmean(ratios), stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")


def browser(port: int) -> subprocess.Popen:
    """A process that looks once and then only listens."""
    code = f"from benchmarks.fake_browser import FakeBrowser as F; b = F({port}, 300); b.look(); b.listen()"
    return subprocess.Popen([sys.executable, "-c", code])


def idle_cost(words: list[str], device: str, folder: Path, steps: int, block: int) -> list[float]:
    """The seconds of the blocks of a training in `folder`."""
    import train
    from jointdreamer.cli.main import composed
    from jointdreamer.errors import UserError
    from jointdreamer.viewer.server import free_port

    port = free_port("127.0.0.1", 0)
    words = ["prompt=a red robot with a blue hat", f"schedule.steps={steps}", "every.view=0", "output.views=0", *words]
    words += ["viewer=true", f"viewer.port={port}", f"device={device}", "name=measured"]
    cfg = composed("config", words, "toybox")
    found: list[Alternating] = []

    def optimise(training: Any, *rest: Any) -> bool:
        deadline = time.monotonic() + 60
        while not training.viewer.watched and time.monotonic() < deadline:
            time.sleep(0.01)
        found.append(Alternating(training.viewer, block))
        return train.optimise(replace(training, viewer=found[0]), *rest)

    looking = browser(port)
    try:
        status = train.train({**cfg, "out_dir": str(folder)}, optimise)
    finally:
        looking.kill()
        looking.wait()
    if status or not found:
        raise UserError(f"the training to be measured ended with status {status}")
    whole = (steps - 1 - WARM) // (4 * block) * 4
    return found[0].blocks[:whole]


def turned(run: Path, pictures: int, side: int | None) -> dict[str, float]:
    """Pictures a second of a run that is turned; side: pixels, what the viewer chooses by default."""
    from benchmarks.fake_browser import FakeBrowser
    from jointdreamer.viewer.server import open_server
    from jointdreamer.viewer.subjects import Subject
    from jointdreamer.viewer.window import Viewer

    viewer = Viewer(open_server("127.0.0.1", 0), [Subject.saved(run, "run")], SIDE, 32)
    if side is not None:
        viewer.pace.side = lambda seconds: side  # type: ignore[method-assign]
    viewer.controls._channels["normals"].value = False
    try:
        with FakeBrowser(viewer.server.get_port()) as looking:
            for number in range(-3, pictures):
                if number == 0:
                    looking.pictures.clear()
                    start = time.perf_counter()
                looking.look(position=(3.0, 0.01 * number, 0.3), size=(800, 800))
                before = len(looking.pictures)
                while len(looking.pictures) == before:
                    viewer.tick()
                    looking.hear(0.001)
            seconds = time.perf_counter() - start
            return {"per_second": pictures / seconds, "side": next(iter(viewer._seen.values())).side}
    finally:
        viewer.close()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    args.pairs = args.repeats
    block, pictures = (5, 5) if args.quick else (25, 60)
    steps = WARM + 1 + 2 * block * (args.pairs + args.pairs % 2)
    with tempfile.TemporaryDirectory() as folder:
        blocks = idle_cost(args.words, args.device, Path(folder), steps, block)
        (config,) = Path(folder).rglob("config.yaml")
        at_256, chosen = turned(config.parent, pictures, SIDE), turned(config.parent, pictures, None)
    slowed, error = slow_down(blocks)
    rows = [(f"turned, at {SIDE} px", at_256), ("turned, as it chooses", chosen)]
    print(table(["", "pictures/s", "pixels"], [[name, one["per_second"], one["side"]] for name, one in rows]))
    print(f"an idle browser slows training by {100 * slowed:.2f}% +- {100 * error:.2f}% ({len(blocks) // 2} pairs of "
          f"{block} steps, {show(sum(blocks) / len(blocks) / block)} s a step)")  # fmt: skip
    verdicts = [{"holds": slowed < LIMIT, "claim": f"an idle browser slows training by less than {LIMIT:.0%}"}]
    print(verdict_lines(verdicts, args.quick))
    return {"slow_down": slowed, "standard_error": error, "block_seconds": blocks, "at_256": at_256, "chosen": chosen,
            "verdicts": verdicts}  # fmt: skip


def main() -> int:
    parser = options("viewer", __doc__, repeats=12)
    parser.add_argument("words", nargs="*", help="settings of train.py")
    return run("viewer", parser, measure)


if __name__ == "__main__":
    raise SystemExit(main())
