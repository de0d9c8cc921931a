from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jointdreamer.guidance.base import Guidance, NoisePrediction
from jointdreamer.outputs import field_options, save_energy

ALPHA, SIGMA = 0.6, 0.8


class Flat(Guidance):
    """A prior whose latents are pictures already."""

    def __init__(self):
        super().__init__()
        self.alphas_cumprod = torch.full((1000,), ALPHA**2)

    def encode(self, rgb, generator, grad=True, chunk=None):
        return rgb

    def decode(self, latents):
        return latents

    def predict_noise(self, noised, text, guidance_scale):
        raise AssertionError("a picture asks no network")


def rows(path, n_rows, size, padding=2, title=14):
    """The pixels of each row of a contact sheet, by view: (rows, views, size, size) of the red channel."""
    sheet = np.asarray(Image.open(path))[..., 0]
    assert len(sheet) == n_rows * (title + size + 2 * padding)
    tops = [r * (title + size + 2 * padding) + title + padding for r in range(n_rows)]
    lefts = range(padding, sheet.shape[1], size + padding)
    return np.array([[sheet[top : top + size, left : left + size] for left in lefts] for top in tops])


@pytest.mark.parametrize("seen", ["uncond", "guided"])
def test_the_energy_s_picture_shows_its_target_and_where_the_joint_prediction_went(tmp_path, seen):
    generator = torch.Generator().manual_seed(0)
    x_t = torch.rand(1, 4, 3, 8, 8, generator=generator)
    colour = {"guided": 0.2, "uncond": 0.4, "target": 0.9}  # of the clean pictures
    noise = {name: (x_t - ALPHA * value) / SIGMA for name, value in colour.items()}
    # C = -1/2 |x0 - target|^2 of the x0 = (x_t - sigma e) / alpha that it sees
    energy_grad = torch.full_like(x_t, (colour["target"] - colour[seen]) / ALPHA)
    weight = 0.5 * ALPHA**2 / SIGMA**2  # moves the guided x0 by half of target - x0
    joint = noise["guided"] - weight * SIGMA * energy_grad

    before = torch.get_rng_state()
    noised: Any = SimpleNamespace(latents_noisy=x_t, timesteps=torch.tensor([500]))
    pred = NoisePrediction(noise["guided"], noise["guided"], noise["uncond"])
    path = save_energy(tmp_path / "energy" / "step_000001.png", Flat(), noised, pred, energy_grad, joint, seen)
    assert torch.equal(torch.get_rng_state(), before)

    noisy, x0, wanted, after = rows(path, n_rows=4, size=8)
    np.testing.assert_allclose(noisy, x_t[0, :, 0] * 255, atol=0.51)
    for shown, value in ((x0, 0.2), (wanted, 0.9), (after, 0.2 + 0.5 * (0.9 - colour[seen]))):
        assert shown.shape == (4, 8, 8)
        assert shown == pytest.approx(255 * value, abs=0.51)


def test_the_field_of_a_run_from_before_its_encoding_was_a_group():
    inside = {"n_levels": 2, "log2_table_size": 6, "backend": "torch"}
    assert field_options({**inside, "hidden": 8}) == {"encoding": inside, "hidden": 8}
    new = {"encoding": inside, "hidden": 8, "magic": 1}
    assert field_options(new) == new
