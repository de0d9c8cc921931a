import os
import sys
from typing import Any

import pytest

from jointdreamer import cli
from jointdreamer.errors import UserError

NASTY = [
    "a corgi, 8K",
    'a "quoted" cat',
    "it's: {a=[b]}",
    "a\nb",
    "🤖 ../../etc",
    "${prompt}",
    "x" * 10_000,
    "ロボット",
]


@pytest.mark.parametrize("prompt", NASTY)
def test_a_prompt_reaches_the_config_as_typed(prompt, monkeypatch):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    monkeypatch.setenv(cli.PROMPT_VARIABLE, "")
    words = cli.complete([f"prompt={prompt}"], lambda: False, multirun=False)
    with initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF)):
        cfg: Any = OmegaConf.to_container(compose("config", [*words, "name=test"]), resolve=True)
    assert cfg["prompt"] == prompt


def test_quotes_meant_for_hydra_are_taken_off(monkeypatch):
    monkeypatch.setenv(cli.PROMPT_VARIABLE, "")
    cli.complete(['prompt="a corgi, 8K"'], lambda: False, multirun=False)
    assert os.environ[cli.PROMPT_VARIABLE] == "a corgi, 8K"


def test_globs_reach_the_config_as_typed_and_all_of_them_count(monkeypatch):
    for variable in cli.GLOB_VARIABLES.values():
        monkeypatch.setenv(variable, "")
    words = cli.complete(["runs=a/[01]*,x/**", "seed=1", "runs=b c", "study=[x]"], None, multirun=False)
    assert words == ["runs=${oc.env:JOINTDREAMER_RUNS}", "study=${oc.env:JOINTDREAMER_STUDY}", "seed=1"]
    assert os.environ["JOINTDREAMER_STUDY"] == "[x]"
    assert os.environ["JOINTDREAMER_RUNS"] == "a/[01]*,x/**\nb c"


def test_a_multirun_s_prompt_stays_hydra_s():
    assert cli.complete(["-m", "prompt=a,b"], lambda: False, multirun=True)[1] == "prompt=a,b"


@pytest.mark.parametrize(
    ("words", "cuda", "added"),
    [([], False, "models=toybox"), ([], True, "models=sd21"), (["models=sd21"], False, None), (["--help"], True, None)],
)
def test_models_follow_cuda_unless_given(words, cuda, added):
    assert cli.complete(words, lambda: cuda, multirun=False) == words + ([added] if added else [])


def cfg(**changes):
    return {"prompt": None, "prompt_file": None, "prompt_id": None, **changes}


def test_a_line_of_a_file_is_the_prompt(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a bear\n\na cat, sitting\n")
    assert cli.with_prompt(cfg(prompt_file=str(file), prompt_id=1)) == {"prompt": "a cat, sitting"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "no prompt"),
        ({"prompt": "  \n"}, "no prompt"),
        ({"prompt": "a", "prompt_file": "b"}, "both"),
        ({"prompt_file": "/nowhere", "prompt_id": 0}, "cannot be read"),
        ({"prompt_id": 3}, "without a prompt_file"),
    ],
)
def test_a_missing_prompt_costs_one_line(changes, says):
    with pytest.raises(UserError, match=says):
        cli.with_prompt(cfg(**changes))


def test_a_line_that_is_not_there(tmp_path):
    (tmp_path / "p.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="lines 0 to 1"):
        cli.with_prompt(cfg(prompt_file=str(tmp_path / "p.txt"), prompt_id=2))


@pytest.mark.parametrize(
    ("key", "there"), [("nmae", "prompt, "), ("schedule.stepz", "steps, resolution"), ("cameras.fov", "fovy_deg")]
)
def test_an_unknown_key_names_the_known_ones(key, there):
    said = cli.explain(f"Could not override '{key}'.\nKey is not in struct", "config")
    assert key in said and there in said


def test_a_signal_stops_the_whole_sweep(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "models=toybox", "prompt=a,b,c", f"out_dir={tmp_path}"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    called = []

    def task(cfg):
        called.append(cfg["prompt"])
        return 130 if cfg["prompt"] == "b" else 0

    assert cli.main("config", task) == 130
    assert called == ["a", "b"]


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "models=toybox", "prompt=a"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv(cli.PROMPT_VARIABLE, "")
    assert cli.main("config", lambda cfg: {}["no such key"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "KeyError: 'no such key'" in said
