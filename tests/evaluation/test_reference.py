import math
import os

import numpy as np
import pytest
from PIL import Image

from jointdreamer.errors import UserError
from jointdreamer.evaluation.measure import Instruments
from jointdreamer.evaluation.networks import toybox_clip
from jointdreamer.evaluation.reference import TRUE_TOYS, folder_features, name_toys, toybox_features
from jointdreamer.toybox.judge import BACKGROUND
from jointdreamer.toybox.raycast import pack, render
from jointdreamer.toybox.solids import solids
from jointdreamer.toybox.world import HELD_OUT_SHAPES, Toy

ORBIT = {"elevation_deg": 15.0, "distance": 0.95 / math.tan(math.radians(20)), "fovy_deg": 40.0}


class Pixels(Instruments):
    """FID's features are the mean colour: known without a network."""

    def fid_images(self, rgb):
        assert rgb.shape[-2:] == (self.resolution, self.resolution)
        return rgb.mean([2, 3]).numpy()


@pytest.fixture
def pixels() -> Pixels:
    return Pixels(toybox_clip(), None, 3, 32, "cpu", None)


def test_a_folder_of_pictures(pixels, tmp_path):
    folder = tmp_path / "true"
    folder.mkdir()
    Image.new("RGB", (50, 40), (255, 0, 0)).save(folder / "a.jpg", quality=100)
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255  # only the middle square counts
    Image.fromarray(wide).save(folder / "b.PNG")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "c.png")  # transparent: the background
    (folder / "notes.txt").write_text("no picture")
    features, name = folder_features(folder, (0.2, 0.4, 0.6), pixels, tmp_path / "kept")
    assert name == f"3 pictures of {folder}"
    assert features == pytest.approx(np.array([[1, 0, 0], [1, 1, 1], [0.2, 0.4, 0.6]]), abs=0.02)
    again, _ = folder_features(folder, (0.2, 0.4, 0.6), pixels, tmp_path / "kept")
    np.testing.assert_array_equal(again, features)
    (folder / "a.jpg").unlink()
    assert len(folder_features(folder, (0.2, 0.4, 0.6), pixels, tmp_path / "kept")[0]) == 2


def test_a_folder_with_fewer_than_two_pictures_is_refused(pixels, tmp_path):
    with pytest.raises(UserError, match="two or more pictures.*no such folder"):
        folder_features(tmp_path / "nowhere", (0, 0, 0), pixels, tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match="two or more pictures.*1 in it"):
        folder_features(tmp_path, (0, 0, 0), pixels, tmp_path)
    (tmp_path / "two.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="1 of 2 can be read"):
        folder_features(tmp_path, (0, 0, 0), pixels, tmp_path)


def test_pictures_that_cannot_be_read_are_named_and_the_rest_counts(pixels, tmp_path, capsys):
    folder = tmp_path / "true"
    (folder / "more").mkdir(parents=True)
    for k, name in enumerate(("a.png", "b.png", "more/c.png")):
        Image.new("RGB", (8, 8), (100 * k, 0, 0)).save(folder / name)
    for name in ("._a.png", "Thumbs.db", ".DS_Store", "notes.txt"):
        (folder / name).write_bytes(b"no picture")
    features, name = folder_features(folder, (0, 0, 0), pixels, tmp_path / "kept")
    assert len(features) == 3 and name == f"3 pictures of {folder}" and not capsys.readouterr().err
    (folder / "d.png").write_bytes(b"no picture")
    (folder / "e.png").mkdir()
    os.mkfifo(folder / "f.png")
    os.symlink(folder / "g.png", folder / "g.png")
    os.symlink(tmp_path, folder / "loop")
    Image.new("1", (30_000, 30_000)).save(folder / "z.png")
    features, name = folder_features(folder, (0, 0, 0), pixels, tmp_path / "kept")
    assert len(features) == 3 and name == f"3 pictures of {folder} (5 more cannot be read)"
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1][-5:] for line in said] == ["d.png", "e.png", "f.png", "g.png", "z.png"]


def test_a_picture_of_16_bits_is_not_white(pixels, tmp_path):
    for k in range(2):
        Image.fromarray(np.full((8, 8), 2**14 << k, np.uint16)).save(tmp_path / f"{k}.png")
    features, _ = folder_features(tmp_path, (0, 0, 0), pixels, tmp_path / "kept")
    assert features == pytest.approx(np.repeat([[0.25], [0.5]], 3, 1), abs=0.003)


def test_true_toys_are_the_ray_caster_s(pixels, tmp_path):
    found, name = toybox_features(["a red robot"], ORBIT, (BACKGROUND,) * 3, pixels, tmp_path)
    assert found.shape == (3 * TRUE_TOYS, 3) and "true renders of 1 captions" in name
    toy = Toy("robot", "red", shape_seed=HELD_OUT_SHAPES + 1)
    # the front view of the second shape, from +x and a little above, written out
    up = math.radians(15)
    c2w = np.eye(4)[None].copy()
    c2w[0, :3, :3] = np.array([[0, -math.sin(up), math.cos(up)], [1, 0, 0], [0, math.cos(up), math.sin(up)]])
    c2w[0, :3, 3] = ORBIT["distance"] * c2w[0, :3, 2]
    rgba, _, _ = render(pack(solids(toy)), c2w, np.array([math.radians(40)]), 32)
    rgb = rgba[0, ..., :3] * rgba[0, ..., 3:] + BACKGROUND * (1 - rgba[0, ..., 3:])
    assert found[3] == pytest.approx(rgb.mean((0, 1)), abs=0.01)


def test_prompts_that_name_no_toy_have_no_truth(pixels, tmp_path):
    assert name_toys(["a red robot"]) and not name_toys(["a red robot", "a DSLR photo of a corgi"])
    with pytest.raises(UserError, match="'a DSLR photo of a corgi' names no toy"):
        toybox_features(["a red robot", "a DSLR photo of a corgi"], ORBIT, (1, 1, 1), pixels, tmp_path)
