"""The noise process against its equations in float64."""

import pytest
import torch

from jointdreamer.diffusion import (
    alpha_sigma,
    noise_from_x0,
    noise_like,
    scaled_linear_alphas_cumprod,
    to_noise,
    to_x0,
    x0_from_noise,
)


def test_schedule_is_stable_diffusions():
    abar, product = scaled_linear_alphas_cumprod(), 1.0
    for i in range(1000):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999
        product *= 1 - root * root
        assert float(abar[i]) == pytest.approx(product, rel=1e-5)
    # docs/algorithm.md, From Eq. 5 to an update: lambda sigma_t / (alpha_t B) with lambda 5 and B 4
    alpha_t, sigma_t = alpha_sigma(abar, torch.tensor([980, 500]))
    assert (5 * sigma_t / alpha_t / 4).flatten().tolist() == pytest.approx([16.3, 2.02], rel=0.01)


def test_every_prediction_type_means_the_same_noise():
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 3, 4, 5, 5, generator=g, dtype=torch.float64) for _ in range(2))
    alpha_t, sigma_t = alpha_sigma(scaled_linear_alphas_cumprod().double(), torch.tensor([30, 900]))
    x_t = alpha_t * x0 + sigma_t * noise
    v = alpha_t * noise - sigma_t * x0
    for kind, prediction in (("epsilon", noise), ("sample", x0), ("v_prediction", v)):
        torch.testing.assert_close(to_noise(prediction, x_t, alpha_t, sigma_t, kind), noise)
        torch.testing.assert_close(to_x0(prediction, x_t, alpha_t, sigma_t, kind), x0)
    torch.testing.assert_close(x0_from_noise(x_t, noise, alpha_t, sigma_t), x0)
    torch.testing.assert_close(noise_from_x0(x_t, x0, alpha_t, sigma_t), noise)
    with pytest.raises(ValueError, match="velocity"):
        to_noise(noise, x_t, alpha_t, sigma_t, "velocity")


def test_noise_is_the_generators_in_any_precision():
    x = torch.zeros(2, 3)
    draws = [noise_like(x.to(t), torch.Generator().manual_seed(5)) for t in (torch.float32, torch.float16)]
    assert draws[1].dtype == torch.float16
    assert torch.equal(draws[0].half(), draws[1])
