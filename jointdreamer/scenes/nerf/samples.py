"""Packed samples along rays (volume.py): where they lie, what light reaches them, and their sums over each ray."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def points(origins: Tensor, directions: Tensor, ray_indices: Tensor, t: Tensor) -> Tensor:
    """o + t d of the samples' rays, (N, 3)."""
    return torch.addcmul(origins.index_select(0, ray_indices), directions.index_select(0, ray_indices), t[:, None])


def intersect_box(rays_o: Tensor, rays_d: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays (R, 3) enter and leave the box, (R,) each, both at least 0; enter > leave for a ray that misses it."""
    tiny = torch.finfo(rays_d.dtype).tiny
    inverse = 1 / torch.where(rays_d.abs() < tiny, tiny, rays_d)  # a ray along a face: no 0 * inf
    one, other = (lower - rays_o) * inverse, (upper - rays_o) * inverse
    return torch.minimum(one, other).amax(-1).clamp(min=0), torch.maximum(one, other).amin(-1)


def alpha_and_transmittance(tau: Tensor, ray_indices: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and T (N,) from packed optical depths tau = sigma * step_size, differentiable; counts (R,) of each ray."""
    # One running sum over all rays, minus what it was where the ray began: fp64, or the rays before would swallow it.
    before = tau.double().cumsum(0) - tau
    starts = (counts.cumsum(0) - counts).clamp(max=max(len(tau) - 1, 0))
    depth = before - before[starts[ray_indices]]
    return -torch.expm1(-tau), torch.exp(-depth).to(tau.dtype)


def count_per_ray(ray_indices: Tensor, n_rays: int) -> Tensor:
    """How often each ray stands in the ascending ray_indices (N,): (R,)."""
    if ray_indices.is_cpu:
        return torch.bincount(ray_indices, minlength=n_rays)
    # Waits for no device, unlike `bincount`
    borders = torch.arange(n_rays + 1, device=ray_indices.device)
    return torch.searchsorted(ray_indices, borders).diff()


def sum_per_ray(values: Tensor, counts: Tensor) -> Tensor:
    """Packed values (N, C) -> their sums (R, C); counts (R,) samples per ray. Deterministic on every device."""
    return torch.segment_reduce(values, "sum", lengths=counts, axis=0, initial=0, unsafe=True)


def composite(
    tau: Tensor,  # (N,) optical depths of packed samples
    t: Tensor,  # (N,)
    values: Tensor,  # (N, C)
    ray_indices: Tensor,  # (N,)
    counts: Tensor,  # (R,) samples per ray
    scan: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = alpha_and_transmittance,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (N,); their sums with 1, t and the values, (R, 2 + C); and sum w (t - depth)^2, (R,). Differentiable."""
    alpha, transmittance = scan(tau, ray_indices, counts)
    weights = transmittance * alpha
    sums = sum_per_ray(weights[:, None] * torch.cat([torch.ones_like(t)[:, None], t[:, None], values], dim=-1), counts)
    spread = (weights * (t - sums[:, 1][ray_indices]).square())[:, None]
    return weights, sums, sum_per_ray(spread, counts)[:, 0]


class Composite(torch.autograd.Function):
    """`composite`, by the compiled kernels: float32 on the CPU, differentiable once in tau and values."""

    @staticmethod
    def forward(ctx, tau: Tensor, t: Tensor, values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from jointdreamer.kernels import volume_numba as kernels

        ends, columns = counts.cumsum(0), values.t().contiguous()  # as the field's kernels leave them
        weights, z_variance = tau.new_empty(len(tau)), tau.new_empty(len(counts))
        sums = tau.new_empty(len(counts), 2 + len(columns))
        kernels.run(kernels.composite, len(ends), tau, t, columns, ends, weights, sums, z_variance)
        ctx.save_for_backward(tau, t, columns, ends, weights, sums)
        return weights, sums, z_variance

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        from jointdreamer.kernels import volume_numba as kernels

        tau, t, columns, ends, weights, sums = ctx.saved_tensors
        grad_tau, grad_columns = tau.new_empty(len(tau)), columns.new_empty(columns.shape)
        arrays = tau, t, columns, ends, weights, sums, *grads, grad_tau, grad_columns
        kernels.run(kernels.composite_backward, len(ends), *arrays)
        return grad_tau, None, grad_columns.t(), None


def packed(found: Tensor, ends_before: Tensor, t_before: Tensor) -> tuple[Tensor, Tensor]:
    """`ray_indices` and `t` of the first `found` (R,) of each ray's places in `t_before`."""
    from jointdreamer.kernels import volume_numba as kernels

    ends = found.cumsum(0)
    n = int(ends[-1]) if len(ends) else 0
    ray_indices, t = ends.new_empty(n), t_before.new_empty(n)
    kernels.run(kernels.pack, len(ends), found, ends_before, ends, t_before, ray_indices, t)
    return ray_indices, t
