"""environment.json: what a run ran on, and what it ran on before."""

import errno
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from jointdreamer.runs import environment
from jointdreamer.runs.folder import RunFolder
from tests.runs.small_run import CONFIG, begin


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"before": 5}', '{"weights": {"a": 1}, "before": [1]}', "\0" * 9, "[" * 100_000]
)
def test_a_damaged_environment_stops_no_run(tmp_path, text):
    begin(tmp_path, CONFIG)
    (tmp_path / "environment.json").write_text(text)
    with RunFolder.open(tmp_path, CONFIG) as run:
        run.check_weights([{"path": "a", "sha256": "1"}], 5)
        run.write_environment([{"path": "a", "sha256": "1"}])
    assert json.loads((tmp_path / "environment.json").read_text())["weights"] == [{"path": "a", "sha256": "1"}]


def test_an_environment_that_cannot_be_read_now_is_left_as_it_is(tmp_path, monkeypatch, caplog):
    begin(tmp_path, CONFIG)
    (tmp_path / "environment.json").write_text('{"commit": "precious"}')
    real = os.open

    def refusing(file, *more, **options):
        if str(file).endswith("environment.json"):
            raise OSError(errno.EIO, "Input/output error")
        return real(file, *more, **options)

    with RunFolder.open(tmp_path, CONFIG) as run, monkeypatch.context() as patched:
        patched.setattr(os, "open", refusing)
        with caplog.at_level("WARNING", logger="jointdreamer"):
            run.write_environment()
    assert (tmp_path / "environment.json").read_text() == '{"commit": "precious"}' and "left as it is" in caplog.text


def test_environment_says_what_ran(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    weights = [{"role": "multi-view", "path": Path("w/unet.safetensors"), "sha256": "ab" * 32}]
    run.write_environment(weights, models="toybox")
    run.write_environment(weights, models="toybox")
    record = json.loads((tmp_path / "environment.json").read_text())
    assert record["torch"] == torch.__version__ and record["packages"]["numpy"] == np.__version__
    assert record["weights"] == [{**weights[0], "path": "w/unet.safetensors"}]
    assert record["cpu_count"] == os.cpu_count()
    assert {"commit", "dirty", "python", "cuda", "gpu", "cpu_count"} <= record.keys() and "before" not in record
    run.write_environment(weights, models="sd21")
    [before] = json.loads((tmp_path / "environment.json").read_text())["before"]
    assert before["models"] == "toybox"


def test_commit_and_dirty_are_git_s(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / "package.py"
    file.write_text("a = 1\n")
    assert environment._commit(file) == (None, None)
    git("init", "-q")
    assert environment._commit(file) == (None, None)  # some repository, but not this file's
    git("add", "package.py")
    git("commit", "-q", "-m", "one")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    ).stdout.strip()
    assert environment._commit(file) == (head, False)
    file.write_text("a = 2\n")
    assert environment._commit(file) == (head, True)
