"""The memory of small pieces of a training step, measured: the bytes of the tensors that are alive meanwhile."""

import weakref
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jointdreamer.cameras import Rig, sample_cameras
from jointdreamer.scenes.base import Render, Scene, check_render
from jointdreamer.schedules import Plan

TRIED = (16, 32)  # pixels of a side


class Live(TorchDispatchMode):
    """`now` and `peak`: bytes of the tensors that were made inside and are still alive, on any device.

    Backward counts where it runs in the calling thread: on the CPU and on `meta`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                # a tensor in oneDNN's own layout, packed weights for one, has no storage that can be seen
                if tensor.is_mkldnn:
                    self._see(tensor, id(tensor), tensor.nbytes)
                else:
                    storage = tensor.untyped_storage()
                    self._see(storage, storage._cdata, storage.nbytes())
        return out

    def _see(self, owner: Any, key: int, size: int) -> None:
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(owner, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class LiveOnCuda:
    """As `Live`, from the allocator of a GPU, whose backward runs in another thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "LiveOnCuda":
        self.start = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = torch.cuda.max_memory_allocated(self.device) - self.start

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated(self.device) - self.start


def live(device: torch.device) -> Any:
    return LiveOnCuda(device) if device.type == "cuda" else Live()


@dataclass(frozen=True)
class Cost:
    """Bytes that stay for backward, and the most that there are at a time, forward and backward."""

    kept: float
    peak: float


@dataclass(frozen=True)
class Line:
    """A cost that grows with the number of rays."""

    start: Cost
    slope: Cost  # per ray

    @classmethod
    def through(cls, rays: tuple[int, int], costs: tuple[Cost, Cost]) -> "Line":
        (n, m), (a, b) = rays, costs
        slope = Cost(*(max(0.0, (y - x) / (m - n)) for x, y in ((a.kept, b.kept), (a.peak, b.peak))))
        return cls(Cost(a.kept - n * slope.kept, a.peak - n * slope.peak), slope)

    def at(self, rays: float, margin: float = 1.0) -> Cost:
        return Cost(
            self.start.kept + margin * rays * self.slope.kept, self.start.peak + margin * rays * self.slope.peak
        )


def busiest(plan: Plan) -> SimpleNamespace:
    """The plan with everything at work that ever is: each number the largest it takes."""
    now = plan.at(0)
    now.shading, now.energy_weight = plan.max("shading"), plan.max("energy_weight")
    now.loss = SimpleNamespace(**{name: plan.max(f"loss.{name}") for name in vars(now.loss)})
    return now


class Trial:
    """Small pieces of a step of this run, on a copy of its scene; no generator of the run's is moved."""

    def __init__(self, plan: Plan, rig: Rig, scene: Scene, terms: Sequence[Any], device: torch.device):
        self.rig, self.device, self.now = rig, device, busiest(plan)
        self.terms = stand_ins(terms)
        self.scene = deepcopy(scene)
        self.generator = torch.Generator().manual_seed(0)
        with self.untraced():
            self.scene.before_step(0, self.generator)

    def untraced(self) -> Any:
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def render(self, size: int, chunk: int | None = None) -> Cost:
        """Of a render of size x size pixels and its backward pass."""
        cameras = sample_cameras(self.rig, size, self.generator).to(self.device)
        parameters = [p for group in self.scene.parameter_groups().values() for p in group]
        with self.untraced(), live(self.device) as counted:
            render = self.scene.render(cameras, self.now, self.generator, chunk)
            check_render(render, cameras, type(self.scene).__name__)
            kept = counted.now
            seen = [value for value in pictures(render).values() if value.requires_grad]
            loss: Any = sum(value.square().sum() for value in seen)
            if seen:
                torch.autograd.grad(loss, parameters, allow_unused=True)
        return Cost(kept, counted.peak)

    def teach(self, chunk: int | None = None) -> float:
        """The most bytes that a term takes, on top of the render that it sees."""
        size = TRIED[0]
        cameras = sample_cameras(self.rig, size, self.generator).to(self.device)
        with self.untraced(), torch.no_grad():
            render = self.scene.render(cameras, self.now, self.generator)
        peaks, kept = [0.0], 0.0  # what a term keeps is there while the next ones are asked
        for term in self.terms:
            leaves = {name: value.detach().requires_grad_(True) for name, value in pictures(render).items()}
            term.chunk = chunk
            with self.untraced(), live(self.device) as counted:
                losses = term(self.scene, replace(render, **leaves), cameras, self.now, self.generator)
                now = counted.now
                loss: Any = sum(losses.values())
                if isinstance(loss, Tensor) and loss.requires_grad:
                    torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            peaks.append(kept + counted.peak)
            kept += now
        return max(peaks)


def stand_ins(terms: Sequence[Any]) -> list[Any]:
    """Copies that share tensors and networks, so that what terms and their energies keep of a step is their own."""

    def shallow(one: Any) -> Any:
        other = copy(one)
        for name in ("_modules", "_buffers", "_parameters"):
            other.__dict__[name] = dict(other.__dict__[name])
        return other

    found = {id(term): shallow(term) for term in terms}
    for term in found.values():
        for name, child in term.__dict__["_modules"].items():
            term.__dict__["_modules"][name] = shallow(child) if child is not None else None
        for name, value in vars(term).items():
            if isinstance(value, list):  # other terms that it looks at
                term.__dict__[name] = [found.get(id(one), one) for one in value]
    return list(found.values())


def pictures(render: Render) -> dict[str, Tensor]:
    found = {field.name: getattr(render, field.name) for field in fields(render)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
