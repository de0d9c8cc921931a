"""The shipped judge on objects whose answers are known."""

import numpy as np
import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.toybox.judge import blurred, load_judge, table, true_views, verdict
from jointdreamer.toybox.world import caption, sample_toy

RNG = np.random.default_rng(123)
TOYS = [sample_toy(RNG, shape="held_out", combination="held_out") for _ in range(6)]


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.mark.parametrize("toy", TOYS, ids=caption)
def test_true_objects_turn_and_have_one_face_also_blurred(judge, toy):
    views = true_views(toy)
    for rgb in (views, blurred(views)):
        seen = verdict(judge, rgb, toy)
        assert not seen.janus and seen.resultant_length > 0.95 and seen.attributes > 0.7


@pytest.mark.parametrize("toy", TOYS, ids=caption)
def test_a_front_copied_to_every_azimuth_is_janus(judge, toy):
    views = true_views(toy)
    seen = verdict(judge, views[:1].expand_as(views), toy)
    assert seen.janus and seen.resultant_length < 1e-3


def test_two_faces_back_to_back_are_janus(judge):
    views = true_views(TOYS[0])
    both = torch.cat([views[:4], views[12:], views[:4], views[12:]]).roll(-4, 0)  # a front at 0 and at 180 degrees
    assert verdict(judge, both, TOYS[0]).janus


def test_the_table_counts(judge):
    views = true_views(TOYS[0])
    good, bad = verdict(judge, views, TOYS[0]), verdict(judge, views[:1].expand_as(views), TOYS[0])
    row = table({"mixed": [good, bad]}).splitlines()[-1]
    assert "| mixed | 1/2 |" in row and "| 1/2 |" in row.removeprefix("| mixed | 1/2 |")


def test_a_damaged_judge_is_one_line(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot load the judge"):
        load_judge(tmp_path / "model.safetensors")
