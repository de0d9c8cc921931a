"""The rendered pictures: flat ones with their captions, and rigs with their cameras."""

import numpy as np

from jointdreamer.toybox import data
from jointdreamer.toybox.world import Toy, has_3d_data


def test_flat_pictures_are_biased_to_the_front_and_reproducible():
    pictures, again = data.flat_pictures(200, seed=1), data.flat_pictures(200, seed=1)
    np.testing.assert_array_equal(pictures.rgba, again.rgba)
    front = np.abs((pictures.azimuth + np.pi) % (2 * np.pi) - np.pi) < np.radians(45)
    assert 0.7 < front.mean() < 0.95


def test_few_captions_name_the_direction_and_some_wrongly():
    rng = np.random.default_rng(0)
    said = [data.flat_caption(Toy("bear", "red"), 0.0, 0.2, rng) for _ in range(2000)]
    named = [text for text in said if "view" in text]
    assert 0.35 < len(named) / 2000 < 0.45
    assert 0.15 < np.mean(["front" not in text for text in named]) < 0.25  # two thirds of three in ten


def test_rigs_are_ninety_degrees_apart_and_carry_their_cameras():
    pictures = data.rigs(5, seed=2)
    assert pictures.camera.shape == (5, 4, 16)
    np.testing.assert_allclose(np.diff(pictures.azimuth, axis=1), np.pi / 2, atol=1e-5)
    assert all(has_3d_data(t) for t in pictures.toys)
