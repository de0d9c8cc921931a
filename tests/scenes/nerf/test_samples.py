"""Packed samples against loops over the rays."""

import math

import numpy as np
import torch

from jointdreamer.scenes.nerf.samples import alpha_and_transmittance, intersect_box


def test_packed_weights_are_those_of_a_loop_over_rays():
    torch.manual_seed(0)
    counts = torch.tensor([0, 3, 1, 0, 40, 2, 0])
    ray_indices = torch.repeat_interleave(counts)
    tau = torch.rand(len(ray_indices), dtype=torch.float64).requires_grad_()

    def volume_weights(tau):
        alpha, transmittance = alpha_and_transmittance(tau, ray_indices, counts)
        return transmittance * alpha

    weights = volume_weights(tau)
    expected, start = [], 0
    for count in counts.tolist():
        transmittance = 1.0
        for depth in tau[start : start + count].tolist():
            alpha = 1 - math.exp(-depth)
            expected.append(transmittance * alpha)
            transmittance *= 1 - alpha
        start += count
    np.testing.assert_allclose(weights.detach().numpy(), expected, rtol=1e-9)
    assert torch.autograd.gradcheck(volume_weights, (tau,))


def test_many_opaque_rays_do_not_blur_those_behind_them():
    """The running optical depth of 10^6 samples must not cost the last ray its digits."""
    counts = torch.full((1000,), 1000)
    ray_indices = torch.repeat_interleave(counts)
    tau = torch.full((1_000_000,), 50.0)
    tau[-1000:] = 1e-3
    _, transmittance = alpha_and_transmittance(tau, ray_indices, counts)
    expected = torch.exp(-1e-3 * torch.arange(1000, dtype=torch.float64)).float()
    torch.testing.assert_close(transmittance[-1000:], expected, atol=1e-6, rtol=1e-5)


def test_rays_meet_a_box():
    """Through it, beside it, from inside, away from it, and along its faces."""
    lower, upper = torch.tensor([-1.0, -1, -1]), torch.tensor([1.0, 1, 1])
    origins = torch.tensor([[3.0, 0, 0], [3, 2, 0], [0, 0, 0], [3, 0, 0], [3, 0.5, 0]])
    dirs = torch.tensor([[-1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [1, 0, 0], [-1, -0.0, 0]])
    enter, leave = intersect_box(origins, dirs, lower, upper)
    assert enter[[0, 2, 4]].tolist() == [2, 0, 2] and leave[[0, 2, 4]].tolist() == [4, 1, 4]
    assert (enter > leave)[[1, 3]].all()
