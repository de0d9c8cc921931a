"""Classifier-free guidance and its relatives against their equations."""

import torch

from jointdreamer.diffusion import NoiseProcess, scaled_linear_alphas_cumprod
from jointdreamer.priors.guidance import Guidance, guided, rescaled

B, V, C, H = 2, 3, 4, 5
PROCESS = NoiseProcess.variance_preserving(scaled_linear_alphas_cumprod().double())
T = torch.tensor([200, 900])


def tensors(seed):
    return torch.randn(B, V, C, H, H, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_usual_scale_is_one_more_than_the_paper_s():
    cond, uncond = tensors(1), tensors(2)
    torch.testing.assert_close(guided(cond, uncond, 31.0), (1 + 30.0) * cond - 30.0 * uncond)
    torch.testing.assert_close(guided(cond, uncond, 1.0), cond)


def test_rescaling_gives_the_share_of_the_spread():
    x, cond = 7 * tensors(1), tensors(2)
    full = rescaled(x, cond, 1.0)
    torch.testing.assert_close(full.std((-3, -2, -1)), cond.std((-3, -2, -1)), rtol=1e-6, atol=0)
    over_rig = rescaled(x, cond, 1.0, "rig")
    torch.testing.assert_close(over_rig.std((1, 2, 3, 4)), cond.std((1, 2, 3, 4)), rtol=1e-6, atol=0)
    assert not torch.allclose(full, over_rig)
    torch.testing.assert_close(rescaled(x, cond, 0.3), 0.3 * full + 0.7 * x)


def test_what_is_off_changes_nothing():
    cond, uncond = tensors(1), tensors(2)
    plain = Guidance().noise(PROCESS, tensors(3), T, cond, uncond, 5.0)
    assert torch.equal(plain, guided(cond, uncond, 5.0))


def test_a_scale_of_its_own_beats_the_schedule_s():
    cond, uncond, x_t = tensors(1), tensors(2), tensors(3)
    own = Guidance(scale=3.0).noise(PROCESS, x_t, T, cond, uncond, 50.0)
    assert torch.equal(own, guided(cond, uncond, 3.0))


def test_the_implied_x0_is_rescaled_and_clamped():
    cond, uncond, x_t = tensors(1), tensors(2), tensors(3)
    a, s = PROCESS.at(T)
    options = Guidance(x0_rescale=0.7, x0_limit=1.5)
    noise = options.noise(PROCESS, x_t, T, cond, uncond, 4.0)
    x0 = (x_t - s * (uncond + 4 * (cond - uncond))) / a
    of_text = (x_t - s * cond) / a
    factor = of_text.std((-3, -2, -1), keepdim=True) / x0.std((-3, -2, -1), keepdim=True)
    expected = (0.7 * factor * x0 + 0.3 * x0).clamp(-1.5, 1.5)
    torch.testing.assert_close((x_t - s * noise) / a, expected, rtol=1e-6, atol=1e-6)
    assert 0 < (expected.abs() == 1.5).double().mean() < 1


def test_cfg_rescale_is_on_the_noise():
    cond, uncond, x_t = tensors(1), tensors(2), tensors(3)
    noise = Guidance(cfg_rescale=1.0).noise(PROCESS, x_t, T, cond, uncond, 9.0)
    torch.testing.assert_close(noise.std((-3, -2, -1)), cond.std((-3, -2, -1)), rtol=1e-6, atol=0)
