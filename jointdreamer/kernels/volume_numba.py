"""Numba kernels of the packed march and the compositing sum (CPU, float32). `volume.py` explains them and wraps them.

    rays_o, rays_d (R, 3)   rays;  ends (R,) int64, where each ray's samples end in the packed vectors
    ray_indices (N,), t (N,)  packed samples;  tau (N,) their optical depth sigma * step_size
    begin, end                what a call does: the rays (for `points` the samples) begin to end - 1

Rays are handled one by one and each ray's sums are its own, so results are the same bit for bit whatever the number of
threads. Written with tensors, each of these loops is some twenty passes over vectors larger than the cache.
"""

import math
from typing import Any

import numpy as np
from numba import boolean, float64, int64
from torch import Tensor

from jointdreamer.kernels.compiled import array, cached_njit, in_shares

PIECE = 64  # candidates of a ray at a time

compiled = cached_njit()


def run(kernel, n, *arguments) -> None:
    """Call a kernel for n rays (or samples) with tensors as arrays, on as many threads as torch uses."""
    arrays = (x.detach().contiguous().numpy() if isinstance(x, Tensor) else x for x in arguments)
    in_shares(kernel, n, *arrays, per_thread=4)  # rays that meet the object take longer than others


@compiled
def occupied_samples(begin, end, cells_o, cells_d, first, ends, step_size, occupied, found, t):
    """Of the samples t = (first + k) step_size of each ray, those in occupied cells, from the ray's start on.

    cells_o, cells_d: rays in units of cells. first (R,) float64; ends: of the candidates. Writes `found` (R,), how many
    there are, and the first `found` of each ray's places in `t` (candidates,).
    """
    size, flat = np.int32(occupied.shape[0]), occupied.reshape(-1)
    zero, last = np.int32(0), np.int32(size - 1)
    at, cell = np.empty(PIECE, np.float32), np.empty(PIECE, np.int32)
    for ray in range(begin, end):
        start = ends[ray - 1] if ray else 0
        here = start
        ox, oy, oz = cells_o[ray, 0], cells_o[ray, 1], cells_o[ray, 2]
        dx, dy, dz = cells_d[ray, 0], cells_d[ray, 1], cells_d[ray, 2]
        for done in range(0, ends[ray] - start, PIECE):
            count = min(PIECE, ends[ray] - start - done)
            for k in range(count):  # apart from what follows, these are vectors
                distance = np.float32((first[ray] + (done + k)) * step_size)
                x = min(max(np.int32(ox + dx * distance), zero), last)
                y = min(max(np.int32(oy + dy * distance), zero), last)
                z = min(max(np.int32(oz + dz * distance), zero), last)
                at[k], cell[k] = distance, (x * size + y) * size + z
            for k in range(count):  # what is not kept is written over
                t[here] = at[k]
                here += flat[np.uintp(cell[k])]
        found[ray] = here - start


@compiled
def pack(begin, end, found, ends_before, ends, t_before, ray_indices, t):
    """The first `found` of each ray's places in `t_before`, moved up: packed `ray_indices` and `t`."""
    for ray in range(begin, end):
        source = ends_before[ray - 1] if ray else 0
        target = ends[ray] - found[ray]
        for k in range(found[ray]):
            ray_indices[target + k] = ray
            t[target + k] = t_before[source + k]


@compiled
def points(begin, end, rays_o, rays_d, ray_indices, t, x):
    """x = o + t d."""
    for i in range(begin, end):
        ray = ray_indices[i]
        for axis in range(3):
            x[i, axis] = rays_o[ray, axis] + rays_d[ray, axis] * t[i]


@compiled
def visible(begin, end, tau, ends, least_tau, most_depth, keep):
    """Marks in `keep`, all False, samples with tau >= least_tau behind an optical depth of at most most_depth."""
    for ray in range(begin, end):
        depth = 0.0
        for i in range(ends[ray - 1] if ray else 0, ends[ray]):
            if depth > most_depth:
                break
            keep[i] = tau[i] >= least_tau
            depth += tau[i]


@compiled
def composite(begin, end, tau, t, values, ends, weights, sums, z_variance):
    """Weights (N,), their sums (R, 2 + C) with 1, t and values (C, N), and sum w (t - depth)^2 (R,)."""
    channels = len(values)
    for ray in range(begin, end):
        start = ends[ray - 1] if ray else 0
        optical, opacity, depth = 0.0, 0.0, 0.0
        for c in range(channels):
            sums[ray, 2 + c] = 0
        before = 1.0
        for i in range(start, ends[ray]):
            optical += tau[i]
            after = math.exp(-optical)  # float64: the difference of two transmittances has 8 good digits at tau = 1e-8
            weight = np.float32(before - after)
            before = after
            weights[i] = weight
            opacity += weight
            depth += weight * t[i]
            for c in range(channels):
                sums[ray, 2 + c] += weight * values[c, i]
        spread = 0.0
        for i in range(start, ends[ray]):
            spread += weights[i] * (t[i] - depth) ** 2
        sums[ray, 0], sums[ray, 1], z_variance[ray] = opacity, depth, spread


@compiled
def composite_backward(
    begin, end, tau, t, values, ends, weights, sums, grad_weights, grad_sums, grad_z_variance, grad_tau, grad_values
):
    """Gradients of `composite` with respect to tau and values; those with respect to its outputs are given.

    dL/dtau_i = (1 - alpha_i) T_i dL/dw_i - sum_{j > i} w_j dL/dw_j, back to front.
    """
    channels = len(values)
    for ray in range(begin, end):
        start = ends[ray - 1] if ray else 0
        depth, of_spread = np.float64(sums[ray, 1]), np.float64(grad_z_variance[ray])
        of_depth = np.float64(grad_sums[ray, 1])
        if of_spread != 0:
            for i in range(start, ends[ray]):
                of_depth -= of_spread * 2 * weights[i] * (t[i] - depth)
        behind, optical = 0.0, 0.0
        for i in range(start, ends[ray]):
            optical += tau[i]
        for i in range(ends[ray] - 1, start - 1, -1):
            of_weight = grad_weights[i] + grad_sums[ray, 0] + of_depth * t[i] + of_spread * (t[i] - depth) ** 2
            for c in range(channels):
                of_weight += grad_sums[ray, 2 + c] * values[c, i]
                grad_values[c, i] = weights[i] * grad_sums[ray, 2 + c]
            grad_tau[i] = math.exp(-optical) * of_weight - behind
            behind += weights[i] * of_weight
            optical -= tau[i]


def signatures() -> list[tuple[Any, tuple[Any, ...]]]:
    """The kernels, in the order in which a step needs them, and the types that they are called with."""
    one, two, whole, share = array(1), array(2), array(1, int64), (int64, int64)
    return [
        (occupied_samples, (*share, two, two, array(1, float64), whole, float64, array(3, boolean), whole, one)),
        (pack, (*share, whole, whole, whole, one, whole, one)),
        (points, (*share, two, two, whole, one, two)),
        (visible, (*share, one, whole, float64, float64, array(1, boolean))),
        (composite, (*share, one, one, two, whole, one, two, one)),
        (composite_backward, (*share, one, one, two, whole, one, two, one, two, one, one, two)),
    ]
