"""The multiresolution hash encoding of Instant-NGP (Mueller et al. 2022, Sec. 3), with tiny-cuda-nn's exact semantics.

Level l of L has the scale s_l = base * growth^l - 1 (in float32, as the library computes it) and ceil(s_l) + 1 vertices
per axis. A point x is taken to p = s_l x + 1/2, and the features of the eight vertices around p are interpolated
trilinearly. A level owns min(resolution^3 rounded up to 8, 2^log2_table_size) entries. Where all vertices fit they are
indexed densely, x fastest; otherwise by x ^ 2654435761 y ^ 805459861 z in unsigned 32-bit arithmetic. Both are taken
modulo the entries.

Points outside [0, 1] are not clamped: their vertex numbers wrap as unsigned 32-bit numbers do, as in the library. The
encoding is therefore defined and continuous everywhere, but a point outside (and the last half voxel inside) shares
entries with points elsewhere.

There are four backends behind one signature, and the parameters lie in the same order in all of them, so that a
checkpoint moves between them:

    torch   every device and dtype, also float64; differentiable any number of times
    numba   compiled for the CPU, float32; differentiable twice; some twenty times faster there      hash_numba.py
    triton  CUDA, float32 points with float32 or float16 tables; differentiable twice                hash_triton.py
    tcnn    tiny-cuda-nn, if it is installed: the same, on CUDA                                      hash_tcnn.py

On the CPU both are deterministic; on a GPU the gradient of the tables is a sum by atomic additions, whose last bits
vary, unless the backend is `torch` and `torch.use_deterministic_algorithms` is on.
"""

import functools
import importlib
import importlib.util
import logging
from typing import Annotated, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from jointdreamer.arguments import Range
from jointdreamer.errors import UserError
from jointdreamer.kernels import enabled
from jointdreamer.kernels.hash_grid import Kernels, interpreted
from jointdreamer.machine import free_bytes

log = logging.getLogger(__name__)

PRIMES = (1, 2654435761, 805459861)
BACKENDS = ("torch", "numba", "triton", "tcnn")
GPU_WIDTHS = (1, 2, 4, 8)  # features an entry may have in a table on a GPU: powers of two, as tiny-cuda-nn has them
MAX_RESOLUTION = 2**20  # finer than float32 tells points of the unit box apart
TRAINED = 4  # times the tables: their gradient and the two moments of AdamW


class HashEncoding(nn.Module):
    """Points to features, read from `params`: one flat vector; level by level, entry by entry, features adjacent.

    backend: one of BACKENDS, or "auto": numba for float32 on the CPU, tcnn or else triton on CUDA, if they are
    installed, take these tensors and pass a test against torch there (`agrees`); else torch.
    Features are float32 (float64 for float64 tables and points), also where the tables are float16.

    Raises UserError for a backend that does not exist or cannot run here, for sizes that it does not take, for tables
    that will not fit where they are made or moved to, or (at the call) for tensors that it does not take.
    """

    def __init__(
        self,
        n_levels: Annotated[int, Range(high=64)] = 16,
        n_features: Annotated[int, Range(high=64)] = 2,
        log2_table_size: int = 19,
        base_resolution: int = 16,
        growth: Annotated[float, Range(0.1, 64)] = 1.447269237440378,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if backend not in ("auto", *available_backends()):
            raise UserError(
                f"encoding backend {backend!r} is not available here ({obstacle(backend)}): "
                f"choose one of {', '.join(('auto', *available_backends()))}"
            )
        if not (n_levels >= 1 and n_features >= 1 and base_resolution >= 1 and 3 <= log2_table_size <= 28):
            raise UserError(
                "a hash encoding needs n_levels, n_features and base_resolution >= 1 and log2_table_size in 3..28, got "
                f"{n_levels}, {n_features}, {base_resolution} and {log2_table_size}"
            )
        if not (growth > 0 and base_resolution * growth ** (n_levels - 1) <= MAX_RESOLUTION):
            raise UserError(
                f"a hash encoding wants growth > 0 and at most {MAX_RESOLUTION} vertices per axis in its finest level, "
                f"got {growth} for {n_levels} levels from {base_resolution}"
            )
        if backend in ("triton", "tcnn") and n_features not in GPU_WIDTHS:
            raise UserError(
                f"encoding backend {backend!r} takes n_features {', '.join(map(str, GPU_WIDTHS))}, got {n_features}: "
                "choose one of these, or the backend 'torch'"
            )
        self.n_features = n_features
        self.base_resolution = base_resolution
        self.growth = growth
        self.log2_table_size = log2_table_size
        self.requested_backend = backend
        self.scales = level_scales(n_levels, base_resolution, growth)
        self.resolutions = np.ceil(self.scales).astype(np.int64) + 1
        entries = np.minimum((self.resolutions**3 + 7) // 8 * 8, 2**log2_table_size)
        self.offsets = np.concatenate([[0], np.cumsum(entries)]).astype(np.int64)
        n_params = int(self.offsets[-1]) * n_features
        check_fits(n_params, torch.get_default_dtype(), torch.get_default_device())
        self.params = nn.Parameter(torch.empty(n_params).uniform_(-1e-4, 1e-4))

    @property
    def n_levels(self) -> int:
        return len(self.scales)

    @property
    def out_features(self) -> int:
        return self.n_levels * self.n_features

    @property
    def backend(self) -> str:
        """The backend that runs with the parameters where they are now."""
        if self.requested_backend != "auto":
            return self.requested_backend
        device, dtype, candidates = self.params.device.type, self.params.dtype, ()
        if not enabled():
            return "torch"
        if device == "cpu" and dtype == torch.float32:
            candidates = ("numba",)
        elif device == "cuda" and dtype in (torch.float32, torch.float16) and self.n_features in GPU_WIDTHS:
            candidates = ("tcnn", "triton")
        usable = (name for name in candidates if name in available_backends())
        return next((name for name in usable if name == "numba" or agrees(name, self.params.device, dtype)), "torch")

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Points (N, 3) -> features (N, L * F), level-major.

        features: these features, gathered before without a graph: they are put into it, which spares gathering again.
        """
        backend = self._check(x)
        if backend == "tcnn" and len(x):
            from jointdreamer.kernels import hash_tcnn

            return hash_tcnn.features(self, x)
        if backend in ("numba", "triton"):
            return Features.apply(x.contiguous(), self.params, self, kernels(backend), features)
        tables = self.params.view(-1, self.n_features).split(np.diff(self.offsets).tolist())
        levels = zip(tables, self.scales.tolist(), self.resolutions.tolist(), strict=True)
        return torch.cat([recomputed(level_features, x, *level) for level in levels], dim=-1)

    def position_gradient(self, x: Tensor, grad_features: Tensor) -> Tensor:
        """Gradient of sum(features * grad_features) with respect to the points: (N, 3) and (N, L * F) -> (N, 3).

        What autograd would give, as a function that is itself differentiable, and without the detour through
        `create_graph`, which would compute the (large, unwanted) gradient of the parameters on the way (tcnn has only
        that detour).
        """
        backend = self._check(x)
        if backend == "tcnn" and len(x):
            from jointdreamer.kernels import hash_tcnn

            return hash_tcnn.position_gradient(self, x, grad_features)
        if backend in ("numba", "triton"):
            grad = grad_features.to(x.dtype).contiguous()
            return PositionGradient.apply(x.contiguous(), self.params, grad, self, kernels(backend))
        tables = self.params.view(-1, self.n_features).split(np.diff(self.offsets).tolist())
        grads = grad_features.split(self.n_features, dim=-1)
        levels = zip(grads, tables, self.scales.tolist(), self.resolutions.tolist(), strict=True)
        return torch.stack([recomputed(level_position_gradient, x, *level) for level in levels]).sum(0)

    def _check(self, x: Tensor) -> str:
        """The backend for these points; raises UserError if it does not take them."""
        backend = self.backend
        if x.ndim != 2 or x.shape[1] != 3:
            raise UserError(f"a hash encoding wants points (N, 3), got {tuple(x.shape)}")
        if backend == "torch":
            return backend
        device = "cpu" if backend == "numba" or (backend == "triton" and interpreted()) else "cuda"
        dtypes = (torch.float32,) if backend == "numba" else (torch.float32, torch.float16)
        if not (
            x.device == self.params.device
            and x.device.type == device
            and x.dtype == torch.float32
            and self.params.dtype in dtypes
        ):
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise UserError(
                f"encoding backend {backend!r} wants float32 points and {names} parameters on {device}, got "
                f"{x.dtype} on {x.device} and {self.params.dtype} on {self.params.device}: choose 'torch' or 'auto'"
            )
        return backend

    def _apply(self, fn, recurse=True):
        """What .to(), .cuda() and .half() go through: tables that will not fit are refused before they are moved."""
        probe = fn(self.params.detach().new_empty(0))
        if probe.device != self.params.device:
            check_fits(self.params.numel(), probe.dtype, probe.device)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.n_levels} levels x {self.n_features}, {self.params.numel()} parameters, backend={self.backend}"


def available_backends() -> tuple[str, ...]:
    """The backends that can run on this machine."""
    return tuple(name for name in BACKENDS if obstacle(name) is None)


@functools.cache
def obstacle(backend: str) -> str | None:
    """Why a backend cannot run here, and what to do; None if it can."""
    if backend == "torch" or (backend != "tcnn" and backend in BACKENDS and importlib.util.find_spec(backend)):
        if backend == "triton" and not (torch.cuda.is_available() or interpreted()):
            return "Triton is installed, but there is no CUDA device; TRITON_INTERPRET=1 runs it without one, slowly"
        return None
    if backend == "numba":
        return "pip install numba"
    if backend == "triton":
        return 'on Linux: pip install -c constraints.txt -e ".[kernels]"'
    if backend == "tcnn":
        from jointdreamer.kernels import hash_tcnn

        return hash_tcnn.obstacle()
    return "no such backend"


@functools.cache
def agrees(backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a backend gives torch's features and gradients on a device; tried once, and a no is logged.

    Compiled kernels meet compilers, drivers and libraries that nobody has tried them with.
    """
    found, devices = [], [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        try:
            for name in ("torch", backend):
                torch.manual_seed(0)
                grid = HashEncoding(n_levels=3, log2_table_size=8, base_resolution=4, growth=2.0, backend=name)
                grid.params.data.uniform_(-1, 1)
                grid.to(device, dtype)
                x, weights = torch.rand(300, 3), torch.randn(300, 6)
                x, weights = x.to(device).requires_grad_(), weights.to(device)
                features = grid(x)
                grads = torch.autograd.grad((features * weights).sum(), (x, grid.params))
                found.append([t.detach().float() for t in (features, *grads, grid.position_gradient(x, weights))])
            error = max(float((a - b).norm() / a.norm()) for a, b in zip(*found, strict=True))
            trouble = None if error < 1e-2 else f"its numbers are {error:.0%} off"  # a NaN is trouble as well
        except Exception as failure:  # whatever a compiler or driver says
            trouble = " ".join(str(failure).split())[:200] or type(failure).__name__
    if trouble:
        log.warning(f"encoding backend {backend!r} fails its test on {device} ({trouble}): the next best is used")
    return trouble is None


def check_fits(n_params: int, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse tables that cannot be trained on a device, before anything is allocated. Raises UserError."""
    size = n_params * torch.empty(0, dtype=dtype, device="cpu").element_size()
    free = free_bytes(device)
    if TRAINED * size > free:
        raise UserError(
            f"the hash tables take {size / 1e9:.1f} GB, {TRAINED * size / 1e9:.1f} GB with their gradient and AdamW's "
            f"moments, and {device} has {free / 1e9:.1f} GB free: lower field.encoding.log2_table_size or "
            "field.encoding.n_levels"
        )


def level_scales(n_levels: int, base_resolution: int, growth: float) -> np.ndarray:
    """s_l = base * growth^l - 1, rounded to float32 after every operation like tiny-cuda-nn."""
    log2_growth = np.log2(np.float32(growth))
    powers = np.exp2(np.arange(n_levels, dtype=np.float32) * log2_growth)
    return powers * np.float32(base_resolution) - np.float32(1)


# ---------------------------------------------------------------------------------------------------------------- torch


def recomputed(function, *args) -> Any:
    """function(*args), computed again in backward: kept, the corners of 16 levels take some 3 kB a point.

    Exact for whatever is differentiable and draws no random number; what it closes over must be what it was.
    """
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def level_entries(cell: Tensor, resolution: int, entries: int) -> Tensor:
    """The table entries of the eight vertices of each cell: (N, 3) -> (N, 8), x fastest."""
    dense = resolution**3 <= entries
    factors = (1, resolution, resolution**2) if dense else PRIMES
    vertices = (torch.stack([cell, cell + 1], dim=-1) & 0xFFFFFFFF) * cell.new_tensor(factors)[:, None]  # (N, 3, 2)
    x, y, z = vertices[:, 0, None, None, :], vertices[:, 1, None, :, None], vertices[:, 2, :, None, None]
    index = x + y + z if dense else x ^ y ^ z
    # The low 32 bits of these 64-bit sums and products are what 32-bit arithmetic gives.
    return ((index & 0xFFFFFFFF) % entries).flatten(1)


def corner_products(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Products of one number per axis, lower or upper: three times (N, 2) -> (N, 8), x fastest."""
    return (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).flatten(1)


def locate(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Points (N, 3) -> their cells (N, 3), and the weights of the lower and the upper side (N, 3, 2)."""
    position = x * scale + 0.5
    cell = position.detach().floor()
    fraction = position - cell
    return cell.long(), torch.stack([1 - fraction, fraction], dim=-1)


def level_features(x: Tensor, table: Tensor, scale: float, resolution: int) -> Tensor:
    """Points (N, 3) and one level's table (entries, F) -> features (N, F)."""
    cell, weights = locate(x, scale)
    corners = table[level_entries(cell, resolution, len(table))]
    return (corner_products(*weights.unbind(1))[..., None] * corners).sum(1)


def level_position_gradient(x: Tensor, grad: Tensor, table: Tensor, scale: float, resolution: int) -> Tensor:
    """Gradient of sum(level_features(x) * grad) with respect to the points: (N, 3), (N, F) -> (N, 3)."""
    cell, weights = locate(x, scale)
    corners = (table[level_entries(cell, resolution, len(table))] * grad[:, None]).sum(-1)
    wx, wy, wz = weights.unbind(1)
    slope = x.new_tensor([-scale, scale]).expand_as(wx)
    products = corner_products(slope, wy, wz), corner_products(wx, slope, wz), corner_products(wx, wy, slope)
    return torch.stack([(product * corners).sum(1) for product in products], dim=-1)


# ------------------------------------------------------------------------------------------------------------- compiled
# Features are linear in the parameters: three kinds of kernel, each with an `along` twin, serve both orders.


def kernels(backend: str) -> Kernels:
    return cast(Kernels, importlib.import_module(f"jointdreamer.kernels.hash_{backend}"))


class Features(torch.autograd.Function):
    """y = features(x, params)."""

    @staticmethod
    def forward(
        ctx, x: Tensor, params: Tensor, grid: HashEncoding, kernels: Kernels, features: Tensor | None = None
    ) -> Tensor:
        ctx.save_for_backward(x, params)
        ctx.grid, ctx.kernels = grid, kernels
        return kernels.gather(grid, x, params) if features is None else features

    @staticmethod
    def backward(ctx, grad):
        x, params = ctx.saved_tensors
        grad, how = grad.contiguous(), (ctx.grid, ctx.kernels)
        grad_x = PositionGradient.apply(x, params, grad, *how) if ctx.needs_input_grad[0] else None
        grad_params = ParamsGradient.apply(x, grad, *how).to(params.dtype) if ctx.needs_input_grad[1] else None
        return grad_x, grad_params, None, None, None


class ParamsGradient(torch.autograd.Function):
    """Gradient of (grad . features) with respect to the parameters: linear in grad, and the parameters drop out."""

    @staticmethod
    def forward(ctx, x: Tensor, grad: Tensor, grid: HashEncoding, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.grid, ctx.kernels = grid, kernels
        return kernels.scatter(grid, x, grad)

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        x, grad = ctx.saved_tensors
        cotangent = cotangent.contiguous()
        grad_x = ctx.kernels.position_gradient(ctx.grid, x, cotangent, grad) if ctx.needs_input_grad[0] else None
        grad_grad = ctx.kernels.gather(ctx.grid, x, cotangent) if ctx.needs_input_grad[1] else None
        return grad_x, grad_grad, None, None


class PositionGradient(torch.autograd.Function):
    """Gradient of (grad . features) with respect to the points: linear in grad and in the parameters."""

    @staticmethod
    def forward(ctx, x: Tensor, params: Tensor, grad: Tensor, grid: HashEncoding, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, params, grad)
        ctx.grid, ctx.kernels = grid, kernels
        return kernels.position_gradient(grid, x, params, grad)

    @staticmethod
    @once_differentiable
    def backward(ctx, v):
        x, params, grad = ctx.saved_tensors
        grid, kernels, v = ctx.grid, ctx.kernels, v.contiguous()
        wanted = ctx.needs_input_grad
        grad_x = kernels.position_gradient(grid, x, params, grad, along=v) if wanted[0] else None
        grad_params = kernels.scatter(grid, x, grad, along=v).to(params.dtype) if wanted[1] else None
        grad_grad = kernels.gather(grid, x, params, along=v) if wanted[2] else None
        return grad_x, grad_params, grad_grad, None, None
