"""I2I energy (Eq. 7) against its sum, term by term; the novel-view models themselves are tested where they live."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from jointdreamer.cameras import Rig, sample_cameras
from jointdreamer.diffusion import scaled_linear_alphas_cumprod
from jointdreamer.energies.base import Views
from jointdreamer.energies.reconstruction import i2i
from jointdreamer.errors import UserError
from jointdreamer.priors.prompts import TextPair
from jointdreamer.priors.wonder3d import AZIMUTH_DEG

B, V = 2, 4
ORTHO = Rig(n_rigs=B, n_views=6, azimuth_deg=AZIMUTH_DEG, projection="orthographic")


def views(rig=None, latent_size=8, channels=4):
    rig = rig or Rig(n_rigs=B, n_views=V)
    g, v = torch.Generator().manual_seed(0), rig.n_views
    return Views(
        x0=torch.randn(B, v, channels, latent_size, latent_size, generator=g, requires_grad=True),
        rgb=torch.rand(B, v, 3, 16, 16, generator=g),
        opacity=torch.rand(B, v, 1, 16, 16, generator=g),
        cameras=sample_cameras(rig, 16, g),
        timesteps=torch.tensor([100, 600]),
        text=TextPair(*(torch.randn(B, v, 12, 16, generator=g) for _ in range(2))),
        decode=lambda latents: latents,
        generator=torch.Generator().manual_seed(11),
    )


def novel(energy, seen, references):
    """The terms' targets {(rig, view): latents}, every view of every rig asked for by itself."""
    g = torch.Generator().manual_seed(11)
    drawn = torch.randint(seen.x0.shape[1], (B, 1), generator=g)
    if references is None:
        references = drawn[:, 0].tolist()
    else:
        g = torch.Generator().manual_seed(11)  # nothing is drawn for a reference that is known
    rgb = seen.rgb * seen.opacity + (1 - seen.opacity) if energy.white else seen.rgb
    order = [[(r + k) % V for k in range(1, V)] for r in references]
    posterior = energy.prior.vae.encode(2 * torch.cat([rgb[b, order[b]] for b in range(B)]) - 1).latent_dist
    sample = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
    latents = (0.18215 * sample).view(B, V - 1, 4, 8, 8)
    noise = torch.randn(latents.shape, generator=g)
    found = {}
    for b, ref in enumerate(references):
        abar = scaled_linear_alphas_cumprod()[seen.timesteps[b]]
        x_t = abar.sqrt() * latents[b] + (1 - abar).sqrt() * noise[b]
        for k, v in enumerate(order[b]):
            camera, rig = (seen.cameras.select(torch.tensor([[n], [n]])) for n in (v, ref))
            condition = energy.prior.embed_image(rgb[:, ref], rig, camera)
            both = [condition, condition.zeros()]
            x, t = x_t[k][None, None].expand(B, -1, -1, -1, -1), seen.timesteps[b].expand(B)
            cond, uncond = energy.prior.predict(x, t, both, camera)
            noise_pred = uncond + 3.0 * (cond - uncond)
            found[b, v] = ((x - (1 - abar).sqrt() * noise_pred) / abar.sqrt())[b, 0]
    return found


@pytest.mark.parametrize("white", [True, False])
@pytest.mark.parametrize("reference", [None, 2])
def test_energy_is_eq_7(tiny_nv_folder, white, reference):
    energy, seen = i2i(tiny_nv_folder, white=white, reference=reference), views()
    with torch.no_grad():
        targets = novel(energy, seen, None if reference is None else [reference] * B)
    coherence = energy(seen)
    expected, grad = torch.zeros(B), torch.zeros_like(seen.x0)
    for (b, v), target in targets.items():
        expected[b] -= 0.5 * (seen.x0[b, v] - target).square().sum().detach()
        grad[b, v] = (target - seen.x0[b, v]).detach()
    torch.testing.assert_close(coherence, expected, rtol=1e-3, atol=1e-3)
    (found,) = torch.autograd.grad(coherence.sum(), seen.x0)
    torch.testing.assert_close(found, grad, rtol=1e-3, atol=1e-3)
    assert len(targets) == B * (V - 1)  # the reference has no term


def test_several_steps_are_ddim(tiny_nv_folder):
    energy, seen = i2i(tiny_nv_folder, steps=3, reference=0, white=False), views()
    others = torch.tensor([[1, 2, 3]] * B)
    reference, cameras = seen.cameras.select(torch.tensor([[0]] * B)), seen.cameras.select(others)
    prior: Any = energy.prior
    condition = prior.embed_image(seen.rgb[:, 0], reference, cameras)

    g = torch.Generator().manual_seed(11)
    x0 = prior.encode(seen.rgb[:, 1:], g)
    noise = torch.randn(x0.shape, generator=g)
    for now in ([100, 600], [66, 400], [33, 200]):
        abar = scaled_linear_alphas_cumprod()[now].view(B, 1, 1, 1, 1)
        x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        cond, uncond = prior.predict(x_t, torch.tensor(now), [condition, condition.zeros()], cameras)
        x0 = (x_t - (1 - abar).sqrt() * (uncond + 3.0 * (cond - uncond))) / abar.sqrt()
        noise = (x_t - abar.sqrt() * x0) / (1 - abar).sqrt()
    found, compared = energy.estimate(seen)
    assert torch.equal(compared, others)
    torch.testing.assert_close(found, x0, rtol=1e-3, atol=1e-4 * float(x0.abs().max()))


def test_every_view_becomes_the_reference(tiny_nv_folder):
    energy, seen = i2i(tiny_nv_folder), views()
    missing = set()
    for _ in range(12):
        (grad,) = torch.autograd.grad(energy(seen).sum(), seen.x0)
        missing |= {(b, v) for b in range(B) for v in range(V) if not grad[b, v].any()}
    assert missing == {(b, v) for b in range(B) for v in range(V)}


def test_the_front_most_view_is_the_reference_where_asked(tiny_nv_folder):
    energy = i2i(tiny_nv_folder, reference="front")
    for seed in range(5):
        cameras = sample_cameras(Rig(n_rigs=B, n_views=V), 16, torch.Generator().manual_seed(seed))
        chosen = energy._choose(cameras, None)[:, 0]
        away = (torch.rad2deg(cameras.azimuth) + 180) % 360 - 180
        for rig in range(B):
            assert away[rig].abs().argmin() == chosen[rig] and away[rig, chosen[rig]].abs() <= 180 / V + 1e-3
    with pytest.raises(UserError, match="reference=back: wanted null"):
        i2i(tiny_nv_folder, reference="back")


def test_the_reference_can_be_what_the_prior_makes_of_it(tiny_nv_folder):
    """The estimate, decoded, takes the place of the reference's render and of nothing else."""
    seen, asked = views(), []
    estimate = torch.rand(B, V, 3, 16, 16)
    seen = replace(seen, x0_guided=2 * estimate, decode=lambda latents: latents / 2)
    energy = i2i(tiny_nv_folder, reference=1, reference_image="estimate")
    prior: Any = energy.prior
    embed = prior.embed_image
    prior.embed_image = lambda *args: asked.append(args) or embed(*args)
    guided = energy(seen)
    torch.testing.assert_close(asked[0][0], estimate[:, 1])
    render = i2i(tiny_nv_folder, reference=1)
    assert (render(replace(views(), x0_guided=2 * estimate)) - guided).abs().min() > 1e-3
    torch.testing.assert_close(energy(views()), render(views()))  # without an estimate, e.g. in a test of one's own
    with pytest.raises(UserError, match="reference_image=guess: choose"):
        i2i(tiny_nv_folder, reference_image="guess")


def test_the_target_is_a_constant_and_the_network_is_asked_once(tiny_nv_folder):
    energy, seen, calls = i2i(tiny_nv_folder), views(), []
    energy.prior.unet.register_forward_hook(lambda module, args, out: calls.append(args[0].shape[0]))
    seen.rgb.requires_grad_()
    energy(seen).sum().backward()
    assert calls == [2 * B * (V - 1)]  # both halves of the guidance; not the reference
    assert seen.rgb.grad is None and seen.x0.grad is not None


def test_a_smaller_target_is_resized_to_the_latents(tiny_nv_folder):
    energy, seen = i2i(tiny_nv_folder, reference=0), views(latent_size=16)
    target, others = energy.estimate(views(latent_size=16))
    assert target.shape == (B, V - 1, 4, 8, 8) and others.tolist() == [[1, 2, 3]] * B
    large = interpolate(target.flatten(0, 1), (16, 16), mode="bilinear", align_corners=False).view(B, 3, 4, 16, 16)
    torch.testing.assert_close(energy(seen), -0.5 * (seen.x0[:, 1:] - large).square().sum((1, 2, 3, 4)))


def test_wonder3d_has_five_terms_after_its_first_view(wonder3d_folder):
    energy, seen = i2i(wonder3d_folder, kind="wonder3d", image_size=16), views(ORTHO)
    (grad,) = torch.autograd.grad(energy(seen).sum(), seen.x0)
    assert [bool(grad[:, v].any()) for v in range(6)] == [False, True, True, True, True, True]
    again, _ = energy.estimate(views(ORTHO))
    torch.testing.assert_close(grad[:, 1:], (again - seen.x0[:, 1:]).detach(), rtol=1e-4, atol=1e-4)


def test_a_given_image_is_the_reference_of_every_view(tiny_nv_folder):
    energy, seen = i2i(tiny_nv_folder), views()
    energy.give_reference(torch.rand(3, 16, 16), elevation=0.1, azimuth=-0.4, distance=2.0)
    asked = []
    prior: Any = energy.prior
    embed = prior.embed_image
    prior.embed_image = lambda *args: asked.append(args) or embed(*args)
    (grad,) = torch.autograd.grad(energy(seen).sum(), seen.x0)
    assert all(grad[b, v].any() for b in range(B) for v in range(V))
    _, reference, _ = asked[0]
    x, y, z = (2.0 * f for f in (math.cos(0.1) * math.cos(-0.4), math.cos(0.1) * math.sin(-0.4), math.sin(0.1)))
    torch.testing.assert_close(reference.c2w[:, 0, :3, 3], torch.tensor([[x, y, z]] * B))


def test_what_does_not_fit_is_one_line(tiny_nv_folder, wonder3d_folder):
    energy = i2i(tiny_nv_folder, reference=3)
    with pytest.raises(UserError, match="n_views=3 views"):
        energy.check_rig(Rig(n_views=3))
    energy.check_rig(Rig())
    with pytest.raises(UserError, match="4 channels.*12"):
        energy(views(channels=12))
    with pytest.raises(UserError, match="steps must be at least 1"):
        i2i(tiny_nv_folder, steps=0)
    with pytest.raises(UserError, match="the first view, 0"):
        i2i(wonder3d_folder, kind="wonder3d", reference=1)
    with pytest.raises(UserError, match="cannot take a given image"):
        wonder = i2i(wonder3d_folder, kind="wonder3d", image_size=16)
        wonder.give_reference(torch.rand(3, 16, 16), 0.0, 0.0, 2.0)
