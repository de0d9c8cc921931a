"""A fitted NeRF shows its object: nearer to the truth at every moment, and the same from the same seed."""

import math

import numpy as np
import torch

from jointdreamer.cameras import Rig, look_at
from jointdreamer.toybox import data, nerf_views, raycast
from jointdreamer.toybox.solids import solids
from jointdreamer.toybox.world import is_held_out_combination


def test_later_views_are_nearer_to_the_truth(monkeypatch):
    fixed = Rig(elevation_deg=(0.0, 30.0), fovy_deg=(40.0, 40.0), relative_distance=(0.95, 0.95))
    monkeypatch.setattr(nerf_views, "MOMENTS", (3, 60))
    monkeypatch.setattr(data, "RIG", fixed)
    pictures = nerf_views.nerf_views(1, seed=5)
    n = 2 * nerf_views.VIEWS
    assert pictures.rgba.shape == (1, n, 64, 64, 4) and pictures.camera.shape == (1, n, 16)
    assert not is_held_out_combination(pictures.toys[0])

    azimuth, elevation = torch.from_numpy(pictures.azimuth[0]), torch.from_numpy(pictures.elevation[0])
    c2w = look_at(elevation, azimuth, torch.full((n,), 0.95 / math.tan(math.radians(20))))
    fovy = np.full(n, math.radians(40))
    truth = raycast.render(raycast.pack(solids(pictures.toys[0])), c2w.double().numpy(), fovy, 64)[0]
    rgba = pictures.rgba[0] / 255
    error = ((rgba[..., :3] * rgba[..., 3:] - truth[..., :3] * truth[..., 3:]) ** 2).mean((1, 2, 3))
    assert error[nerf_views.VIEWS :].max() < 0.3 * error[: nerf_views.VIEWS].min()

    again = nerf_views.nerf_views(1, seed=5)
    assert np.array_equal(pictures.rgba, again.rgba) and np.array_equal(pictures.azimuth, again.azimuth)
