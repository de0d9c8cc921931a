"""The multiresolution hash encoding of Instant-NGP (Mueller et al. 2022, Sec. 3), with tiny-cuda-nn's exact semantics.

Level l of L has the scale s_l = base * growth^l - 1 (in float32, as the library computes it) and ceil(s_l) + 1 vertices
per axis. A point x is taken to p = s_l x + 1/2, and the features of the eight vertices around p are interpolated
trilinearly. A level owns min(resolution^3 rounded up to 8, 2^log2_table_size) entries. Where all vertices fit they are
indexed densely, x fastest; otherwise by x ^ 2654435761 y ^ 805459861 z in unsigned 32-bit arithmetic. Both are taken
modulo the entries.

Points outside [0, 1] are not clamped: their vertex numbers wrap as unsigned 32-bit numbers do, as in the library. The
encoding is therefore defined and continuous everywhere, but a point outside (and the last half voxel inside) shares
entries with points elsewhere.

There are two backends behind one signature: `torch`, differentiable any number of times, on every device and in
float64; and `numba`, compiled kernels for float32 on the CPU, differentiable twice and some twenty times faster there.
On the CPU both are deterministic; on a GPU the gradient of the tables is a sum by atomic additions, whose last bits
vary, unless `torch.use_deterministic_algorithms` is on.
"""

import importlib.util

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from jointdreamer.errors import UserError

PRIMES = (1, 2654435761, 805459861)


class HashEncoding(nn.Module):
    """Points to features, read from `params`: one flat vector; level by level, entry by entry, features adjacent.

    backend: "torch", "numba", or "auto" (numba for float32 on the CPU if it is installed, else torch).
    Raises UserError for a backend that does not exist or is not installed, or (at the call) cannot serve these tensors.
    """

    def __init__(
        self,
        n_levels: int = 16,
        n_features: int = 2,
        log2_table_size: int = 19,
        base_resolution: int = 16,
        growth: float = 1.447269237440378,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if backend not in ("auto", *available_backends()):
            raise UserError(
                f"encoding backend {backend!r} is not available here: choose one of "
                f"{', '.join(('auto', *available_backends()))}" + (" (pip install numba)" if backend == "numba" else "")
            )
        if not (n_levels >= 1 and n_features >= 1 and base_resolution >= 1 and 3 <= log2_table_size <= 28):
            raise UserError(
                "a hash encoding needs n_levels, n_features and base_resolution >= 1 and log2_table_size in 3..28, got "
                f"{n_levels}, {n_features}, {base_resolution} and {log2_table_size}"
            )
        self.n_features = n_features
        self.requested_backend = backend
        self.scales = level_scales(n_levels, base_resolution, growth)
        self.resolutions = np.ceil(self.scales).astype(np.int64) + 1
        entries = np.minimum((self.resolutions**3 + 7) // 8 * 8, 2**log2_table_size)
        self.offsets = np.concatenate([[0], np.cumsum(entries)]).astype(np.int64)
        self.params = nn.Parameter(torch.empty(int(self.offsets[-1]) * n_features).uniform_(-1e-4, 1e-4))

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
        fits = self.params.device.type == "cpu" and self.params.dtype == torch.float32
        return "numba" if fits and "numba" in available_backends() else "torch"

    def forward(self, x: Tensor) -> Tensor:
        """Points (N, 3) -> features (N, L * F), level-major."""
        if self.backend == "numba":
            return NumbaFeatures.apply(self._ready(x), self.params, self)
        tables = self.params.view(-1, self.n_features).split(np.diff(self.offsets).tolist())
        levels = zip(tables, self.scales.tolist(), self.resolutions.tolist(), strict=True)
        return torch.cat([recomputed(level_features, x, *level) for level in levels], dim=-1)

    def position_gradient(self, x: Tensor, grad_features: Tensor) -> Tensor:
        """Gradient of sum(features * grad_features) with respect to the points: (N, 3) and (N, L * F) -> (N, 3).

        What autograd would give, as a function that is itself differentiable, and without the detour through
        `create_graph`, which would compute the (large, unwanted) gradient of the parameters on the way.
        """
        if self.backend == "numba":
            return NumbaPositionGradient.apply(self._ready(x), self.params, grad_features.contiguous(), self)
        tables = self.params.view(-1, self.n_features).split(np.diff(self.offsets).tolist())
        grads = grad_features.split(self.n_features, dim=-1)
        levels = zip(grads, tables, self.scales.tolist(), self.resolutions.tolist(), strict=True)
        return torch.stack([recomputed(level_position_gradient, x, *level) for level in levels]).sum(0)

    def _ready(self, x: Tensor) -> Tensor:
        if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in (x, self.params)):
            raise UserError(
                f"encoding backend 'numba' wants float32 on the CPU, got {x.dtype} on {x.device} with parameters "
                f"{self.params.dtype} on {self.params.device}: choose 'torch' or 'auto'"
            )
        return x.contiguous()

    def extra_repr(self) -> str:
        return f"{self.n_levels} levels x {self.n_features}, {self.params.numel()} parameters, backend={self.backend}"


def available_backends() -> tuple[str, ...]:
    """The backends that can run on this machine."""
    return ("torch", "numba") if importlib.util.find_spec("numba") else ("torch",)


def level_scales(n_levels: int, base_resolution: int, growth: float) -> np.ndarray:
    """s_l = base * growth^l - 1, rounded to float32 after every operation like tiny-cuda-nn."""
    log2_growth = np.log2(np.float32(growth))
    powers = np.exp2(np.arange(n_levels, dtype=np.float32) * log2_growth)
    return powers * np.float32(base_resolution) - np.float32(1)


# ---------------------------------------------------------------------------------------------------------------- torch


def recomputed(function, *args) -> Tensor:
    """function(*args), computed again in backward: kept, the corners of 16 levels take some 3 kB a point."""
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


# ---------------------------------------------------------------------------------------------------------------- numba
# Features are linear in the parameters: three kinds of kernel, each with an `along` twin, serve both orders.


class NumbaFeatures(torch.autograd.Function):
    """y = features(x, params)."""

    @staticmethod
    def forward(ctx, x: Tensor, params: Tensor, grid: HashEncoding) -> Tensor:
        ctx.save_for_backward(x, params)
        ctx.grid = grid
        return gather(grid, x, params)

    @staticmethod
    def backward(ctx, grad):
        x, params = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = NumbaPositionGradient.apply(x, params, grad, ctx.grid) if ctx.needs_input_grad[0] else None
        grad_params = NumbaParamsGradient.apply(x, grad, ctx.grid) if ctx.needs_input_grad[1] else None
        return grad_x, grad_params, None


class NumbaParamsGradient(torch.autograd.Function):
    """Gradient of (grad . features) with respect to the parameters: linear in grad, and the parameters drop out."""

    @staticmethod
    def forward(ctx, x: Tensor, grad: Tensor, grid: HashEncoding) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.grid = grid
        return scatter(grid, x, grad)

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        x, grad = ctx.saved_tensors
        cotangent = cotangent.contiguous()
        grad_x = position_gradient(ctx.grid, x, cotangent, grad) if ctx.needs_input_grad[0] else None
        grad_grad = gather(ctx.grid, x, cotangent) if ctx.needs_input_grad[1] else None
        return grad_x, grad_grad, None


class NumbaPositionGradient(torch.autograd.Function):
    """Gradient of (grad . features) with respect to the points: linear in grad and in the parameters."""

    @staticmethod
    def forward(ctx, x: Tensor, params: Tensor, grad: Tensor, grid: HashEncoding) -> Tensor:
        ctx.save_for_backward(x, params, grad)
        ctx.grid = grid
        return position_gradient(grid, x, params, grad)

    @staticmethod
    @once_differentiable
    def backward(ctx, v):
        x, params, grad = ctx.saved_tensors
        v = v.contiguous()
        grad_x = position_gradient(ctx.grid, x, params, grad, along=v) if ctx.needs_input_grad[0] else None
        grad_params = scatter(ctx.grid, x, grad, along=v) if ctx.needs_input_grad[1] else None
        grad_grad = gather(ctx.grid, x, params, along=v) if ctx.needs_input_grad[2] else None
        return grad_x, grad_params, grad_grad, None


def gather(grid: HashEncoding, x: Tensor, params: Tensor, along: Tensor | None = None) -> Tensor:
    """Features (N, L * F), or their derivative along a direction (N, 3)."""
    from jointdreamer.fields import hash_kernels

    out = torch.empty(len(x), grid.out_features)
    run(hash_kernels.gather_kernel(grid.n_features, along is not None), grid, x, along, (params,), out)
    return out


def scatter(grid: HashEncoding, x: Tensor, grad: Tensor, along: Tensor | None = None) -> Tensor:
    """The transpose of `gather`: (N, L * F) -> gradient of the parameters."""
    from jointdreamer.fields import hash_kernels

    out = torch.zeros(hash_kernels.scatter_parts(grid.n_levels), grid.params.numel())
    run(hash_kernels.scatter_kernel(grid.n_features, along is not None), grid, x, along, (grad,), out)
    return out.sum(0)


def position_gradient(
    grid: HashEncoding, x: Tensor, params: Tensor, grad: Tensor, along: Tensor | None = None
) -> Tensor:
    """Gradient of (grad . features) with respect to the points (N, 3), or its derivative along a direction (N, 3)."""
    from jointdreamer.fields import hash_kernels

    out = torch.empty(len(x), 3)
    run(hash_kernels.position_kernel(grid.n_features, along is not None), grid, x, along, (params, grad), out)
    return out


def run(kernel, grid: HashEncoding, x: Tensor, along: Tensor | None, tensors: tuple[Tensor, ...], out: Tensor) -> None:
    """Call a kernel on as many threads as torch uses, so that OMP_NUM_THREADS and set_num_threads hold for both."""
    import numba

    n_threads = torch.get_num_threads()
    numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != n_threads:  # Numba, starting its OpenMP threads, resets the count torch uses too
        torch.set_num_threads(n_threads)
    arrays = [tensor.detach().numpy() for tensor in (x, x if along is None else along, *tensors)]
    kernel(*arrays, grid.offsets, grid.scales, grid.resolutions, out.numpy())
