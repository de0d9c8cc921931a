"""The toybox's novel-view model is trained as priors/zero123.py will ask it."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from jointdreamer.cameras import Cameras, look_at, sample_cameras
from jointdreamer.diffusion import noise_from_x0
from jointdreamer.files import write_text
from jointdreamer.priors.registry import load_novel_view
from jointdreamer.priors.zero123 import relative_numbers
from jointdreamer.toybox import data, networks
from jointdreamer.toybox.recipes.novel_view import NovelView, rig_poses, widened
from jointdreamer.toybox.recipes.pictures import EDITION_FILE
from jointdreamer.toybox.recipes.shipped import FAMILY, WEIGHTS
from tests.priors.test_novel_view import x0_of

CHANNELS = networks.LATENT_CHANNELS


@pytest.fixture(scope="module")
def recipe():
    made = object.__new__(NovelView)  # without pictures to learn from
    projection = nn.Linear(networks.TEXT_WIDTH + 4, networks.TEXT_WIDTH)
    made.networks = {
        "unet": networks.build_unet(in_channels=2 * CHANNELS),
        "projection": projection,
        "tower": networks.build_vision_tower(),
    }
    return made


@pytest.fixture(scope="module")
def cameras():
    return sample_cameras(data.RIG, 64, torch.Generator().manual_seed(0))


def test_the_shipped_form_is_asked_what_was_trained(recipe, cameras, tmp_path):
    model = load_novel_view("zero123", recipe.save(tmp_path), vae=FAMILY, guidance_scale=1.0)
    assert (model.image_size, model.process.prediction_type) == (64, "sample")
    g = torch.Generator().manual_seed(1)
    image, x_t = torch.rand(1, 3, 64, 64, generator=g), torch.randn(1, 3, CHANNELS, 16, 16, generator=g)
    pictures = data.Pictures(np.empty(0), [], cameras.azimuth.numpy(), cameras.elevation.numpy(), np.empty(0))
    others, reference = np.array([[2, 3, 0]]), np.array([[1]])
    reference_cameras = cameras.select(torch.from_numpy(reference))
    asked = cameras.select(torch.from_numpy(others))
    out = x0_of(model, image, reference_cameras, x_t, torch.tensor([500]), asked)

    with torch.no_grad():
        pose = rig_poses(pictures, np.array([[0]]), reference, others)
        context = recipe.context(image, pose).flatten(0, 1)[:, None]
        beside = model.vae.encode(2 * image - 1).latent_dist.mean.expand(3, -1, -1, -1)
        expected = recipe.networks["unet"](torch.cat([x_t[0], beside], 1), torch.tensor(500), context).sample
    # the folder holds half precision
    torch.testing.assert_close(out[0], expected, rtol=2e-2, atol=5e-3 * float(expected.abs().max()))


def test_poses_of_a_rig_are_zero123_s(cameras):
    pictures = data.Pictures(np.empty(0), [], cameras.azimuth.numpy(), cameras.elevation.numpy(), np.empty(0))
    for reference in range(4):
        others = (reference + np.arange(1, 4))[None] % 4
        numbers = rig_poses(pictures, np.array([[0]]), np.array([[reference]]), others)
        chosen = (torch.tensor([[reference]]), torch.from_numpy(others))
        expected = relative_numbers(*(cameras.select(views) for views in chosen))
        torch.testing.assert_close(numbers, expected, atol=1e-5, rtol=0)


def test_a_widened_unet_starts_as_the_narrow_one():
    torch.manual_seed(0)
    narrow, wide = networks.build_unet(), networks.build_unet(in_channels=2 * CHANNELS)
    start = narrow.state_dict()
    start["conv_in.weight"] = widened(start["conv_in.weight"])
    wide.load_state_dict(start)
    x, beside = torch.randn(2, 2, CHANNELS, 16, 16)
    words = torch.randn(2, 1, networks.TEXT_WIDTH)
    with torch.no_grad():
        one, other = narrow(x, 300, words).sample, wide(torch.cat([x, beside], 1), 300, words).sample
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_all_of_it_fits_in_sixteen_megabytes(recipe):
    numbers = sum(p.numel() for net in recipe.networks.values() for p in net.parameters())
    assert 2 * numbers < 16e6


@pytest.mark.skipif(not (WEIGHTS / "novel_view").exists(), reason="not trained yet")
@pytest.mark.parametrize(("near_front", "share"), [(True, 0.75), (False, 0.95)])
def test_the_shipped_model_turns_the_object(near_front, share):
    """Of held-out shapes it draws the other sides better than the image repeated is: 0.60 of the error from the view
    nearest to the front, where the energy has its reference, and 0.89 from any side (LAB.md)."""
    model = load_novel_view("zero123", WEIGHTS / "novel_view", vae=FAMILY, x0_limit=5.0)
    pictures = data.rigs(12, seed=94, scarce=False, shape="held_out")
    rgb = data.composite(pictures.rgba, np.full((12, 4, 3), 0.85))
    azimuth, elevation = (torch.from_numpy(x) for x in (pictures.azimuth, pictures.elevation))
    distance = torch.full_like(azimuth, 2.5)
    rig = Cameras(look_at(elevation, azimuth, distance), distance, elevation, azimuth, distance, distance, 64)
    noise = torch.randn(12, 3, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = azimuth.cos().argmax(1, keepdim=True) if near_front else torch.zeros(12, 1, dtype=torch.long)
    others, rows = (seen + torch.arange(1, 4)) % 4, torch.arange(12)[:, None]
    images, x0 = rgb[rows, seen], torch.zeros(())
    for k in range(8):  # DDIM from pure noise, guidance_scale 3
        t = torch.full((12,), 999 * (8 - k) // 8)
        alpha_t, sigma_t = model.process.at(t)
        x_t = alpha_t * x0 + sigma_t * noise if k else noise
        x0 = x0_of(model, images[:, 0], rig.select(seen), x_t, t, rig.select(others))
        noise = noise_from_x0(x_t, x0, alpha_t, sigma_t)
    with torch.no_grad():
        views = model.vae.decode(x0.flatten(0, 1) / model.vae.config.scaling_factor).sample / 2 + 0.5
    wanted = rgb[rows, others].flatten(0, 1)
    error = (views.clamp(0, 1) - wanted).square().mean()
    assert error < share * (images.expand(-1, 3, -1, -1, -1).flatten(0, 1) - wanted).square().mean()


def test_the_image_may_be_what_the_prior_makes_of_it(tmp_path, monkeypatch):
    """Both kinds of image, and any number of them down to one; seen at the noise level of the views."""
    data.flat_pictures(2, seed=0).save(tmp_path / "flat")
    data.rigs(3, seed=0).save(tmp_path / "rigs")
    write_text(tmp_path / EDITION_FILE, json.dumps({"edition": networks.SHIPPED_EDITION}))
    recipe = NovelView(tmp_path, batch=6)  # two rigs a step
    asked = []

    def counted(latents, timesteps, rows, reference, rng):
        asked.append(len(rows))
        return NovelView.estimates(recipe, latents, timesteps, rows, reference, rng)

    monkeypatch.setattr(recipe, "estimates", counted)
    for step in range(6):
        assert recipe.loss(step, np.random.default_rng(step)).isfinite()
    assert set(asked) == {1, 2} and len(asked) < 6

    monkeypatch.undo()
    latents = torch.from_numpy(recipe.latents[:2, 0].astype(np.float32))
    rows, views, rng = np.arange(2), np.zeros(2, dtype=int), np.random.default_rng(0)
    clear, _ = recipe.estimates(latents, torch.tensor([1, 1]), rows, views, rng)
    vague, _ = recipe.estimates(latents, torch.tensor([980, 980]), rows, views, rng)
    truth = data.composite(recipe.rigs.rgba[rows, views], recipe.ground[rows])
    assert (clear - truth).square().mean() < 0.3 * (vague - truth).square().mean()
