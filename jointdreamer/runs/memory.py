"""What a run will need, stage by stage, before its first step: so that it is refused early, or cut to fit.

    memory = plan_memory(plan, rig, renderer, field, guidance, energy, device, budget_gb=8)
    render = renderer(..., chunk=memory.rays_per_chunk)
    latents = guidance.encode(render.rgb, generator, chunk=memory.images_per_chunk)

The frozen networks are not guessed at: their twins without weights run once on torch's `meta` device, where tensors
have a size and no content, while `Live` counts what is alive. The renderer's bytes per sample come from the same count
on a CPU, and are written down here (tests/test_memory.py counts again). Two things are assumptions: how many samples a
ray will have, and what a device needs beyond its tensors.
"""

import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jointdreamer.cameras import Rig
from jointdreamer.errors import UserError
from jointdreamer.priors.autoencoder import scale_factor
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.volume import MAX_CANDIDATES, VolumeRenderer
from jointdreamer.schedules import Plan

log = logging.getLogger(__name__)

GB = 1e9
TEXT_LENGTH = 77

# Samples of a ray, as a share of renderer.n_samples, that survive. Seen: 0.072 at the start, where the blob is widest,
# 0.024 to 0.062 in a dozen finished toybox objects. Twice the largest; and a chunk may be rows of the middle only.
SHARE = 0.15
SHARE_OF_CHUNK = 0.3
# Candidates: samples in the box around the occupied cells. Seen at the start: 0.16; the whole box would be about 0.6.
CANDIDATES = 0.35
CANDIDATE_BYTES = 90
SAMPLE_BYTES = 4  # of a chunk's sample between forward and backward: its distance
RAY_BYTES = 400  # pixels, their gradients, rays
CHUNKS_OF_RAYS = (2**16, 2**15, 2**14, 2**13, 2**12, 2**11, 2**10)

# The outputs at the end, per pixel: 16 views of three pictures as bytes, in the sheet and in its parts; or a render and
# the frames that ffmpeg, twice, looks ahead at. Per point of the mesh's grid, and of a side of it.
SHEET_BYTES = 16 * 3 * 3 * 4
FRAME_BYTES = RAY_BYTES + 2 * 150
POINT_BYTES, FACE_BYTES = 26, 1500

CPU_GB = 0.2  # libraries loaded after the forecast, the compiler of the kernels, scratch of the convolutions
CUDA_GB = 0.9  # context, cuBLAS and cuDNN workspaces; from the literature, not measured here
CUDA_FRAGMENTS = 1.1


# ------------------------------------------------------------------------------------------------------------ counting


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
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class FusedAttention(TorchFunctionMode):
    """Attention as the fused kernels do it: no matrix of all pairs. On `meta` torch would count the plain formula."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx, *grads):
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


@dataclass(frozen=True)
class Cost:
    """Bytes that stay for backward, and the most that there are at a time, forward and backward."""

    kept: float
    peak: float


def twin(network: Any) -> Any:
    """The network without its weights, on `meta`."""
    with torch.device("meta"):
        empty = type(network).from_config(network.config)
    return nn.Module.to(empty, network.dtype).eval().requires_grad_(False)


def encoder_cost(vae: Any, image_size: int) -> Cost:
    """Of one image through the encoder of an AutoencoderKL and back."""
    vae = twin(vae)
    image = torch.empty(1, 3, image_size, image_size, dtype=vae.dtype, device="meta", requires_grad=True)
    with FusedAttention(), Live() as live:
        posterior = vae.encode(image).latent_dist
        latents = posterior.mean.float() + posterior.std.float()
        kept = live.now
        latents.sum().backward()
    return Cost(kept, live.peak)


def decoder_cost(vae: Any, latent_size: int) -> Cost:
    """Of one image through the decoder of an AutoencoderKL or AutoencoderTiny and back."""
    vae = twin(vae)
    shape = (1, vae.config.latent_channels, latent_size, latent_size)
    latents = torch.empty(shape, dtype=vae.dtype, device="meta", requires_grad=True)
    with FusedAttention(), Live() as live:
        image = vae.decode(latents).sample.float()
        kept = live.now
        image.sum().backward()
    return Cost(kept, live.peak)


@torch.no_grad()
def unet_peak(unet: Any, rows: int, size: int) -> int:
    """Bytes of one call of a UNet2DConditionModel on `rows` latents of size x size, without a graph."""
    unet = twin(unet)
    config, made = unet.config, {"dtype": unet.dtype, "device": "meta"}
    inputs: dict[str, Any] = {
        "sample": torch.empty(rows, config.in_channels, size, size, **made),
        "timestep": torch.empty(rows, dtype=torch.long, device="meta"),
        "encoder_hidden_states": torch.empty(rows, TEXT_LENGTH, config.cross_attention_dim, **made),
    }
    if config.class_embed_type == "projection":
        inputs["class_labels"] = torch.empty(rows, config.projection_class_embeddings_input_dim, **made)
    with FusedAttention(), Live() as live:
        unet(**inputs, return_dict=False)
    return live.peak


def networks_peak(owners: Sequence[Any], n_images: int) -> float:
    """The largest call without a graph among all that have a `unet`, and perhaps a `vae` with its `image_size`.

    Both halves of the guidance in one call of the UNet. Other networks count with their weights alone.
    """
    peaks = [0.0]
    for owner in owners:
        unet, vae = getattr(owner, "unet", None), getattr(owner, "vae", None)
        if unet is not None:
            size = owner.image_size // scale_factor(vae) if vae is not None else unet.config.sample_size
            peaks.append(unet_peak(unet, 2 * n_images, size))
    return max(peaks)


def sample_cost(n_features: int, normals: bool, encoding: str, rays: str, hidden: int = 0) -> Cost:
    """Bytes for each sample of the hash grid field and the compositing, as `Live` counts them in float32.

    n_features: what the encoding gives, levels x features. encoding, rays: the backends of encoding and renderer;
    encoding on `torch` holds all corners of a level at a time. hidden: width of the field's networks where they see all
    samples at once, as on a GPU; 0 where they see them block by block.
    """
    kept = 200 + 8 * n_features if normals else 120 + 4 * n_features
    if rays == "numba":  # without the products of weights and values
        kept -= 80
    if encoding == "torch":
        peak = 376 + 16 * n_features if normals else 345 + 4.3 * n_features
    else:  # at the end of forward, or in the middle of backward
        peak = (
            max(kept + (60 if rays == "numba" else 64), 84 + 14 * n_features)
            if normals
            else max(kept + 24, 16 + 12 * n_features)
        )
    return Cost(kept, peak + 12 * hidden)


# ---------------------------------------------------------------------------------------------------------- predicting


@dataclass(frozen=True)
class Demand:
    """What a run is made of, in bytes where it is not a number."""

    held: float  # there before the first step: the weights; on a CPU all that the process has
    trained: float  # gradients and the optimiser's moments
    n_views: int  # of all rigs together
    n_samples: int  # renderer.n_samples
    sample: Cost  # of one sample that survives
    image: Cost  # of one image through the encoder
    networks: (
        float  # the largest call of frozen networks behind the encoder, with what it keeps for an energy's gradient
    )
    fixed: float = 0.0  # what the device takes for itself
    factor: float = 1.0  # on what comes and goes: an allocator's holes


def step_bytes(
    demand: Demand, resolution: int, rays_per_chunk: int | None = None, images_per_chunk: int | None = None
) -> float:
    """The most that a training step at this resolution has in memory at a time.

    The moments that may be it: the march, the render (forward and backward), the encoder (on top of what the render
    keeps), and the frozen networks (on top of what both keep).
    """
    rays = demand.n_views * resolution**2
    chunk = min(rays_per_chunk or rays, rays)
    images = min(images_per_chunk or demand.n_views, demand.n_views)
    marched = min(chunk, MAX_CANDIDATES // (demand.n_samples + 1)) * demand.n_samples * CANDIDATES * CANDIDATE_BYTES
    samples = rays * demand.n_samples * SHARE
    if chunk == rays:
        render = Cost(samples * demand.sample.kept, samples * demand.sample.peak)
    else:
        at_a_time = min(samples, chunk * demand.n_samples * SHARE_OF_CHUNK)
        kept = samples * SAMPLE_BYTES
        render = Cost(kept, kept + at_a_time * demand.sample.peak)
    encoded = demand.image.kept * demand.n_views if images == demand.n_views else 0.0
    encoding = demand.image.peak * images
    moments = (marched, render.peak, render.kept + encoding, render.kept + encoded + demand.networks)
    return demand.held + demand.trained + demand.fixed + demand.factor * (rays * RAY_BYTES + max(moments))


def export_bytes(resolution: int, mesh_resolution: int) -> float:
    """The most that the outputs of a finished run have in memory at a time, wherever the run is: on the CPU's side."""
    pictures = resolution**2 * max(SHEET_BYTES, FRAME_BYTES)
    return max(pictures, mesh_resolution**3 * POINT_BYTES + mesh_resolution**2 * FACE_BYTES)


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
    worst = {cut: max((step_bytes(demand, size, *cut), step, size) for step, size in stages) for cut in cuts}
    for (r, i), (need, _, _) in worst.items():
        if need <= limit:
            return Memory(r, i, tuple((size, step_bytes(demand, size, r, i) / GB) for _, size in stages), limit / GB)
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
    renderer: VolumeRenderer,
    field: HashGridField,
    guidance: Any,
    energy: Any,
    device: torch.device,
    budget_gb: float | None = None,
    rays_per_chunk: int | Literal["auto"] | None = "auto",
    images_per_chunk: int | Literal["auto"] | None = "auto",
    baseline: Any = None,
    output: tuple[int, int] | None = None,
) -> Memory:
    """What this run will need where it is now, and how it is cut to fit into the budget and the device.

    budget_gb: what it may take, GB (1e9 bytes); null is all that the device has free.
    rays_per_chunk, images_per_chunk: a number, null for all at once, or auto for the largest that fits.
    baseline: a second prior into whose latents every render is encoded as well, or None.
    output: the resolutions of the pictures and of the mesh at the end; None for no outputs.

    Raises UserError, one line, for numbers below 1 and where a stage of the schedule, or the outputs, cannot fit.
    """
    for name, value in {"rays_per_chunk": rays_per_chunk, "images_per_chunk": images_per_chunk}.items():
        if isinstance(value, int) and value < 1:
            raise UserError(f"memory.{name}={value}: wanted a whole number from 1 up, auto, or null for all at once")
    if budget_gb is not None and budget_gb <= 0:
        raise UserError(f"memory.budget_gb={budget_gb}: wanted a number above 0, or null for all that is free")
    cuda = device.type == "cuda"
    orient = plan.max("loss.orient") if hasattr(plan.at(0).loss, "orient") else 0
    normals = bool(plan.max("shading") or orient)
    weights = sum(p.numel() * p.element_size() for p in field.parameters())
    n_views = rig.n_rigs * rig.n_views
    with torch.random.fork_rng(devices=[]):  # that twins are made leaves no trace
        decoding = 0.0
        if energy.views_decoded:
            decoder = getattr(energy, "decoder", None) or guidance.vae
            images = rig.n_rigs * min(energy.views_decoded, rig.n_views)
            decoding = images * decoder_cost(decoder, guidance.image_size // scale_factor(guidance.vae)).peak
        encoders = [encoder_cost(prior.vae, prior.image_size) for prior in (guidance, baseline) if prior is not None]
        demand = Demand(
            held=held_bytes(device),
            trained=3 * weights,
            n_views=n_views,
            n_samples=renderer.n_samples,
            sample=sample_cost(
                field.encoding.out_features,
                normals,
                encoding=field.encoding.backend,
                rays=renderer.backend,
                hidden=len(field.density_mlp.first) if cuda else 0,
            ),
            image=Cost(sum(cost.kept for cost in encoders), sum(cost.peak for cost in encoders)),
            networks=max(networks_peak((guidance, energy, baseline), n_views), decoding),
            fixed=(CUDA_GB if cuda else CPU_GB) * GB,
            factor=CUDA_FRAGMENTS if cuda else 1.0,
        )
    # a context on a GPU is there already and not among what is free
    limit = min(
        free_bytes(device) + demand.held + (demand.fixed if cuda else 0.0), inf if budget_gb is None else budget_gb * GB
    )
    memory = fit(demand, plan.stages("resolution"), limit, rays_per_chunk, images_per_chunk)
    return memory if output is None else replace(memory, export_gb=fit_export(demand, device, limit, *output) / GB)


def fit_export(demand: Demand, device: torch.device, limit: float, resolution: int, mesh_resolution: int) -> float:
    """`forecast_outputs` after a training on `device`."""
    if device.type == "cuda":  # `limit` and what is held are the card's
        return forecast_outputs(resolution, mesh_resolution)
    return forecast_outputs(resolution, mesh_resolution, demand.held + demand.trained + demand.fixed, limit)


def forecast_outputs(
    resolution: int, mesh_resolution: int, held: float | None = None, limit: float | None = None
) -> float:
    """Bytes that the process will have on the CPU's side while it makes its outputs.

    held, limit: what it will have before, and may have; by default as it is now.
    Raises UserError, one line, if there are not so many: found now, not after the last step.
    """
    cpu = torch.device("cpu")
    held = held_bytes(cpu) if held is None else held
    limit = held_bytes(cpu) + free_bytes(cpu) if limit is None else limit
    need = export_bytes(resolution, mesh_resolution)
    if held + need > limit:
        raise UserError(
            f"memory: the outputs at the end need about {(held + need) / GB:.1f} GB and there are {limit / GB:.1f} GB; "
            f"take a lower output.mesh_resolution (now {mesh_resolution}) or output.resolution (now {resolution})"
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


# -------------------------------------------------------------------------------------------------------- the machine


def held_bytes(device: torch.device) -> float:
    """What this process has now: its tensors on a GPU, all of its resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = _read("/proc/self/statm").split()
    if len(pages) > 1:
        return int(pages[1]) * os.sysconf("SC_PAGE_SIZE")
    from jointdreamer.runs.folder import peak_memory_gb

    return peak_memory_gb() * GB  # no /proc: the most so far, which is no less


def free_bytes(device: torch.device) -> float:
    """What this process may still take; infinity where nobody says.

    On a CPU that is the kernel's MemAvailable, or what a container's limit leaves if that is less.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = inf
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    most, used = (_read(group / f"memory.{name}").strip() for name in ("max", "current"))
    if most.isdigit() and used.isdigit():
        cache = [line.split()[1] for line in _read(group / "memory.stat").splitlines() if line.startswith("inactive_f")]
        free = min(free, int(most) - int(used) + sum(map(int, cache)))  # what files left there is given up at need
    return min(free, address_space_left())


def address_space_left() -> float:
    """What `ulimit -v` leaves to this process; infinity without such a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return inf
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read("/proc/self/statm").split()
    if limit == resource.RLIM_INFINITY or not pages:
        return inf
    return max(0, limit - int(pages[0]) * os.sysconf("SC_PAGE_SIZE"))


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
