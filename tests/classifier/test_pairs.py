"""Pairs of views: what a pair is, and that nothing leaks."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from jointdreamer.cameras import camera_numbers
from jointdreamer.classifier.pairs import (
    OTHER_OBJECT,
    TRUE,
    WRONG_POSE,
    PairSampler,
    draw_corrections,
    is_held_out,
    rotation_angle,
)
from tests.classifier.poses import random_poses


class Numbered:
    """Objects in memory whose images say which object and view they are."""

    name = "numbered"

    def __init__(self, n=40):
        rng = np.random.default_rng(0)
        self.ids = [f"object_{i}" for i in range(n)]
        self.c2w = [random_poses(rng).astype(np.float32) for _ in range(n)]

    def poses(self, index):
        return self.c2w[index]

    def images(self, index, views, size):
        image = np.zeros((len(views), size, size, 4), np.uint8)
        image[..., 0], image[..., 1], image[..., 3] = index, np.array(list(views))[:, None, None], 255
        return image


def sampler(**changes: Any) -> Any:
    source = Numbered()
    return PairSampler(source, range(len(source.ids)), **{"size": 1, **changes})


def told_apart(group):
    """Object and view of each pair's images."""
    where = group.rgba[:, 0, 0, :2].astype(int)
    return where[group.first], where[group.second]


def test_half_of_the_pairs_are_coherent_and_of_every_group():
    for number in range(20):
        group, _ = sampler(objects=4, views=3).group(5, number)
        assert len(group.kind) == 48 and group.label.sum() == 24 and group.label.dtype == np.float32
        assert [(group.kind == kind).sum() for kind in (TRUE, WRONG_POSE, OTHER_OBJECT)] == [24, 12, 12]
        assert len(group.rgba) == 12


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_pairs_are_what_their_kinds_say(share):
    drawn = sampler(wrong_pose_share=share, min_angle_deg=25)
    for number in range(10):
        group, _ = drawn.group(0, number)
        (object_1, view_1), (object_2, view_2) = (x.T for x in told_apart(group))
        true_1 = np.stack([drawn.source.c2w[o][v] for o, v in zip(object_1, view_1, strict=True)])
        true_2 = np.stack([drawn.source.c2w[o][v] for o, v in zip(object_2, view_2, strict=True)])
        assert np.array_equal(group.c2w_1, true_1)
        off = rotation_angle(group.c2w_2, true_2)
        wrong = group.kind == WRONG_POSE
        assert np.array_equal(object_1 == object_2, group.kind != OTHER_OBJECT)
        assert off[wrong].min(initial=9) >= math.radians(25) and off[~wrong].max() < 1e-3
        assert ((view_1 != view_2) | (object_1 != object_2)).all()
        for told, o in zip(group.c2w_2[wrong], object_2[wrong], strict=True):  # a pose that the object really has
            assert any(np.array_equal(told, pose) for pose in drawn.source.c2w[o])
        cosine = (true_1[:, :3, 2] * true_2[:, :3, 2]).sum(-1).clip(-1, 1)
        assert np.allclose(group.angle, np.degrees(np.arccos(cosine)), atol=1e-2)
        assert (wrong.sum() == 0) == (share == 0.0)


def test_the_pose_alone_says_nothing_about_the_label():
    """The release's leaks: wrong poses of another scale, and a chance of being right."""
    drawn = sampler(objects=8, views=3)
    groups = [drawn.group(0, number)[0] for number in range(120)]
    camera = torch.cat([camera_numbers(torch.from_numpy(g.c2w_1), torch.from_numpy(g.c2w_2)) for g in groups]).double()
    label = torch.cat([torch.from_numpy(g.label) for g in groups]).double()
    columns = camera[:, :12]  # the last row is constant
    features = torch.cat([columns, (columns[:, :, None] * columns[:, None]).flatten(1), torch.ones(len(label), 1)], 1)
    half = len(label) // 2
    ridge = features[:half].T @ features[:half] + 1e-2 * torch.eye(features.shape[1])
    weight = torch.linalg.solve(ridge, features[:half].T @ (2 * label[:half] - 1))
    accuracy = ((features[half:] @ weight > 0) == label[half:].bool()).double().mean()
    assert accuracy < 0.54
    leaking = torch.cat([camera[:, :12] * (1 + label)[:, None], torch.ones(len(label), 1)], 1)  # and it would be seen
    products = (leaking[:, :, None] * leaking[:, None]).flatten(1)
    ridge = products[:half].T @ products[:half] + 1e-2 * torch.eye(products.shape[1])
    weight = torch.linalg.solve(ridge, products[:half].T @ (2 * label[:half] - 1))
    assert ((products[half:] @ weight > 0) == label[half:].bool()).double().mean() > 0.7


def test_a_group_is_a_pure_function_of_seed_step_and_number():
    (one, rng_1), (same, rng_2) = (sampler(seed=3).group(7, 2) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(same).values(), strict=True))
    assert rng_1.random() == rng_2.random()
    for other in (sampler(seed=4).group(7, 2), sampler(seed=3).group(8, 2), sampler(seed=3).group(7, 3)):
        assert not np.array_equal(one.rgba, other[0].rgba)


def test_a_correction_compares_with_another_view_of_the_object_and_shows_a_wrong_one():
    copies, fronts, strangers, shares, blurs = [], [], [], [], []
    for number in range(40):
        group, rng = sampler(objects=3, views=4).group(0, number)
        drawn = reference, instead, share, blur = draw_corrections(group, rng)
        rows = np.arange(12)
        assert (group.object[reference] == group.object).all() and (reference != rows).all()
        assert (group.rgba[:, 0, 0, 0][reference] == group.rgba[:, 0, 0, 0]).all()  # as the images themselves say
        same = group.object[instead] == group.object
        assert (instead[same] != rows[same]).mean() > 0.9
        copies.append(instead == reference)
        strangers.append(~same)
        facing = np.where((group.object[:, None] == group.object) & ~np.eye(12, dtype=bool), group.c2w[:, 0, 2], -9)
        fronts.append(reference == facing.argmax(1))
        shares.append(share)
        blurs.append(blur)
    assert 0.4 < np.mean(copies) < 0.7 and 0.03 < np.mean(strangers) < 0.2
    assert 0.6 < np.mean(fronts) < 0.85  # 0.6, and a third of the rest by chance
    assert 0.4 < np.mean(np.concatenate(shares) == 0) < 0.6 and np.max(shares) <= 0.7
    assert 0.65 < np.mean(np.concatenate(blurs) == 0) < 0.85 and np.min(blurs) >= 0 and np.max(blurs) <= 0.3
    again, rng = sampler(objects=3, views=4).group(0, 39)
    for one, other in zip(draw_corrections(again, rng), drawn, strict=True):
        assert np.array_equal(one, other)


def test_held_out_objects_stay_held_out():
    names = [f"object {i}" for i in range(20_000)]
    held = [name for name in names if is_held_out(name, 5)]
    assert len(held) == pytest.approx(1000, rel=0.15)
    assert set(held) <= {name for name in names if is_held_out(name, 10)}


def test_a_group_knows_its_objects_by_name():
    group, _ = sampler().group(3, 1)
    red = group.rgba[:, 0, 0, 0]  # the number of the object
    assert [group.ids[k] for k in group.object] == [f"object_{number}" for number in red]
