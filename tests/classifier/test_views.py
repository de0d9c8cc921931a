"""Views on disk: the layout of views_release, packed views, captions, and folders with holes."""

import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from jointdreamer.classifier.pairs import PairSampler
from jointdreamer.classifier.views import (
    Damaged,
    PackedViews,
    ViewFolder,
    camera_to_world,
    open_views,
    read_captions,
    world_to_camera,
    write_packed,
)
from jointdreamer.errors import UserError
from tests.classifier.poses import VIEWS, random_poses


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


# Captions


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


def test_a_byte_order_mark_is_no_part_of_the_captions(tmp_path):
    (tmp_path / "captions.json").write_bytes(b'\xef\xbb\xbf{"toy":\r\n "a cat"}')
    assert read_captions(tmp_path, ["toy"]) == {"toy": "a cat"}
