"""Noise processes against their equations in float64."""

import pytest
import torch

from jointdreamer.diffusion import (
    PREDICTION_TYPES,
    NoiseProcess,
    add_noise,
    draw_timesteps,
    noise_from_x0,
    noise_like,
    scaled_linear_alphas_cumprod,
    x0_from_noise,
)
from jointdreamer.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def stable_diffusion(kind="epsilon"):
    return NoiseProcess.variance_preserving(scaled_linear_alphas_cumprod().double(), kind)


def flow(shift=1.0):
    return NoiseProcess.rectified_flow(shift=shift).double()


def test_schedule_is_stable_diffusions():
    abar, product = scaled_linear_alphas_cumprod(), 1.0
    for i in range(1000):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999
        product *= 1 - root * root
        assert float(abar[i]) == pytest.approx(product, rel=1e-5)
    # docs/algorithm.md, step 10: lambda sigma_t / (alpha_t B) with lambda 5 and B 4
    alpha_t, sigma_t = NoiseProcess.variance_preserving(abar).at(torch.tensor([980, 500]))
    assert (5 * sigma_t / alpha_t / 4).flatten().tolist() == pytest.approx([16.3, 2.02], rel=0.01)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "velocity"])
def test_every_prediction_type_means_the_same_noise(kind):
    x0, noise = (torch.randn(2, 3, 4, 5, 5, generator=generator(s), dtype=torch.float64) for s in (0, 1))
    process, t = flow() if kind == "velocity" else stable_diffusion(kind), torch.tensor([30, 900])
    alpha_t, sigma_t = process.at(t)
    x_t = alpha_t * x0 + sigma_t * noise
    prediction = {"epsilon": noise, "sample": x0, "v_prediction": alpha_t * noise - sigma_t * x0}
    prediction["velocity"] = noise - x0
    digits = 1e-6 if kind == "velocity" else 1e-7  # the flow's table is float32
    torch.testing.assert_close(process.noise(prediction[kind], x_t, t), noise, rtol=digits, atol=digits)
    torch.testing.assert_close(process.x0(noise, x_t, t), x0, rtol=digits, atol=digits)
    torch.testing.assert_close(x0_from_noise(x_t, noise, alpha_t, sigma_t), x0)
    torch.testing.assert_close(noise_from_x0(x_t, x0, alpha_t, sigma_t), noise)


def test_a_rectified_flow_is_a_straight_line_from_data_to_noise():
    alpha, sigma = flow().alpha, flow().sigma
    torch.testing.assert_close(alpha + sigma, torch.ones(1000).double(), rtol=0, atol=1e-7)
    assert float(sigma[0]) == pytest.approx(1e-3) and float(sigma[-1]) == 1.0 and flow().last == 998
    # SD 3's shift 3 at the middle: 3 * 0.5 / (1 + 2 * 0.5)
    assert float(flow(shift=3.0).sigma[499]) == pytest.approx(0.75)


def test_impossible_processes_are_refused():
    abar = scaled_linear_alphas_cumprod()
    with pytest.raises(UserError, match="choose one of epsilon"):
        NoiseProcess.variance_preserving(abar, "score")
    with pytest.raises(UserError, match="rectified flow"):
        NoiseProcess.variance_preserving(abar, "velocity")


def test_noise_is_the_generators_in_any_precision():
    x = torch.zeros(2, 3)
    draws = [noise_like(x.to(t), generator(5)) for t in (torch.float32, torch.float16)]
    assert draws[1].dtype == torch.float16
    assert torch.equal(draws[0].half(), draws[1])


@pytest.mark.parametrize("process", [stable_diffusion(), flow()])
def test_noised_latents_follow_the_process_and_have_no_graph(process):
    latents = torch.randn(2, 4, 3, 5, 5, generator=generator(1), dtype=torch.float64).requires_grad_()
    noised = add_noise(process, latents, torch.tensor([20, 700]), generator())
    for i, t in enumerate((20, 700)):
        expected = process.alpha[t] * latents[i].detach() + process.sigma[t] * noised.noise[i]
        torch.testing.assert_close(noised.x_t[i], expected)
    torch.testing.assert_close(noised.x0(noised.noise), latents.detach())
    assert not noised.x_t.requires_grad and noised.alpha_t.shape == (2, 1, 1, 1, 1)


def test_timesteps_fill_the_range_both_ends_included():
    process = stable_diffusion()
    t = draw_timesteps(process, 20000, 0.5, 0.509, generator())
    assert set(t.tolist()) == set(range(500, 510))
    assert torch.bincount(t)[500:].min() > 1700
    assert (draw_timesteps(process, 9, 0.98, 0.98, generator()) == 980).all()
    assert draw_timesteps(process, 9, 1.0, 1.0, generator()).max() == 999


def test_no_timestep_without_signal_is_drawn():
    """At alpha_t = 0 nothing is left of x0, and x0 = (x_t - sigma_t e) / alpha_t is 0 / 0."""
    assert draw_timesteps(flow(), 9, 1.0, 1.0, generator()).max() == 998


@pytest.mark.parametrize(("t_min", "t_max"), [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_impossible_ranges_are_refused(t_min, t_max):
    with pytest.raises(UserError, match="t_min"):
        draw_timesteps(stable_diffusion(), 1, t_min, t_max, generator())


def test_all_randomness_is_the_generator_s():
    latents, t, draws = torch.zeros(2, 1, 1, 3, 3), torch.tensor([5, 500]), []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        draws.append(add_noise(stable_diffusion(), latents, t, generator(3)).noise)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], add_noise(stable_diffusion(), latents, t, generator(4)).noise)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_network_s_target_says_the_noise_that_was_added(prediction_type):
    """`target` is the inverse of `noise`, for each kind of prediction."""
    process = NoiseProcess.variance_preserving(scaled_linear_alphas_cumprod(), "epsilon")
    if prediction_type == "velocity":
        process = NoiseProcess.rectified_flow()
    process.prediction_type = prediction_type
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, 2, 4, 5, 5, generator=generator).double() for _ in range(2))
    t = torch.tensor([5, 400, 990])
    alpha_t, sigma_t = process.at(t)
    x_t = alpha_t * x0 + sigma_t * noise
    assert torch.allclose(process.noise(process.target(noise, x0, t), x_t, t), noise, atol=1e-4)
