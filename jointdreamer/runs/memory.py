"""What a run will need, stage by stage, before its first step: so that it is refused early, or cut to fit.

    memory = plan_memory(plan, rig, scene, terms, device, budget_gb=8)
    render = scene.render(cameras, now, generator, memory.rays_per_chunk)

Nothing is known here of scenes, priors or energies. A copy of the scene renders two small pictures, forward and
backward, and each term is asked once, while the bytes that are alive are counted; what a render takes grows in a
straight line with its rays, what the terms take does not, since priors resize. Two things are assumptions: that later
objects fill a ray with no more than twice the samples of the first one, and what a device needs beyond its tensors.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from typing import Any, Literal

import torch

from jointdreamer.cameras import Rig
from jointdreamer.errors import UserError
from jointdreamer.machine import free_bytes, held_bytes
from jointdreamer.reading import is_out_of_memory
from jointdreamer.runs.trial import TRIED, Cost, Line, Trial
from jointdreamer.scenes.base import Scene
from jointdreamer.schedules import Plan

log = logging.getLogger(__name__)

GB = 1e9
MARGIN = 2.0  # on what grows with the rays. Seen: 0.072 of a ray's samples survive at first, 0.024 to 0.062 at the end
CHUNK_MARGIN = 2.0  # once more for a chunk of rays, which may be rows of the middle only
CHUNKS_OF_RAYS = (2**16, 2**15, 2**14, 2**13, 2**12, 2**11, 2**10)

# The outputs at the end, per pixel: 16 views of three pictures as bytes, in the sheet and in its parts; or a render and
# the frames that ffmpeg, twice, looks ahead at. Per point of the mesh's grid, and of a side of it. Per texel: as it is
# painted, as PNG, and in the file.
SHEET_BYTES = 16 * 3 * 3 * 4
FRAME_BYTES = 400 + 2 * 150
POINT_BYTES, FACE_BYTES = 26, 1500
TEXEL_BYTES = 12

CPU_GB = 0.2  # libraries loaded after the forecast, the compiler of the kernels, scratch of the convolutions
CUDA_GB = 0.9  # context, cuBLAS and cuDNN workspaces; from the literature, not measured here
CUDA_FRAGMENTS = 1.1


@dataclass(frozen=True)
class Demand:
    """What a run is made of, in bytes."""

    held: float  # there before the first step: the weights; on a CPU all that the process has
    moments: float  # of the optimiser
    n_views: int  # of all rigs together
    render: Line  # all rays at once
    chunked: Callable[[], Line]  # the same render a few rays at a time; asked where it matters
    teach: Callable[[int | None], float]  # what the terms take beyond the render, by images_per_chunk
    fixed: float = 0.0  # what the device takes for itself
    factor: float = 1.0  # on what comes and goes: an allocator's holes


def step_bytes(
    demand: Demand, resolution: int, rays_per_chunk: int | None = None, images_per_chunk: int | None = None
) -> float:
    """The most that a training step at this resolution has in memory at a time.

    The moments that may be it: the render, forward and backward, and the terms on top of what the render keeps.
    """
    rays = demand.n_views * resolution**2
    if rays_per_chunk is None or rays_per_chunk >= rays:
        render = demand.render.at(rays, MARGIN)
    else:
        kept = demand.chunked().at(rays, MARGIN).kept
        render = Cost(kept, kept + demand.render.at(rays_per_chunk, MARGIN * CHUNK_MARGIN).peak)
    moments = (render.peak, render.kept + demand.teach(images_per_chunk))
    return demand.held + demand.moments + demand.fixed + demand.factor * max(moments)


def export_bytes(resolution: int, mesh_resolution: int, texture: int = 0) -> float:
    """The most that the outputs of a finished run have in memory at a time, wherever the run is: on the CPU's side."""
    pictures, faces = resolution**2 * max(SHEET_BYTES, FRAME_BYTES), mesh_resolution**2 * FACE_BYTES
    return max(pictures, faces + mesh_resolution**3 * POINT_BYTES, faces + texture**2 * TEXEL_BYTES)


@dataclass(frozen=True)
class Memory:
    """How a run is cut, null for not at all, and what it will need."""

    rays_per_chunk: int | None
    images_per_chunk: int | None
    stages: tuple[tuple[int, float], ...]  # (resolution, GB), as they come
    limit_gb: float  # what there is, or the budget
    export_gb: float = 0.0  # with the outputs at the end, on the CPU's side

    @property
    def line(self) -> str:
        stages = ", ".join(f"{need:.1f} GB at {resolution} px" for resolution, need in self.stages)
        stages += f", {self.export_gb:.1f} GB for the outputs at the end" if self.export_gb else ""
        cuts = {"rays": self.rays_per_chunk, "images": self.images_per_chunk}
        said = " and ".join(f"{n} {name} at a time" for name, n in cuts.items() if n) or "nothing cut"
        return f"memory: about {stages}, of {self.limit_gb:.1f} GB; {said}"


def fit(
    demand: Demand,
    stages: Sequence[tuple[int, int]],  # (first step, resolution)
    limit: float,  # bytes
    rays_per_chunk: int | Literal["auto"] | None = "auto",
    images_per_chunk: int | Literal["auto"] | None = "auto",
) -> Memory:
    """The largest chunks with which every stage fits; where there is a choice, the rays are cut before the images.

    Cutting the images costs one more pass through the encoder, cutting the rays one through the field.
    Raises UserError, one line with what to do, if nothing fits.
    """
    rays = (None, *CHUNKS_OF_RAYS) if rays_per_chunk == "auto" else (rays_per_chunk,)
    images = (None, 1) if images_per_chunk == "auto" else (images_per_chunk,)
    cuts = [(r, i) for i in images for r in rays]
    worst = {}
    for cut in cuts:
        worst[cut] = max((step_bytes(demand, size, *cut), step, size) for step, size in stages)
        if worst[cut][0] <= limit:
            needs = tuple((size, step_bytes(demand, size, *cut) / GB) for _, size in stages)
            return Memory(*cut, needs, limit / GB)
    (r, i), (need, step, size) = min(worst.items(), key=lambda item: item[1])
    cut = f" even with memory.rays_per_chunk={r or 'null'} and memory.images_per_chunk={i or 'null'}"
    raise UserError(
        f"memory: step {step} at {size} pixels needs about {need / GB:.1f} GB{cut}, and there are {limit / GB:.1f} GB "
        f"({demand.held / GB:.1f} GB are taken before the first step): take a larger device or memory=... preset, "
        f"energy=none, fewer cameras.n_views, a lower schedule.resolution or "
        f"field.encoding.log2_table_size, or models=toybox"
    )


def plan_memory(
    plan: Plan,
    rig: Rig,
    scene: Scene,
    terms: Iterable[Any],  # of distillation/
    device: torch.device,
    budget_gb: float | None = None,
    rays_per_chunk: int | Literal["auto"] | None = "auto",
    images_per_chunk: int | Literal["auto"] | None = "auto",
    output: tuple[int, int, int] | None = None,
) -> Memory:
    """What this run will need where it is now, and how it is cut to fit into the budget and the device.

    budget_gb: what it may take, GB (1e9 bytes); null is all that the device has free.
    rays_per_chunk, images_per_chunk: a number, null for all at once, or auto for the largest that fits.
    output: the resolutions of the pictures, the mesh and its texture at the end; None for no outputs.

    Raises UserError, one line, for numbers below 1 and where a stage of the schedule, or the outputs, cannot fit.
    """
    for name, value in {"rays_per_chunk": rays_per_chunk, "images_per_chunk": images_per_chunk}.items():
        if isinstance(value, int) and value < 1:
            raise UserError(f"memory.{name}={value}: wanted a whole number from 1 up, auto, or null for all at once")
    if budget_gb is not None and budget_gb <= 0:
        raise UserError(f"memory.budget_gb={budget_gb}: wanted a number above 0, or null for all that is free")
    cuda, terms = device.type == "cuda", list(terms)
    held, fixed = held_bytes(device), (CUDA_GB if cuda else CPU_GB) * GB
    # a context on a GPU is there already and not among what is free
    limit = min(free_bytes(device) + held + (fixed if cuda else 0.0), inf if budget_gb is None else budget_gb * GB)

    trial, n_views = Trial(plan, rig, scene, terms, device), rig.n_rigs * rig.n_views

    def line(chunk: int | None = None) -> Line:
        small, large = TRIED
        costs = trial.render(small, chunk), trial.render(large, chunk)
        return Line.through((n_views * small**2, n_views * large**2), costs)

    @cache
    def teach(images: int | None) -> float:
        """Images all at once only where they are known to fit: on a CPU a process that takes too much is killed."""
        if images is None and not cuda and teach(1) * n_views > free_bytes(device):
            return teach(1) * n_views
        try:
            return trial.teach(images)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return inf

    groups = [scene.parameter_groups(), *(term.parameter_groups() for term in terms)]
    trained = sum(p.numel() * p.element_size() for group in groups for ps in group.values() for p in ps)
    demand = Demand(
        held=held,
        moments=2 * trained,
        n_views=n_views,
        render=line(),
        chunked=cache(lambda: line(n_views * TRIED[0] ** 2 // 4)),
        teach=teach,
        fixed=fixed,
        factor=CUDA_FRAGMENTS if cuda else 1.0,
    )
    memory = fit(demand, plan.stages("resolution"), limit, rays_per_chunk, images_per_chunk)
    if cuda:
        torch.cuda.empty_cache()
    if output is None:
        return memory
    ends = () if cuda else (held + 2 * trained + fixed, limit)  # on a GPU, held and limit are the card's
    return replace(memory, export_gb=forecast_outputs(*output, *ends) / GB)


def forecast_outputs(
    resolution: int, mesh_resolution: int, texture: int, held: float | None = None, limit: float | None = None
) -> float:
    """Bytes that the process will have on the CPU's side while it makes its outputs.

    held, limit: what it will have before, and may have; by default as it is now.
    Raises UserError, one line, if there are not so many: found now, not after the last step.
    """
    cpu = torch.device("cpu")
    held = held_bytes(cpu) if held is None else held
    limit = held_bytes(cpu) + free_bytes(cpu) if limit is None else limit
    need = export_bytes(resolution, mesh_resolution, texture)
    if held + need > limit:
        raise UserError(
            f"memory: the outputs at the end need about {(held + need) / GB:.1f} GB and there are {limit / GB:.1f} GB; "
            f"take a lower output.mesh_resolution (now {mesh_resolution}), output.texture (now {texture}) or "
            f"output.resolution (now {resolution})"
        )
    return held + need


def plan_as_before(pinned: Mapping[str, Any], options: Mapping[str, Any], plan: Callable[..., Memory]) -> Memory:
    """`plan(**options)`, with the cuts that the run began with in place of "auto": how it is cut changes its last bits.

    Where those do not fit any more it is cut anew, with a warning.
    """
    kept = {
        key: pinned[key]
        for key in ("rays_per_chunk", "images_per_chunk")
        if options.get(key, "auto") == "auto" and key in pinned
    }
    if kept:
        try:
            return plan(**{**options, **kept})
        except UserError as error:
            log.warning("cut otherwise than the run began, so that its last bits may differ: %s", error)
    return plan(**options)
