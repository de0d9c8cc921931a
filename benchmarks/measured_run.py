"""One run of train.py with a stopwatch in it, in a process of its own: `python -m benchmarks.measured_run JOB.json`.

`benchmarks.step` starts it. The loop that runs is train.py's, on a scene, terms and optimiser whose methods are timed.
A job, all keys: words (the command line of train.py), stage (number, or null for the whole schedule as it is), warmup,
repeats (steps), threads, clock, launched (time.time() of the start), rates (as `machine.rates`), out (file to write).
"""

import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("UNet", "VAE")
RASTERISER = "rasteriser"


class Enough(BaseException):
    """Leaves train.py after the last step that is measured; no Exception, which the script would report."""


class Run:
    """What one run tells: its laps (one a step), the networks' costs, and when things happened."""

    def __init__(self, job: dict[str, Any]):
        self.job = job
        self.laps: list[dict[str, Any]] = []
        self.costs: dict[Any, Any] = {}  # (network, shapes) -> Operations of one call
        self.lap_costs: dict[tuple[str, ...], Any] = {}
        self.counted = False  # whether something was counted in this step, which takes time
        self.resolution: int | None = None
        self.ready: float | None = None  # seconds from the launch to the first step
        self.first_step: float | None = None
        self.setup_gb = self.peak_gb = 0.0
        self.info: dict[str, Any] = {}

    def since_launch(self) -> float:
        """Seconds since the process was asked for, by the job's clock."""
        return time.process_time() if self.job["clock"] == "cpu" else time.time() - self.job["launched"]

    # The loop of train.py, with a stopwatch in what it is given

    def optimise(self, training: Any, start: int, run: Any, logger: Any, stop: Any) -> bool:
        """`train.optimise` of a training whose parts are timed."""
        import train

        self.ready = self.since_launch()
        scene, watch = training.scene, self.watch

        def time_it(owner: Any, name: str, section: str) -> None:
            setattr(owner, name, watch.timed(section, getattr(owner, name)))

        time_it(scene, "before_step", "occupancy")
        time_it(scene, "render", "render")
        for term in training.terms:
            time_it(term.energy, "forward", "energy")
            time_it(term.prior, "predict", "text-to-image")
            term.prior.encode = self.encode(term.prior.encode)
        time_it(logger, "log", "log")
        time_it(run, "save", "save")
        time_it(training.optimizer, "zero_grad", "optimizer")
        training.optimizer.step = self.step(training.optimizer.step)
        training.plan.at = self.begin_step(training.plan.at)
        return train.optimise(training, start, run, logger, stop)

    def instrument(self, stack: ExitStack, device: str) -> None:
        """Time and count the frozen networks and autograd, until the stack is closed."""
        import torch
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        from benchmarks.timing import Stopwatch
        from jointdreamer.classifier.model import PairClassifier
        from jointdreamer.priors.novel_view import NovelView
        from jointdreamer.runs import pictures
        from jointdreamer.scenes.mesh import raster
        from jointdreamer.scenes.mesh import scene as mesh

        self.device = device
        self.watch = watch = Stopwatch(device, self.job["clock"])

        def put(owner: Any, name: str, new: Any) -> None:
            stack.enter_context(patch.object(owner, name, new))

        def time_it(owner: Any, name: str, section: str) -> None:
            put(owner, name, watch.timed(section, getattr(owner, name)))

        time_it(PairClassifier, "encode", "classifier")
        time_it(NovelView, "image_embedding", "image encoder")
        for name in ("backward", "grad"):
            time_it(torch.autograd, name, "backward")
        for name in ("save_views", "save_rows"):
            time_it(pictures, name, "pictures")
        for name in ("rasterize", "interpolate", "antialias"):
            time_it(mesh, name, RASTERISER)
        for function in (raster.Rasterize, raster.Interpolate, raster.Antialias):
            put(function, "backward", staticmethod(watch.timed(RASTERISER, function.backward)))
        put(UNet2DConditionModel, "__call__", self.network("UNet", UNet2DConditionModel.__call__))
        for name in ("encode", "decode"):
            put(AutoencoderKL, name, self.network("VAE", getattr(AutoencoderKL, name)))

    def begin_step(self, at: Any) -> Any:
        @wraps(at)
        def begin(step: int) -> Any:
            now = at(step)
            self.resolution = now.resolution
            return now

        return begin

    def network(self, name: str, function: Any) -> Any:
        """A frozen network: timed, and each new shape of its inputs counted once."""
        import torch

        from benchmarks.costs import Costs

        timed = self.watch.timed(name, function)

        @wraps(function)
        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return function(module, *args, **kwargs)
            shapes = tuple(tuple(a.shape) for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor))
            key = (id(module), function.__name__, shapes)
            inside = self.watch.path[-1:] == (name,)  # what a checkpoint computes again, within the backward
            path = self.watch.path if inside else (*self.watch.path, name)
            if key in self.costs:
                self.charge(path, self.costs[key])  # before: a checkpoint leaves by an exception
                return timed(module, *args, **kwargs)
            self.counted = True
            with self.watch.section(name), Costs() as costs:
                out = function(module, *args, **kwargs)
            self.costs[key] = costs.operations
            self.charge(path, costs.operations)
            return out

        return call

    def charge(self, path: tuple[str, ...], operations: Any) -> None:
        self.lap_costs.setdefault(path, Counter()).update(operations)

    def encode(self, function: Any) -> Any:
        """Image to latents; its backward is told from the rest by hooks on what goes in and comes out."""
        timed = self.watch.timed("encode", function)

        @wraps(function)
        def call(rgb: Any, *args: Any, **kwargs: Any) -> Any:
            before = Counter(self.lap_costs.get(("encode", "VAE"), {}))
            latents = timed(rgb, *args, **kwargs)
            # A frozen network's backward is the gradient of its inputs alone: as many operations as forward.
            operations = Counter(self.lap_costs.get(("encode", "VAE"), {})) - before
            if latents.requires_grad and rgb.requires_grad:

                def enter(_: Any) -> None:
                    self.watch.enter("VAE")
                    self.charge(self.watch.path, operations)

                latents.register_hook(enter)
                rgb.register_hook(lambda _: self.watch.leave("VAE"))
            return latents

        return call

    def step(self, function: Any) -> Any:
        timed = self.watch.timed("optimizer", function)

        @wraps(function)
        def step_and_lap(*args: Any, **kwargs: Any) -> Any:
            out = timed(*args, **kwargs)
            self.end_step()
            return out

        return step_and_lap

    def end_step(self) -> None:
        done, warmup, repeats = len(self.laps) + 1, self.job["warmup"], self.job["repeats"]
        plain = not self.watch.synchronized
        seconds, own = self.watch.lap(wait=not plain or done == warmup + repeats)
        if self.first_step is None:
            self.first_step = self.since_launch()
        self.laps.append({"seconds": seconds, "own": own, "counted": self.counted, "resolution": self.resolution,
                          "costs": self.lap_costs, "plain": plain})  # fmt: skip
        self.lap_costs, self.counted = {}, False
        if self.job["stage"] is None:
            if done == self.info["steps"]:
                raise Enough
            return
        if done == warmup:
            self.setup_gb = self.peak(reset=True)
            self.watch.synchronized = False  # first as it runs, without waiting for the device at every border
        if done == warmup + repeats:
            self.watch.synchronized = True
        if done == warmup + 2 * repeats:
            raise Enough

    def peak(self, reset: bool = False) -> float:
        import torch

        from jointdreamer.machine import peak_memory_gb

        most = peak_memory_gb()
        if reset and self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return most

    # What comes of it

    def measure(self, cfg: dict[str, Any]) -> int:
        """The task that `cli.main` calls with the resolved config: train.py, with the schedule of one stage."""
        import torch

        import train
        from jointdreamer.schedules import Plan

        if self.job["threads"]:
            torch.set_num_threads(self.job["threads"])
        plan = Plan(cfg["schedule"]).check()
        found = stages(plan)
        self.info = {
            "stages": found,
            "steps": plan.steps,
            "energy": cfg["energy"]["name"],
            "models": cfg["models"]["name"],
        }
        if self.job["stage"] is not None:
            now = plan.at(found[self.job["stage"]]["middle"])
            steps = self.job["warmup"] + 2 * self.job["repeats"] + 1
            cfg["schedule"] = {**constants(now), "steps": steps}
            cfg["every"] |= {"view": 0, "checkpoint": 0}
        cuda = cfg["device"] != "cpu" and torch.cuda.is_available()
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            self.instrument(stack, "cuda" if cuda else "cpu")
            try:
                status = train.train({**cfg, "out_dir": folder}, self.optimise)
            except Enough:
                status = 0
        self.peak_gb = self.peak()
        return status

    def result(self) -> dict[str, Any]:
        """Per resolution: seconds a step, the sections, the networks; and what holds for the whole process."""
        kept = self.laps[self.job["warmup"] :]
        by_resolution = {}
        for resolution in dict.fromkeys(lap["resolution"] for lap in kept):
            laps = [lap for lap in kept if lap["resolution"] == resolution and not lap["counted"]]
            if laps:
                by_resolution[str(resolution)] = summary(laps, self.job["rates"], self.device)
        return {
            **self.info,
            "device": self.device,
            "resolutions": by_resolution,
            "startup_seconds": self.ready,
            "startup_and_first_step_seconds": self.first_step,
            "peak_memory_gb": max(self.peak_gb, self.setup_gb),
            "peak_memory_of_steps_gb": self.peak_gb if self.device == "cuda" else None,
        }


def stages(plan: Any) -> list[dict[str, int]]:
    """The stretches of constant resolution: first step, one past the last, the step in the middle, pixels."""
    found: list[dict[str, int]] = []
    for step in range(plan.steps):
        resolution = plan.at(step).resolution
        if not found or found[-1]["resolution"] != resolution:
            found.append({"first": step, "end": step, "resolution": resolution})
        found[-1]["end"] = step + 1
    return [{**stage, "middle": (stage["first"] + stage["end"]) // 2} for stage in found]


def constants(now: SimpleNamespace) -> dict[str, Any]:
    """The plan's values at one step, as a schedule that never changes."""
    found: dict[str, Any] = {k: constants(v) if isinstance(v, SimpleNamespace) else v for k, v in vars(now).items()}
    if "guidance_scale" in found:  # schedules are written with the paper's s = s' - 1
        found["guidance_scale"] = found["guidance_scale"] - 1
    return found


def summary(laps: list[dict[str, Any]], rates: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """One stage in numbers, from its steps; the shares are of the steps whose sections were timed.

    Steps that nobody waited for on a GPU have a mean, and neither a median nor a best.
    """
    import statistics

    timed = [lap for lap in laps if not lap["plain"]]
    plain = [lap["seconds"] for lap in laps if lap["plain"]] or [lap["seconds"] for lap in timed]
    total = sum(lap["seconds"] for lap in timed)
    sections: dict[tuple[str, ...], float] = {}
    for lap in timed:
        for path, seconds in lap["own"].items():
            sections[path] = sections.get(path, 0.0) + seconds
    sections["everything else",] = total - sum(sections.values())
    shown = {" / ".join(path): {"ms": 1e3 * s / len(timed), "percent": 100 * s / total} for path, s in sections.items()}
    mean, apart = statistics.mean(plain), device == "cpu"
    found = networks(timed, sections, rates)
    return {
        "steps_measured": len(plain),
        "seconds_per_step": {
            "mean": mean,
            "median": statistics.median(plain) if apart else None,
            "best": min(plain) if apart else None,
        },
        "share_of_peak": found["all"]["gflop"]
        / mean
        / found["all"]["gflop_per_s"]
        * found["all"]["share_of_matmul_rate"]
        if "all" in found
        else None,
        "sections": shown,
        "share_of_networks": {
            "UNets": share(sections, ("UNet",)),
            "UNets and autoencoders": share(sections, NETWORKS),
        },
        "share_of_rasteriser": share(sections, (RASTERISER,)),
        "networks": found,
    }


def share(sections: dict[tuple[str, ...], float], names: tuple[str, ...]) -> float:
    """The part of the time that lies inside sections of these names."""
    return sum(s for path, s in sections.items() if set(path) & set(names)) / sum(sections.values())


def networks(
    laps: list[dict[str, Any]], sections: dict[tuple[str, ...], float], rates: dict[str, Any]
) -> dict[str, Any]:
    """Each network's FLOPs and bytes in a step, how fast they are done, and how near that is to the limits."""
    from benchmarks.costs import main_dtype, roofline_seconds, total_bytes, total_flops

    found: dict[str, Any] = {}
    together: Any = Counter()
    paths = dict.fromkeys(path for lap in laps for path in lap["costs"])
    for path in paths:
        operations: Any = Counter()
        for lap in laps:
            operations.update(lap["costs"].get(path, {}))
        together.update(operations)
        found[" / ".join(path)] = (operations, sections.get(path, 0.0))
    found["all"] = (together, sum(sections.get(path, 0.0) for path in paths))
    described = {}
    for name, (operations, seconds) in found.items():
        if not seconds:
            continue
        dtype, n = main_dtype(operations), len(laps)
        rate = total_flops(operations) / seconds
        described[name] = {
            "dtype": dtype,
            "gflop": total_flops(operations) / n / 1e9,
            "gbytes": total_bytes(operations) / n / 1e9,
            "ms": 1e3 * seconds / n,
            "gflop_per_s": rate / 1e9,
            "share_of_matmul_rate": rate / rates["matmul"].get(dtype, rates["matmul"]["float32"]),
            "share_of_roofline": roofline_seconds(operations, rates) / seconds,
        }
    return described


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from jointdreamer.cli import main as cli

    run = Run(job)
    sys.argv = ["train.py", *job["words"]]
    status = cli.main("config", run.measure)
    if status in (0, 1):  # 1: train.py failed, for want of memory perhaps; the other stages may not
        result = run.result() if status == 0 else run.info
        Path(job["out"]).write_text(json.dumps(result), encoding="utf-8")
    return status


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
