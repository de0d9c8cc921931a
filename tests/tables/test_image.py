"""The table of image to 3D: what is drawn, which runs are made, and what true views score."""

import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.evaluation.networks import toybox_clip
from jointdreamer.tables.__main__ import main, read_image_words
from jointdreamer.tables.image import (
    COPY,
    METHODS,
    NOVEL,
    ImageSettings,
    angles,
    config_of,
    draw_toys,
    markdown,
    novel_cameras,
    scores_of,
    true_views,
    words_of,
    write_picture,
    write_sheet,
)
from jointdreamer.toybox.judge import judging_cameras, load_judge
from jointdreamer.toybox.world import HELD_OUT_SHAPES, caption, is_held_out_combination


def test_the_toys_are_held_out_and_the_draw_is_their_seed_s():
    toys = draw_toys(6, 1)
    assert toys == draw_toys(6, 1) and not set(map(caption, toys)) & set(map(caption, draw_toys(6, 0)))
    assert all(toy.shape_seed >= HELD_OUT_SHAPES for toy in toys)
    assert [is_held_out_combination(toy) for toy in toys] == [False, True] * 3


def test_no_novel_view_is_the_picture_s():
    assert len(angles()) == NOVEL and min(angles()) == 11.25 and max(angles()) == 168.75
    assert sorted(angles()) == sorted(2 * sorted(set(angles())))
    torch.testing.assert_close(novel_cameras().distance[0, 0], judging_cameras().distance[0, 0])


def test_every_run_gets_the_picture_and_its_camera(tmp_path):
    settings = ImageSettings(out_dir=tmp_path, words=("output.views=2",))
    toy = draw_toys(1, 1)[0]
    write_picture(toy, tmp_path / "toy.png")
    for method in METHODS:
        config = config_of(method, words_of(method, toy, tmp_path / "toy.png", settings))
        camera = config["image_camera"]
        assert camera["elevation_deg"] == pytest.approx(15) and camera["azimuth_deg"] == 0
        assert camera["distance"] == pytest.approx(float(judging_cameras().distance[0, 0]), rel=1e-4)
        assert config["image_fill"] is None and len(config["image_sha256"]) == 16
        assert config["prompt"] == ("" if method == "zero123" else caption(toy))
        assert config["name"] == f"image/{method}" and config["output"]["views"] == 2


def test_true_views_score_best_and_a_copy_of_the_picture_is_the_floor(tmp_path):
    toy, clip, judge = draw_toys(1, 1)[0], toybox_clip().load("cpu"), load_judge()
    turn, novel = true_views(toy, judging_cameras()), true_views(toy, novel_cameras())
    best = scores_of(toy, turn, novel, clip, judge)
    copy = scores_of(toy, turn[:1].expand_as(turn), turn[:1].expand_as(novel), clip, judge)
    assert min(best.psnr) == pytest.approx(100) and min(best.ssim) == pytest.approx(1) and not best.janus
    assert best.clip == pytest.approx(1, abs=1e-4) and best.resultant_length > 0.9
    assert copy.psnr_reference == pytest.approx(100) and max(copy.psnr) < 30 and copy.clip < best.clip
    text = markdown({METHODS["jsd"]: [best, best], COPY: [copy]}, ImageSettings())
    assert "100.00 [100.00, 100.00]" in text and "JSD" in text.splitlines()[-1]
    assert "| PSNR at | 11.25 | 33.75 |" in text
    write_sheet(tmp_path / "sheet.jpg", [toy] * 8, [turn[::2]] * 8, "as it is")
    assert (tmp_path / "sheet.jpg").stat().st_size < 400_000


@pytest.mark.parametrize(
    "word", ["objects=0", "methods=mvs", "prompt=a", "image=a.png", "models=sd21", "draw=x", "word"]
)
def test_mistakes_are_one_line(word, capsys):
    with pytest.raises(UserError):
        read_image_words([word])
    assert main(["image", word]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_settings():
    found = read_image_words(["objects=2", "methods=zero123", "jobs=1", "models=toybox", "output.views=2"])
    assert (found.objects, found.methods, found.jobs, found.words) == (2, ("zero123",), 1, ("output.views=2",))
