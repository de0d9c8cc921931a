"""Augmentation changes colours and sharpness, never where things are."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jointdreamer.classifier.augment import Augmentation, blur, to_images
from jointdreamer.errors import UserError

NONE: dict[str, Any] = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarize": 0.0}


def picture(seed=0, size=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8))


def changed(**settings):
    image = picture()
    out = Augmentation(**{**NONE, **settings})(image, np.random.default_rng(1))
    return np.asarray(image).astype(int), np.asarray(out).astype(int)


def test_without_any_of_them_nothing_happens():
    before, after = changed()
    assert np.array_equal(before, after)


def test_solarisation_inverts_what_is_bright():
    before, after = changed(solarize=1.0)
    assert np.array_equal(after, np.where(before < 128, before, 255 - before))


def test_grey_has_one_channel_and_the_image_s_luma():
    before, after = changed(grey=1.0)
    assert np.ptp(after, axis=-1).max() == 0
    assert np.abs(after[..., 0] - before @ [0.299, 0.587, 0.114]).max() <= 1


def test_blur_keeps_the_mean_and_takes_the_contrast():
    before, after = changed(blur=1.0, blur_radius=(2.0, 2.0))
    assert abs(before.mean() - after.mean()) < 4 and after.std() < 0.4 * before.std()


def test_hue_turns_the_colour_and_keeps_its_lightness():
    red = Image.fromarray(np.full((4, 4, 3), (200, 40, 40), np.uint8))
    turn = Augmentation(**{**NONE, "jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.5})
    seen = {tuple(np.asarray(turn(red, np.random.default_rng(seed)))[0, 0]) for seed in range(20)}
    assert len(seen) > 10
    assert all(abs(max(c) - 200) <= 3 and abs(min(c) - 40) <= 3 for c in seen)


def test_jitter_stays_within_its_range():
    grey = Image.fromarray(np.full((4, 4, 3), 100, np.uint8))
    brighter = Augmentation(
        **{**NONE, "jitter": 1.0, "brightness": 0.4, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    )
    levels = [int(np.asarray(brighter(grey, np.random.default_rng(seed)))[0, 0, 0]) for seed in range(200)]
    assert 58 <= min(levels) < 65 and 135 < max(levels) <= 141


def test_nothing_moves():
    """A bright dot stays the brightest place, so no flip, no crop, no turn."""
    pixels = np.full((15, 15, 3), 30, np.uint8)
    pixels[3, 11] = 120
    everything = Augmentation(
        jitter=1, brightness=0.2, contrast=0.2, grey=1, blur=1, solarize=0, blur_radius=(0.5, 1.0)
    )
    for seed in range(50):
        out = np.asarray(everything(Image.fromarray(pixels), np.random.default_rng(seed))).sum(-1)
        assert np.unravel_index(out.argmax(), out.shape) == (3, 11)


def test_images_lie_over_a_grey_of_their_own():
    rgba = np.zeros((30, 2, 2, 4), np.uint8)
    rgba[:, 0] = (200, 100, 0, 255)
    rgba[:, 1, :, 0] = 255  # colour where nothing is
    images = to_images(rgba, (0.6, 1.0), np.random.default_rng(0))
    assert images.shape == (30, 3, 2, 2) and images.dtype == torch.float32
    torch.testing.assert_close(images[:, :, 0], torch.tensor([200, 100, 0]).view(3, 1).expand(30, 3, 2) / 255)
    greys = images[:, :, 1, 0]
    assert greys.std(1).max() == 0 and 0.6 <= greys.min() < 0.65 and 0.95 < greys.max() <= 1


@pytest.mark.parametrize("wrong", [{"jitter": 1.5}, {"hue": 0.6}, {"blur_radius": (2.0, 1.0)}, {"grey": -0.1}])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(UserError, match="augmentation"):
        Augmentation(**wrong)


def test_each_image_is_blurred_by_its_own_radius():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 4), np.uint8)
    out = blur(pixels, np.array([0, 1, 4]))
    assert np.array_equal(out[0], pixels[0]) and out.shape == pixels.shape
    assert out[2].std() < 0.5 * out[1].std() < 0.5 * pixels[1].std()
    flat = np.full((1, 16, 16, 4), 7, np.uint8)
    assert np.array_equal(blur(flat, np.array([3.0])), flat)
