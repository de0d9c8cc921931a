"""Views of toys for the pair classifier: cameras of the world, never a held-out toy, packed as they are drawn."""

import numpy as np

from jointdreamer.classifier.views import PackedViews, read_captions
from jointdreamer.toybox.data import RIG
from jointdreamer.toybox.views import N_VIEWS, pack_toy_views, toy, toy_names, toy_views
from jointdreamer.toybox.world import caption


def test_packed_toys_are_the_toys(tmp_path):
    pack_toy_views(tmp_path, 5, seed=3, resolution=16)
    packed = PackedViews(tmp_path)
    assert packed.ids == toy_names(5, 3) and packed.rgba.shape == (5, N_VIEWS, 16, 16, 4)
    for index in (0, 4):
        rgba, c2w = toy_views(index, 3, 16)
        assert np.array_equal(packed.images(index, range(N_VIEWS), 16), rgba)
        assert np.allclose(packed.poses(index), c2w)
    assert packed.rgba[..., 3].mean() > 30


def test_every_view_has_a_camera_of_its_own_within_the_world_s_ranges():
    poses = np.stack([toy_views(index, 0, 8)[1] for index in range(20)])
    position = poses[..., :3, 3].reshape(-1, 3)
    distance = np.linalg.norm(position, axis=-1)
    elevation = np.degrees(np.arcsin(position[:, 2] / distance))
    azimuth = np.arctan2(position[:, 1], position[:, 0])
    low, high = RIG.elevation_deg
    assert elevation.min() >= low - 1e-3 and elevation.max() <= high + 1e-3 and np.ptp(elevation) > 20
    assert abs(np.exp(1j * azimuth).mean()) < 0.2  # all round
    assert len(np.unique(distance.round(5))) == len(distance)


def test_another_seed_has_other_toys():
    assert not np.array_equal(toy_views(0, 0, 8)[0], toy_views(0, 1, 8)[0])
    assert not set(toy_names(3, 0)) & set(toy_names(3, 1))


def test_packed_toys_are_called_what_they_are(tmp_path):
    pack_toy_views(tmp_path, 5, seed=3, resolution=8)
    captions = read_captions(tmp_path, toy_names(5, 3))
    assert [captions[name] for name in toy_names(5, 3)] == [caption(toy(index, 3)) for index in range(5)]
