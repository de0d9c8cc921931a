"""What degraded views are."""

import numpy as np
import torch

from jointdreamer.toybox.recipes.degrade import degrade


def test_degraded_views_stay_pictures():
    rgb = torch.rand(20, 3, 64, 64)
    out = degrade(rgb, np.random.default_rng(0))
    assert out.shape == rgb.shape and out.min() >= 0 and out.max() <= 1
    untouched = (out == rgb).flatten(1).all(1).float().mean()
    assert 0.1 < untouched < 0.8
