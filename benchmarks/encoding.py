"""The hash encoding, backend by backend, beside a plain C loop of the same arithmetic.

    python -m benchmarks.encoding
    python -m benchmarks.encoding --points 1000000 --repeats 21

Two sizes: 8 levels x 2 features with 2^14 entries, and 16 x 2 with 2^19 (the paper's). All competitors take turns. The
last lines judge issue B: forward + backward at most 1.1 times the C loop, and at least 12 times faster than PyTorch.
"""

import argparse
import sys
from typing import Any, NamedTuple

from benchmarks.command import options, positive, run, table, verdict_lines
from benchmarks.timing import Prepare, milliseconds, paired_ratio, race

GROWTH = 1.447269237440378


class Size(NamedTuple):
    n_levels: int
    log2_table_size: int

    def __str__(self) -> str:
        return f"{self.n_levels} x 2, 2^{self.log2_table_size}"


SIZES = (Size(8, 14), Size(16, 19))
QUICK = (Size(2, 8),)

OPERATIONS = {
    "forward": "features",
    "backward": "gradient of the parameters",
    "backward with x": "gradients of the parameters and of the points",
    "position gradient": "what analytic normals take",
    "its derivative": "gradients of the parameters and of the features' gradient, through the position gradient",
}
C_LOOP = "C loop"
MOST_OF_C, LEAST_OF_TORCH = 1.1, 12.0


def main() -> int:
    parser = options("encoding", __doc__, repeats=11)
    parser.add_argument("--points", type=positive, default=None, help="points at a time (131072)")
    return run("encoding", parser, measure)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    n_points = args.points or (512 if args.quick else 131_072)
    args.points = n_points
    results, holds = [], []
    for size in QUICK if args.quick else SIZES:
        result = measure_size(size, n_points, args.repeats, args.device, args.clock)
        results.append(result)
        print(f"\n{size}, {n_points} points: median ms (best)")
        print(show(result))
        holds += judge(result)
    print("\n" + verdict_lines(holds, args.quick))
    return {"operations": OPERATIONS, "sizes": results, "verdicts": holds}


def measure_size(size: Size, n_points: int, repeats: int, device: str, clock: str) -> dict[str, Any]:
    """Times of every operation by every backend that runs on the device, and the reasons of those that do not."""
    entries, left_out = competitors(size, n_points, device)
    names = list(dict.fromkeys(name for by_name in entries.values() for name in by_name))
    times: dict[str, Any] = {operation: {} for operation in entries}
    seconds = {operation: race(by_name, repeats, device, clock) for operation, by_name in entries.items()}
    for operation, by_name in seconds.items():
        times[operation] = {name: milliseconds(s) for name, s in by_name.items()}
    step = {
        name: [f + b for f, b in zip(seconds["forward"][name], seconds["backward"][name], strict=True)]
        for name in names
    }
    times["forward + backward"] = {name: milliseconds(s) for name, s in step.items()}
    ratios = {one: {other: paired_ratio(step[one], step[other]) for other in names if other != one} for one in names}
    return {"size": size._asdict(), "times": times, "ratios": ratios, "left_out": left_out}


def competitors(size: Size, n_points: int, device: str) -> tuple[dict[str, dict[str, Prepare]], dict[str, str]]:
    """operation -> backend -> what `race` wants; and why a backend is left out. All have the same tables and points."""
    import torch

    from jointdreamer.errors import UserError, one_line
    from jointdreamer.scenes.nerf.encoding import HashEncoding, available_backends

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n_points, 3, generator=generator).to(device)
    found: dict[str, dict[str, Prepare]] = {operation: {} for operation in OPERATIONS}
    left_out: dict[str, str] = {}
    grad = torch.randn(n_points, 2 * size.n_levels, generator=generator).to(device)
    direction = torch.randn(n_points, 3, generator=generator).to(device)
    params = None
    for backend in available_backends():
        try:
            grid = HashEncoding(size.n_levels, 2, size.log2_table_size, 16, GROWTH, backend).to(device)
            if params is None:
                params = torch.randn(grid.params.shape, generator=generator).to(device)
            with torch.no_grad():
                grid.params.copy_(params)
            entries = {operation: prepare(operation, grid, x, grad, direction) for operation in OPERATIONS}
            grid(x[:8])
        except UserError as error:
            left_out[backend] = one_line(error)
            continue
        for operation, entry in entries.items():
            found[operation][backend] = entry
    if device == "cpu":
        loop, why = c_entries(size, x, grad, params)
        left_out |= {C_LOOP: why} if why else {}
        for operation, entry in loop.items():
            found[operation][C_LOOP] = entry
    for operation, by_name in found.items():
        check_same(operation, by_name)
    return found, left_out


def check_same(operation: str, by_name: dict[str, Prepare]) -> None:
    """A fast wrong kernel is no competitor: RuntimeError where results differ from the first one's (torch's).

    Loosely, as some compute in half precision; the backends' own tests are strict.
    """
    import torch

    reference = None
    for name, entry in by_name.items():
        output = as_tensor(entry()())
        reference = output if reference is None else reference
        if not torch.allclose(output.float(), reference, rtol=0, atol=0.02 * float(reference.abs().max())):
            raise RuntimeError(f"backend {name} disagrees in: {operation}")


def prepare(operation: str, grid: Any, x: Any, grad: Any, direction: Any) -> Prepare:
    """What `race` wants of one operation: the graph is made untimed, its traversal is timed."""
    import torch

    def ready() -> Any:
        points = x.detach().requires_grad_(operation == "backward with x")
        if operation == "forward":
            return lambda: grid(points)
        if operation == "position gradient":
            return lambda: grid.position_gradient(points, grad)
        if operation == "its derivative":
            slope = grad.detach().requires_grad_(True)
            out = grid.position_gradient(points, slope)
            return lambda: torch.autograd.grad(out, (grid.params, slope), direction)
        out = grid(points)
        wanted = (grid.params, points) if operation == "backward with x" else (grid.params,)
        return lambda: torch.autograd.grad(out, wanted, grad)

    return ready


def as_tensor(output: Any) -> Any:
    """The first of several outputs, flat: the gradient of the parameters, wherever there is one."""
    return (output[0] if isinstance(output, tuple) else output).detach().flatten()


def c_entries(size: Size, x: Any, grad: Any, params: Any) -> tuple[dict[str, Prepare], str | None]:
    """The C loop's operations, forward and backward, or why there are none."""
    import torch

    from benchmarks import c_loop
    from jointdreamer.scenes.nerf.encoding import HashEncoding

    loop = c_loop.load(n_features=2)
    if loop is None:
        return {}, "no cc with OpenMP here"
    grid = HashEncoding(size.n_levels, 2, size.log2_table_size, 16, GROWTH, "torch")
    with torch.no_grad():
        grid.params.copy_(params)

    def forward() -> Any:  # memory is asked for in the time, as the others do
        out = torch.empty(len(x), grid.out_features)
        loop.forward(grid, x, out)
        return out

    def backward() -> Any:
        out = torch.empty_like(grid.params, requires_grad=False)  # it zeroes them itself
        loop.backward(grid, x, grad, out)
        return out

    return {"forward": lambda: forward, "backward": lambda: backward}, None


def show(result: dict[str, Any]) -> str:
    """The table of one size, and a line for each backend that is left out."""
    times = result["times"]
    names = list(times["forward"])
    rows = [
        [operation, *(f"{t['median_ms']:.2f} ({t['best_ms']:.2f})" if (t := by_name.get(name)) else "-"
                      for name in names)]
        for operation, by_name in times.items()
    ]  # fmt: skip
    left_out = [f"{name}: left out, {why}" for name, why in result["left_out"].items()]
    return "\n".join([table(["", *names], rows), *left_out])


def judge(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims of issue B for the fastest of our backends: at most 1.1 times C, at least 12 times PyTorch."""
    size, ratios = Size(**result["size"]), result["ratios"]
    step = result["times"]["forward + backward"]
    ours = min(
        (name for name in step if name not in ("torch", C_LOOP)), key=lambda n: step[n]["median_ms"], default=None
    )
    if ours is None:
        return [{"holds": None, "claim": f"{size}: no compiled backend on this device"}]
    found = []
    if C_LOOP in step:
        ratio = ratios[ours][C_LOOP]
        claim = f"{size}: {ours} takes {ratio:.2f} times the C loop (wanted: at most {MOST_OF_C})"
        found.append({"holds": ratio <= MOST_OF_C, "claim": claim, "ratio": ratio})
    ratio = ratios["torch"][ours]
    claim = f"{size}: {ours} is {ratio:.1f} times faster than torch (wanted: at least {LEAST_OF_TORCH:g})"
    return [*found, {"holds": ratio >= LEAST_OF_TORCH, "claim": claim, "ratio": ratio}]


if __name__ == "__main__":
    sys.exit(main())
