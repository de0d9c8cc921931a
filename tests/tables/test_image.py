"""The table of image to 3D: what is drawn, which runs are made, and what true views score."""

import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.evaluation.networks import toybox_clip
from jointdreamer.tables import image
from jointdreamer.tables.__main__ import main, read_image_words
from jointdreamer.tables.image import (
    COPY,
    METHODS,
    NOVEL,
    ImageSettings,
    Scores,
    angles,
    config_of,
    draw_toys,
    make_image_table,
    markdown,
    novel_cameras,
    scores_of,
    sheet_cameras,
    words_of,
    write_picture,
    write_sheet,
)
from jointdreamer.toybox.judge import judging_cameras, load_judge, true_views
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
    turn, novel = true_views(toy, sheet_cameras()), true_views(toy, novel_cameras())
    torch.testing.assert_close(turn, true_views(toy, judging_cameras())[::2])
    best = scores_of(toy, turn[:1], novel, clip, judge)
    copy = scores_of(toy, turn[:1], turn[:1].expand_as(novel), clip, judge)
    assert min(best.psnr) == pytest.approx(100) and min(best.ssim) == pytest.approx(1) and not best.janus
    assert min(best.clip) == pytest.approx(1, abs=1e-4) and best.resultant_length > 0.9
    assert copy.psnr_reference == pytest.approx(100) and max(copy.psnr) < 30 and max(copy.clip) < min(best.clip)
    assert copy.janus and copy.resultant_length < 0.1
    text = markdown({METHODS["jsd"]: [best, best], COPY: [copy]}, ImageSettings())
    assert "100.00 [100.00, 100.00]" in text and "JSD" in text.splitlines()[-1]
    for title, value in (("PSNR", "100.0"), ("SSIM", "1.000"), ("CLIP", "1.000")):
        assert f"| {title} at | 11.25 | 33.75 |" in text and f"| {METHODS['jsd']} | {value} | {value} |" in text
    write_sheet(tmp_path / "sheet.jpg", [toy] * 8, [turn] * 8, "as it is")
    assert (tmp_path / "sheet.jpg").stat().st_size < 400_000


def test_numbers_are_averaged_at_their_own_angle():
    values = tuple(angles())
    one = Scores(30.0, 0.9, values, values, values, False, 1.0)
    text = markdown({METHODS["jsd"]: [one, one]}, ImageSettings())
    assert f"| {METHODS['jsd']} | {' | '.join(f'{angle:.1f}' for angle in sorted(set(values)))} |" in text


def test_a_run_that_was_made_with_other_settings_or_failed_is_not_scored(tmp_path, monkeypatch, capsys):
    def is_complete(folder, *rest):
        if "zero123" in str(folder):
            raise UserError("it belongs to another config")
        return False

    def folder_for(config):
        folder = tmp_path / config["name"]
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")
        return folder

    asked = []

    def train(runs, jobs, threads):
        asked.extend(label for label, _ in runs)
        return [0]

    monkeypatch.setattr(image, "folder_for", folder_for)
    monkeypatch.setattr(image, "is_complete", is_complete)
    with pytest.raises(UserError, match="no run of the table is finished"):
        make_image_table(ImageSettings(1, methods=("zero123", "jsd"), out_dir=tmp_path), train)
    assert asked == ["image/jsd, toy 0"] and "another config" in capsys.readouterr().err


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
