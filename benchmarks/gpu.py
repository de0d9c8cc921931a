"""All checks and figures of a card in one command, in at most eight minutes, and one JSON.

    python -m benchmarks.gpu                     on a card: SD 2.1 and MVDream in full size, random weights
    python -m benchmarks.gpu --weights FOLDER    which keeps these weights for the next time
    python -m benchmarks.gpu --smoke             its whole path on a CPU with the toybox, in seconds each: no figures

First the kernels beside plain PyTorch on the CPU. Then a step of SDS, CLS, I2I, MVS, VSD and DMTet at 64, 256 and 512
pixels, each method in a process of its own that goes through the three: seconds, and memory at most. Then a profile of
steps of SDS at 64 pixels, which is saved beside the JSON. What the time does not suffice for is left out, and says so.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import RESULTS, options, positive, run, table, verdict_lines
from benchmarks.machine import rates
from benchmarks.render import FIELDS
from benchmarks.step import QUICK, ROOT, command_words, measure_run
from jointdreamer.errors import UserError

MINUTES = 8.0
PIXELS = (64, 256, 512)
METHODS = {
    "SDS": ["energy=none"],
    "MVS": ["energy=mvs"],
    "VSD": ["energy=none", "distillation=vsd"],
    "DMTet": ["energy=none", "scene=dmtet"],
    "I2I": ["energy=i2i"],
    "CLS": ["energy=cls"],
}
WANTED = {"a step of SDS at 64 pixels, s": 0.08, "MVS beside SDS": 1.08, "start-up to the first step, s": 10.0}
WANTED |= {"GB at most of SDS": 24.0}


def main() -> int:
    parser = options("gpu", __doc__, repeats=12)
    parser.add_argument("--smoke", action="store_true", help="the whole path with the toybox, on a CPU: no figures")
    parser.add_argument("--weights", type=Path, help="folder that keeps the random weights (a temporary one)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"that all of it may take ({MINUTES:g})")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"with commas between them ({', '.join(METHODS)})")
    parser.add_argument("--profile", type=positive, default=20, metavar="STEPS", help="that are profiled (20)")
    if not torch.cuda.is_available() and "--smoke" not in sys.argv and not {"-h", "--help"} & set(sys.argv):
        print("error: torch sees no CUDA device; python -m benchmarks.gpu --smoke tries its path on a CPU",
              file=sys.stderr)  # fmt: skip
        return 2
    return run("gpu", parser, measure)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    began, methods = time.monotonic(), args.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        raise UserError(f"--methods {unknown[0]}: wanted some of {', '.join(METHODS)}")
    args.quick = args.quick or args.smoke
    args.paper_size, args.warmup, args.words = not args.smoke, None, []
    if args.smoke:
        args.repeats, args.profile = 3, 2
    pixels = (8, 12) if args.smoke else PIXELS
    checks = kernels(args.device)
    print(verdict_lines(checks), flush=True)
    found: dict[str, Any] = {"kernels": checks, "rates": rates(args.device, quick=args.smoke), "methods": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        words = [*base_words(args, folder), *schedule(pixels, args.repeats)]

        def left() -> float:
            return 60 * args.minutes - (time.monotonic() - began)

        for method, own in ((name, METHODS[name]) for name in methods):
            more = [f"init_from={ball(folder / 'ball.ply')}"] if method == "DMTet" else []
            found["methods"][method] = one = method_costs(args, [*words, *own, *more], found["rates"], folder, left())
            print(f"{method}: {one}", flush=True)
        if left() > 30 or args.smoke:
            found["profile"] = profile(args, [*words, *METHODS["SDS"]], folder, left())
    found["minutes"] = (time.monotonic() - began) / 60
    rows = [
        [m, *(one.get("seconds", {}).get(str(p)) for p in pixels), one.get("gb")] for m, one in found["methods"].items()
    ]
    print("\n" + table(["method", *(f"s/step, {p} px" for p in pixels), "GB"], rows))
    found["verdicts"] = judge(found["methods"], args.quick)
    print(verdict_lines(found["verdicts"], args.quick) + f"\n{found['minutes']:.1f} minutes")
    return found


def base_words(args: argparse.Namespace, folder: Path) -> list[str]:
    """train.py's command line without method and schedule."""
    if args.smoke:
        own = ["models=toybox", "prompt=a green bear", f"device={args.device}"]
        return [*own, *(word for word in QUICK if not word.startswith("schedule."))]
    return command_words(args, folder)


def schedule(pixels: tuple[int, ...], steps: int) -> list[str]:
    """So many steps at each resolution."""
    knots = ",".join(f"[{number * steps},{size}]" for number, size in enumerate(pixels))
    return [f"schedule.steps={steps * len(pixels)}", f"schedule.resolution=[{knots}]", "schedule.energy_weight=1"]


def ball(file: Path) -> Path:
    """A closed mesh, for DMTet to start from."""
    import trimesh

    if not file.exists():
        trimesh.creation.icosphere(3, radius=0.5).export(file)
    return file


def method_costs(
    args: argparse.Namespace, words: list[str], machine_rates: dict[str, Any], folder: Path, seconds: float
) -> dict[str, Any]:
    """Seconds of a step by pixels, GB at most, start-up; or what stood in the way."""
    if seconds < 20 and not args.smoke:
        return {"left_out": "no time left"}
    try:
        result = measure_run(args, words, None, machine_rates, folder, seconds=None if args.smoke else seconds)
    except subprocess.TimeoutExpired:
        return {"left_out": "no time left"}
    except UserError as error:
        return {"failed": str(error)}
    if "failed" in result:
        return {"failed": result["failed"]}
    by_pixels = result["resolutions"]
    return {
        "seconds": {size: stage["seconds_per_step"]["mean"] for size, stage in by_pixels.items()},
        "networks": {size: stage["networks"] for size, stage in by_pixels.items()},
        "gb": result["peak_memory_gb"],
        "startup": result["startup_seconds"],
        "startup_and_first_step": result["startup_and_first_step_seconds"],
    }


def judge(methods: dict[str, dict[str, Any]], quick: bool) -> list[dict[str, Any]]:
    """What is wanted of one H200, and whether it is so."""
    seconds = {name: one["seconds"] for name, one in methods.items() if "seconds" in one}
    found = [
        {"claim": f"{name} runs: {one.get('failed') or one['left_out']}", "holds": "left_out" in one and None}
        for name, one in methods.items()
        if "seconds" not in one
    ]
    numbers: dict[str, float] = {}
    if "SDS" in seconds:
        smallest = min(seconds["SDS"], key=int)
        numbers["a step of SDS at 64 pixels, s"] = seconds["SDS"][smallest]
        numbers["start-up to the first step, s"] = methods["SDS"]["startup"]
        numbers["GB at most of SDS"] = methods["SDS"]["gb"]
        if "MVS" in seconds:
            numbers["MVS beside SDS"] = seconds["MVS"][smallest] / seconds["SDS"][smallest]
    for name, number in numbers.items():
        claim = f"{name}: {number:.3g} (wanted: at most {WANTED[name]:g})"
        found.append({"claim": claim, "holds": None if quick else number <= WANTED[name]})
    return found


# Kernels


def kernels(device: str) -> list[dict[str, Any]]:
    """What runs on the device beside plain PyTorch on the CPU, forward and backward."""
    found = []
    for name, (check, most) in CHECKS.items():
        try:
            difference = check(device)
            claim = f"{name}: {difference:.1e} from plain PyTorch on the CPU (at most {most:g})"
            found.append({"claim": claim, "difference": difference, "holds": difference <= most})
        except Exception as error:  # one kernel that cannot be compiled is a line, and no end of the others
            found.append({"claim": f"{name}: {type(error).__name__}: {str(error)[:200]}", "holds": False})
    return found


def apart(one: Tensor, other: Tensor) -> float:
    """How far two tensors are apart, relative to the second."""
    one, other = one.detach().cpu().double(), other.detach().cpu().double()
    return float((one - other).norm() / other.norm().clamp_min(1e-12))


def check_encoding(device: str) -> float:
    from jointdreamer.scenes.nerf.encoding import HashEncoding

    torch.manual_seed(0)
    plain, fast = (HashEncoding(8, log2_table_size=14, backend=backend) for backend in ("torch", "auto"))
    torch.nn.init.normal_(plain.params)
    fast.load_state_dict(plain.state_dict())
    x, weights = torch.rand(4096, 3), torch.randn(4096, 16)
    for encoding, where in ((plain, "cpu"), (fast.to(device), device)):
        (encoding(x.to(where)) * weights.to(where)).sum().backward()
    differences = [apart(fast(x.to(device)), plain(x)), apart(gradient(fast.params), gradient(plain.params))]
    return max(differences)


def check_volume(device: str) -> float:
    from jointdreamer.cameras import orbit_cameras
    from jointdreamer.scenes.background import SphericalBackground
    from jointdreamer.scenes.nerf.field import HashGridField
    from jointdreamer.scenes.nerf.scene import NeRF
    from jointdreamer.scenes.nerf.volume import VolumeRenderer

    torch.manual_seed(0)
    field = HashGridField(**FIELDS["toybox"])
    plain = NeRF(field, SphericalBackground(), VolumeRenderer(n_samples=96, backend="torch"))
    fast = NeRF(copy.deepcopy(field), copy.deepcopy(plain.background), VolumeRenderer(n_samples=96)).to(device)
    seen = []
    for scene, where in ((plain, "cpu"), (fast, device)):
        render = scene.render(orbit_cameras(2, 24).to(where))
        (render.rgb.square().mean() + render.opacity.mean()).backward()
        last = list(scene.field.parameters())[-1]
        seen.append((render.rgb, render.opacity, gradient(last)))
    return max(apart(fast_part, part) for part, fast_part in zip(*seen, strict=True))


def check_raster(device: str) -> float:
    import trimesh

    from jointdreamer.cameras import orbit_cameras
    from jointdreamer.scenes.mesh.raster import interpolate, rasterize
    from jointdreamer.scenes.mesh.scene import to_clip

    mesh = trimesh.creation.icosphere(3, radius=0.5)
    faces, size = torch.tensor(mesh.faces), (48, 48)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)
    images = []
    for where, backend in (("cpu", "torch"), (device, "auto")):
        points, own = vertices.to(where).requires_grad_(True), faces.to(where)
        clip = to_clip(points, orbit_cameras(2, 48).to(where)).flatten(0, 1)
        image = interpolate(points, rasterize(clip, own, size, backend), own, backend)
        image.square().sum().backward()
        images.append((image, gradient(points)))
    return max(apart(fast, plain) for plain, fast in zip(*images, strict=True))


def check_optimizer(device: str) -> float:
    from jointdreamer.optim import build_optimizer

    results = []
    for where in ("cpu", device):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(1000).to(where))
        optimizer = build_optimizer({"geometry": [parameter]}, eps=1e-8)
        for _ in range(3):
            optimizer.zero_grad()
            parameter.square().sum().backward()
            optimizer.step(SimpleNamespace(geometry=0.01))
        results.append(parameter)
    return apart(results[1], results[0])


def gradient(parameter: Tensor) -> Tensor:
    """Its gradient. Raises RuntimeError without one."""
    if parameter.grad is None:
        raise RuntimeError("no gradient arrived")
    return parameter.grad


CHECKS = {  # and how far they may be apart
    "hash encoding": (check_encoding, 1e-4),
    "volume renderer": (check_volume, 2e-2),  # a sample on the border of what is pruned is there or not
    "rasteriser": (check_raster, 2e-2),  # so is a pixel on an edge
    "fused AdamW": (check_optimizer, 1e-5),
}


# The profile


def profile(args: argparse.Namespace, words: list[str], folder: Path, seconds: float) -> dict[str, Any]:
    """Steps of a run under torch's profiler: the operations that take longest, and where the trace lies."""
    traces = (args.out or RESULTS / "gpu.json").parent
    trace = folder / "trace.json.gz" if args.smoke and args.out is None else traces / "gpu-profile.json.gz"
    job = {"words": words, "steps": args.profile, "trace": str(trace), "out": str(folder / "profile.json")}
    file = folder / "profile_job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.profiled_run", str(file)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(seconds, 30))
    except subprocess.TimeoutExpired:
        return {"left_out": "no time left"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:300]}
    return {"trace": trace.name, **json.loads((folder / "profile.json").read_text(encoding="utf-8"))}


if __name__ == "__main__":
    sys.exit(main())
