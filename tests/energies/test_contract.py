"""What every energy of the registry promises: (B,), a finite gradient, rigs apart, nothing random of its own."""

from types import SimpleNamespace

import pytest
import torch

from jointdreamer.cameras import Cameras, Rig, sample_cameras
from jointdreamer.diffusion import Noised, add_noise, noise_from_x0
from jointdreamer.distillation.joint import energy_gradient, views_of
from jointdreamer.energies.none import NoEnergy
from jointdreamer.energies.random import RandomEnergy
from jointdreamer.energies.registry import ENERGIES, build_energy
from jointdreamer.errors import UserError
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.prompts import Prompts, TextPair

B, V = 3, 4


@pytest.fixture(params=sorted(ENERGIES))
def energy(request, tiny_sd_folder, tiny_mv_folder, tiny_classifier_folder, tiny_nv_folder, imagedream_file):
    """Every name in the table; what each needs to be built at all is said here."""
    options = {"mvs": {"source": tiny_mv_folder()}, "cls": {"source": tiny_classifier_folder}}
    options["i2i"] = {"source": tiny_nv_folder, "reference": 1}  # which view is drawn depends on how many rigs draw
    options["imagedream"] = {"source": imagedream_file, "text": tiny_sd_folder(), "image_size": 16}
    built = build_energy(request.param, **options.get(request.param, {}))
    if request.param == "imagedream":
        built.give_prompt(Prompts("a red robot"))
        built.give_reference(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)), 0.0, 0.0, 2.0)
    return built


@pytest.fixture
def scene(tiny_sd_folder):
    g = torch.Generator().manual_seed(0)
    prior = LatentDiffusion.build(tiny_sd_folder())
    cameras = sample_cameras(Rig(n_rigs=B, n_views=V), 16, g)
    render = SimpleNamespace(rgb=torch.rand(B, V, 3, 16, 16, generator=g), opacity=torch.rand(B, V, 1, 16, 16))
    noised = add_noise(prior.process, torch.randn(B, V, 4, 8, 8, generator=g), torch.tensor([300, 450, 700]), g)
    noise = noise_from_x0(noised.x_t, torch.zeros(1), noised.alpha_t, noised.sigma_t)
    text = TextPair(*(torch.randn(B, V, 12, 16, generator=g) for _ in range(2)))
    return SimpleNamespace(
        prior=prior,
        cameras=cameras,
        render=render,
        noised=noised,
        noise=noise,
        text=text,
    )


def rig(scene, i):
    """Rig i of the scene, alone."""

    def cut(kind, record):
        values = {k: x[i : i + 1] if isinstance(x, torch.Tensor) else x for k, x in vars(record).items()}
        return kind(**values)

    return SimpleNamespace(
        prior=scene.prior,
        cameras=cut(Cameras, scene.cameras),
        render=cut(SimpleNamespace, scene.render),
        noised=cut(Noised, scene.noised),
        noise=scene.noise[i : i + 1],
        text=cut(TextPair, scene.text),
    )


def ask(energy, s, seed=0):
    g = torch.Generator().manual_seed(seed)
    text = [Condition(s.text.cond), Condition(s.text.uncond)]
    views = views_of(s.prior, s.noised, s.noise, s.render, s.cameras, text, g)
    if isinstance(energy, NoEnergy):  # the loop does not ask it
        return torch.zeros_like(s.noised.x_t), energy(views)
    return energy_gradient(energy, views, s.noised, 0.9 * s.noise)


def test_one_finite_number_per_rig_and_a_finite_gradient(energy, scene):
    grad, coherence = ask(energy, scene)
    assert coherence.shape == (B,) and coherence.isfinite().all()
    assert grad.shape == scene.noised.x_t.shape and grad.isfinite().all()


def test_the_generator_decides_everything(energy, scene):
    torch.manual_seed(1)
    grad, coherence = ask(energy, scene)
    torch.manual_seed(2)
    again, same = ask(energy, scene)
    assert torch.equal(grad, again) and torch.equal(coherence, same)


def test_rigs_are_independent(energy, scene, monkeypatch):
    """A rig alone gives what it gives among others, once its noise does not depend on how many are drawn."""
    module = __import__(type(energy).__module__, fromlist=["noise_like"])
    if hasattr(module, "noise_like"):
        monkeypatch.setattr(module, "noise_like", lambda x, g: torch.ones_like(x))
        monkeypatch.setattr("jointdreamer.priors.autoencoder.noise_like", lambda x, g: torch.zeros_like(x))
    grad, coherence = ask(energy, scene)
    for i in range(B):
        alone, c = ask(energy, rig(scene, i))
        torch.testing.assert_close(alone[0], grad[i], rtol=1e-3, atol=1e-4 * float(grad[i].abs().max()) + 1e-6)
        torch.testing.assert_close(c[0], coherence[i], rtol=1e-3, atol=1e-4)


def test_nothing_of_an_energy_is_trained(energy):
    assert not any(p.requires_grad for p in energy.parameters())


def test_an_energy_without_an_image_says_so():
    with pytest.raises(UserError, match="RandomEnergy takes no image: energy=i2i does"):
        RandomEnergy().give_reference(torch.rand(3, 16, 16), 0.0, 0.0, 2.0)
