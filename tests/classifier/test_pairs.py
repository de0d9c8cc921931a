"""Pairs of views: what a pair is, that nothing leaks, the layout of views_release, and folders with holes."""

import logging
import math
import os
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jointdreamer.cameras import camera_numbers, look_at
from jointdreamer.classifier.pairs import (
    OTHER_OBJECT,
    TRUE,
    WRONG_POSE,
    Damaged,
    PackedViews,
    PairSampler,
    ViewFolder,
    camera_to_world,
    draw_corrections,
    is_held_out,
    open_views,
    prefetch,
    read_captions,
    rotation_angle,
    world_to_camera,
    write_packed,
)
from jointdreamer.errors import UserError

VIEWS = 12


def random_poses(rng, n=VIEWS):
    elevation, azimuth = rng.uniform(-0.3, 1.0, n), rng.uniform(-math.pi, math.pi, n)
    return look_at(*(torch.from_numpy(x) for x in (elevation, azimuth, rng.uniform(1.5, 2.2, n)))).numpy()


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


# The layout


def write_object(folder, seed, n=VIEWS, size=20, flip=False):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    c2w = random_poses(rng, n)
    for view in range(n):
        Image.fromarray(rng.integers(0, 255, (size, size, 4), np.uint8)).save(folder / f"{view:03d}.png")
        pose = world_to_camera(c2w[view])
        np.save(folder / f"{view:03d}.npy", np.diag([1.0, -1.0, -1.0]) @ pose if flip else pose)
    return c2w


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        write_object(tmp_path / "views" / f"object_{i:02d}", i)
    return tmp_path / "views"


@pytest.mark.parametrize("flip", [False, True], ids=["blender", "computer vision"])
def test_poses_are_read_back_whatever_the_camera_s_axes(tmp_path, flip):
    c2w = write_object(tmp_path / "a", 0, flip=flip)
    read = ViewFolder(tmp_path).poses(0)
    assert read.dtype == np.float32 and np.allclose(read, c2w, atol=1e-6)
    stored = np.load(tmp_path / "a" / "000.npy")
    assert stored.shape == (3, 4)
    # the centre is -R^T t (docs/conventions.md, Zero-1-to-3)
    assert np.allclose(-stored[:, :3].T @ stored[:, 3], c2w[0, :3, 3])


@pytest.mark.parametrize("flip", [False, True], ids=["blender", "computer vision"])
@pytest.mark.parametrize("seed", range(5))
def test_poses_the_wrong_way_round_are_noticed(tmp_path, flip, seed):
    c2w = write_object(tmp_path / "a", seed, n=4)
    for view in range(4):
        np.save(tmp_path / "a" / f"{view:03d}.npy", (c2w[view] @ np.diag([1, -1, -1, 1]) if flip else c2w[view])[:3])
    with pytest.raises(Damaged, match="camera-to-world, wanted world-to-camera"):
        ViewFolder(tmp_path).poses(0)


def test_cameras_that_look_a_little_aside_are_no_damage(tmp_path):
    c2w = write_object(tmp_path / "a", 0)
    for view in range(VIEWS):
        turn = np.eye(4)
        turn[:3, :3] = [[np.cos(0.3), 0, np.sin(0.3)], [0, 1, 0], [-np.sin(0.3), 0, np.cos(0.3)]]
        c2w[view] = c2w[view] @ turn
        np.save(tmp_path / "a" / f"{view:03d}.npy", world_to_camera(c2w[view]))
    assert np.allclose(ViewFolder(tmp_path).poses(0), c2w, atol=1e-6)


def test_images_are_resized_without_colour_from_where_nothing_is(tmp_path):
    write_object(tmp_path / "a", 0, n=2)
    picture = np.zeros((20, 20, 4), np.uint8)
    picture[..., 1], picture[10:, :, 3], picture[10:, :, 1], picture[10:, :, 0] = 255, 255, 0, 200
    Image.fromarray(picture).save(tmp_path / "a" / "000.png")
    (small,) = ViewFolder(tmp_path).images(0, [0], 1)
    assert small.shape == (1, 1, 4)
    assert abs(int(small[0, 0, 3]) - 128) < 3 and abs(int(small[0, 0, 0]) - 200) < 4 and small[0, 0, 1] == 0


def test_packed_views_are_the_same_views(folder, tmp_path):
    files = ViewFolder(folder)
    objects = ((files.images(i, range(VIEWS), 20), files.poses(i)) for i in range(12))
    write_packed(tmp_path / "packed", files.ids, (VIEWS, 20), objects)
    packed = open_views(tmp_path / "packed")
    assert isinstance(packed, PackedViews) and isinstance(open_views(folder), ViewFolder)
    for size in (20, 8):
        groups = [PairSampler(s, range(12), size, objects=4).group(0, 0)[0] for s in (files, packed)]
        for a, b in zip(*(vars(group).values() for group in groups), strict=True):
            assert np.array_equal(a, b)
    (tmp_path / "packed" / "c2w.npy").unlink()
    with pytest.raises(UserError, match="make it again"):
        open_views(tmp_path / "packed")


# Holes


def no_image(path, view):
    (path / f"{view}.png").write_bytes((path / f"{view}.png").read_bytes()[:60])


def one_pose_less(path, view):
    (path / f"{view}.npy").unlink()


def no_rotation(path, view):
    np.save(path / f"{view}.npy", np.load(path / f"{view}.npy") * 1.01)


def mirrored(path, view):
    np.save(path / f"{view}.npy", np.load(path / f"{view}.npy") * np.array([[-1], [1], [1]]))


def not_finite(path, view):
    np.save(path / f"{view}.npy", np.full((3, 4), np.nan))


def a_pickle(path, view):
    np.save(path / f"{view}.npy", np.array([print], dtype=object), allow_pickle=True)


def another_shape(path, view):
    np.save(path / f"{view}.npy", np.zeros((2, 2)))


def a_pipe(path, view):
    (path / f"{view}.npy").unlink()
    os.mkfifo(path / f"{view}.npy")


def no_header(path, view):
    (path / f"{view}.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16)


DAMAGE = {
    no_image: "003.png: damaged",
    one_pose_less: "003 lacks its .png or its .npy",
    no_rotation: "not a rotation",
    mirrored: "not a rotation",
    not_finite: "not a rotation",
    a_pickle: "003.npy: damaged",
    another_shape: r"shape (2, 2)",
    a_pipe: "003.npy: damaged",
    no_header: "003.npy: damaged",
}
VIEW_NAMES = [f"{view:03d}" for view in range(VIEWS)]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_a_damaged_view_is_named_and_its_object_keeps_the_others(folder, damage, caplog):
    damage(folder / "object_05", "003")
    drawn = PairSampler(open_views(folder), range(12), 8, objects=12, views=11)
    with caplog.at_level(logging.WARNING, "jointdreamer"):
        for number in range(3):
            group, _ = drawn.group(0, number)
            assert len(group.rgba) == 132 and group.label.mean() == 0.5
    assert drawn.damaged == {}
    assert len(caplog.records) == 1 and "object_05" in caplog.text and DAMAGE[damage] in caplog.text


def test_companions_of_views_are_no_views(folder, caplog):
    before = PairSampler(open_views(folder), range(12), 8).group(0, 0)[0]
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "._object_05").mkdir()
    for path in folder.glob("object_*"):
        for name in ("._000.png", "._000.npy", ".DS_Store", "Thumbs.db", "desktop.ini", "transforms.json"):
            (path / name).write_bytes(b"junk")
    with caplog.at_level(logging.WARNING, "jointdreamer"):
        after = PairSampler(open_views(folder), range(12), 8).group(0, 0)[0]
    assert not caplog.records and np.array_equal(before.rgba, after.rgba) and np.array_equal(before.c2w_2, after.c2w_2)


@pytest.mark.parametrize("damage", [no_image, one_pose_less, not_finite], ids=lambda f: f.__name__)
def test_an_object_with_too_few_views_is_skipped_named_and_counted(folder, damage, caplog):
    for view in VIEW_NAMES[:8]:
        damage(folder / "object_05", view)
    drawn = PairSampler(open_views(folder), range(12), 8, objects=10, views=5)
    with caplog.at_level(logging.WARNING, "jointdreamer"):
        for number in range(4):
            group, _ = drawn.group(0, number)
            assert len(group.rgba) == 50 and group.label.mean() == 0.5
    assert list(drawn.damaged) == ["object_05"]
    assert "object object_05" in caplog.text and "1 so far" in caplog.text


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_a_folder_where_nothing_can_be_used_is_one_line(folder, damage):
    for path in folder.iterdir():
        for view in VIEW_NAMES:
            damage(path, view)
    with pytest.raises(UserError, match=r"none of the 12 objects can be used \(object_00: it has .*0"):
        open_views(folder)


def test_one_good_object_behind_many_bad_ones_is_found(folder):
    for path in sorted(folder.iterdir())[:11]:
        for file in path.iterdir():
            file.unlink()
    assert len(open_views(folder).ids) == 12


@pytest.mark.parametrize("content", ["", "null", "3", "{}", "[1, 2]", '["a"]', "[" * 5000, "[]", '{"a": "b"}'])
def test_packed_views_with_a_list_that_is_none(folder, tmp_path, content):
    files = ViewFolder(folder)
    objects = ((files.images(i, range(VIEWS), 20), files.poses(i)) for i in range(12))
    write_packed(tmp_path / "packed", files.ids, (VIEWS, 20), objects)
    (tmp_path / "packed" / "ids.json").write_text(content)
    with pytest.raises(UserError, match="make it again"):
        open_views(tmp_path / "packed")


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("c2w.npy", (3,), float),
        ("c2w.npy", (12, VIEWS, 3, 4), float),
        ("c2w.npy", (11, VIEWS, 4, 4), float),
        ("c2w.npy", (12, VIEWS, 4, 4), int),
        ("rgba.npy", (7,), np.uint8),
        ("rgba.npy", (12, VIEWS, 20, 20, 3), np.uint8),
        ("rgba.npy", (12, VIEWS, 20, 20, 4), float),
        ("rgba.npy", (12, VIEWS, 0, 0, 4), np.uint8),
    ],
)
def test_packed_views_of_another_form(folder, tmp_path, name, shape, dtype):
    files = ViewFolder(folder)
    objects = ((files.images(i, range(VIEWS), 20), files.poses(i)) for i in range(12))
    write_packed(tmp_path / "packed", files.ids, (VIEWS, 20), objects)
    np.save(tmp_path / "packed" / name, np.zeros(shape, dtype))
    with pytest.raises(UserError, match="make it again"):
        open_views(tmp_path / "packed")


def test_folders_that_are_none(tmp_path, folder):
    with pytest.raises(UserError, match="no such folder"):
        open_views(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no object in it"):
        open_views(tmp_path / "empty")
    with pytest.raises(UserError, match="this set has 1 of 12"):
        PairSampler(open_views(folder), [3], 8)


def test_too_few_good_objects_end_the_search(folder):
    source = open_views(folder)
    for path in sorted(folder.iterdir())[:10]:
        shutil.rmtree(path)
        path.mkdir()
    with pytest.raises(UserError, match="10 objects cannot be used.*object_0"):
        PairSampler(source, range(12), 8, objects=4).group(0, 0)


def test_a_single_bad_pose_names_its_file():
    with pytest.raises(Damaged, match="a.npy is not a rotation"):
        camera_to_world(np.zeros((3, 4)), "a.npy")


# Reading ahead


def test_prefetching_keeps_the_order_reads_no_further_and_hands_errors_on():
    asked = []

    def make(key):
        asked.append(key)
        if key == 7:
            raise UserError("seven")
        return key * key

    stream = prefetch(make, range(100), workers=3, ahead=4)
    assert [next(stream) for _ in range(3)] == [0, 1, 4]
    assert len(asked) <= 8
    with pytest.raises(UserError, match="seven"):
        list(stream)
    assert list(prefetch(make, [], workers=2)) == []


def test_captions_are_read_and_objects_without_one_are_named(tmp_path, caplog):
    with pytest.raises(UserError, match=r"captions\.json: no captions \(absent"):
        read_captions(tmp_path, ["one"])
    (tmp_path / "captions.json").write_text('{"one": "a bear", "two": " ", "three": 3, "four": null}')
    assert read_captions(tmp_path, ["one"]) == {"one": "a bear"} and not caplog.records
    with caplog.at_level(logging.WARNING, "jointdreamer"):
        assert read_captions(tmp_path, ["one", "two", "three", "four", "five"]) == {"one": "a bear"}
    assert "no caption for two: 4 objects are left out" in caplog.text
    for content in ("", "null", "[]", "[" * 5000, '{"one": []}', '{"one": ""}'):
        (tmp_path / "captions.json").write_text(content)
        with pytest.raises(UserError, match="no captions"):
            read_captions(tmp_path, ["one"])


def test_a_group_knows_its_objects_by_name():
    group, _ = sampler().group(3, 1)
    red = group.rgba[:, 0, 0, 0]  # the number of the object
    assert [group.ids[k] for k in group.object] == [f"object_{number}" for number in red]


def test_a_byte_order_mark_is_no_part_of_the_captions(tmp_path):
    from jointdreamer.classifier.pairs import read_captions

    (tmp_path / "captions.json").write_bytes(b'\xef\xbb\xbf{"toy":\r\n "a cat"}')
    assert read_captions(tmp_path, ["toy"]) == {"toy": "a cat"}
