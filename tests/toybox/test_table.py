import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from jointdreamer.cli.main import composed
from jointdreamer.toybox import table
from jointdreamer.toybox.table import PROMPT_SEED, PROMPTS, TUNING_SEED, draw_prompts
from jointdreamer.toybox.world import FIRST, SECOND, is_held_out_combination, parse_caption


def test_the_measured_prompts_are_the_draw_of_their_seed_half_of_them_held_out():
    prompts = PROMPTS.read_text().splitlines()
    assert prompts == draw_prompts(16, PROMPT_SEED)
    toys = [parse_caption(text) for text in prompts]
    assert sum(toy is not None and is_held_out_combination(toy) for toy in toys) == 8


def test_the_tuning_prompts_are_another_draw():
    tuning = (PROMPTS.parent / "toybox_tuning.txt").read_text().splitlines()
    assert tuning == draw_prompts(14, TUNING_SEED)


def test_fresh_prompts_are_drawn_by_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["table", "--draw", "48", "--draw-seed", "5", "--edition", "2"])
    assert table.main() == 0
    prompts = capsys.readouterr().out.splitlines()
    assert prompts == draw_prompts(48, 5, SECOND) != draw_prompts(48, 6, SECOND) and len(set(prompts)) == 48
    assert all(parse_caption(text, SECOND) for text in prompts)
    assert any(parse_caption(text, FIRST) is None for text in prompts)  # words that the first edition does not have


def test_missing_objects_are_made_by_train_py_and_an_interrupt_is_one_line(monkeypatch, capsys, tmp_path):
    asked = []

    def train_runs(runs, parallel, threads):
        asked.append((runs, parallel, threads))
        raise KeyboardInterrupt(signal.SIGTERM)

    monkeypatch.setattr(table, "train_runs", train_runs)
    words = f"--seeds 1 --first 5 --energies mvs --out {tmp_path} --jobs 3 schedule=smoke".split()
    monkeypatch.setattr(sys, "argv", ["table", *words])
    assert table.main() == 128 + signal.SIGTERM
    assert "the same command goes on" in capsys.readouterr().err
    [(runs, parallel, threads)] = asked
    assert (len(runs), parallel, threads) == (5, 3, 1)
    assert runs[2] == (
        "mvs prompt 2 seed 0",
        ["prompt_id=2", "seed=0", "energy=mvs", "name=table3/mvs", "models=toybox", f"prompt_file={PROMPTS}",
         f"out_dir={tmp_path}", "schedule=smoke"],
    )  # fmt: skip


@pytest.mark.parametrize("energy", ["none", "cls", "i2i", "mvs"])
def test_its_runs_are_those_of_the_papers_tables(energy):
    common = ["prompt=a bear", "models=toybox"]
    ours = composed("config", [f"energy={energy}", f"name=table3/{energy}", *common], "toybox")
    assert ours == composed("config", [f"experiment=table3/{energy}", *common], "toybox")


def test_a_sheet_shows_each_object_from_evenly_spaced_sides_and_leaves_room_for_the_missing(tmp_path):
    views = torch.linspace(0, 1, 16)[:, None, None, None].expand(16, 3, 6, 6)
    table.write_sheet(tmp_path / "sheet.png", [[views, None], [None, views.flip(0)]], 4)
    shades = np.asarray(Image.open(tmp_path / "sheet.png"))[..., 0].astype(float) / 255
    strip = 4 * (6 + 1) + 1  # pixels
    rows, columns = [8, 8 + 6 + 2 + 4], [4 + 4, 4 + strip + 4 + 4]
    for row, column, wanted in ((0, 0, views), (0, 1, views * 0 + 1), (1, 0, views * 0 + 1), (1, 1, views.flip(0))):
        middles = [columns[column] + 7 * k for k in range(4)]
        assert np.abs(shades[rows[row], middles] - wanted[::4, 0, 0, 0].numpy()).max() < 1 / 255

    table.write_sheet(tmp_path / "none.png", [[None]], 4)
    assert not (tmp_path / "none.png").exists()
