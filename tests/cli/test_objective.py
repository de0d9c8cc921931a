"""The number that a run hands to a sweeper that optimises."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from jointdreamer.cli import objective
from jointdreamer.cli.job import returned
from jointdreamer.cli.main import composed
from jointdreamer.cli.objective import check_objective, last_loss, objective_of
from jointdreamer.errors import UserError
from jointdreamer.runs.folder import run_path

OURS = OmegaConf.create({"sweeper": {"_target_": "hydra_plugins.jointdreamer_sweeps.RunSweeper"}})
OPTUNA = OmegaConf.create({"sweeper": {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"}})


def config(**changes):
    return {"objective": None, "models": {"name": "toybox"}, "device": "cpu", **changes}


def write_rows(file, losses):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in enumerate(losses)))


def test_the_loss_is_the_mean_of_the_last_tenth_of_the_rows(tmp_path):
    write_rows(tmp_path / "metrics.jsonl", [9.0] * 18 + [2.0, 4.0])
    assert last_loss(tmp_path / "metrics.jsonl") == 3.0
    assert objective_of(config(objective="loss"), tmp_path) == 3.0
    write_rows(tmp_path / "metrics.jsonl", [9.0, 5.0])
    assert last_loss(tmp_path / "metrics.jsonl") == 5.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": "beauty"}, "objective='beauty': wanted one of janus, clip_score, loss"),
        ({"objective": "janus", "models": {"name": "sd21"}}, "a judge for models=toybox, none for sd21"),
        ({"objective": "clip_score", "models": {"name": "sd21"}}, "names no CLIP"),
    ],
)
def test_what_cannot_be_measured_is_one_line_before_training(changes, says):
    with pytest.raises(UserError, match=says):
        check_objective(config(**changes))


def test_nothing_is_measured_unless_it_is_asked_for():
    check_objective(config())
    assert returned(config(), 3, OPTUNA) == 3
    assert composed("config", ["prompt=a"], "toybox")["objective"] is None


@pytest.mark.parametrize(("janus", "wanted"), [(True, 1.25), (False, 0.25)])
def test_a_janus_counts_one_more_than_what_the_judge_misses(janus, wanted, monkeypatch, tmp_path):
    found = SimpleNamespace(janus=janus, resultant_length=0.75, features=np.eye(3)[:2])
    run = SimpleNamespace(prompt="a green bear")
    monkeypatch.setattr(objective, "find_runs", lambda patterns: ([run], []))
    monkeypatch.setattr(objective, "measured", lambda run, instruments: None)
    monkeypatch.setattr(objective, "measure", lambda run, instruments: found)
    assert objective_of(config(objective="janus"), tmp_path) == wanted


def test_a_folder_without_a_finished_run_says_so(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        objective_of(config(objective="clip_score"), tmp_path)


def test_a_failed_run_is_no_number_to_a_sweeper(tmp_path, capsys):
    plain = config(objective="loss", out_dir=str(tmp_path), name="mvs", prompt="a bear", seed=0)
    write_rows(run_path(tmp_path, "mvs", "a bear", 0) / "metrics.jsonl", [2.0])
    assert returned(plain, 0, OPTUNA) == returned(plain, 0, OURS) == 2.0
    with pytest.raises(RuntimeError, match="the run ended with status 2"):
        returned(plain, 2, OPTUNA)
    assert math.isnan(returned(plain, 2, OURS)) and capsys.readouterr().err == ""
    (tmp_path / "mvs").rename(tmp_path / "gone")
    write_rows(run_path(tmp_path, "mvs", "a bear", 0) / "metrics.jsonl", [])
    assert math.isnan(returned(plain, 0, OURS)) and "has no rows" in capsys.readouterr().err
