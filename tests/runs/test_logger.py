"""What a run says: exact rows without a clock in them, and a quiet progress line."""

import io
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.runs.logger import Logger, NonFiniteLoss, check_finite, duration

NOW = SimpleNamespace(resolution=64, guidance_scale=30.0, normals=True, lr=SimpleNamespace(encoding=1e-2))
ROOT = Path(__file__).parents[2]


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Rows


def test_a_row_holds_every_number_exactly(tmp_path):
    with Logger(tmp_path, steps=100, every=10, stream=io.StringIO()) as logger:
        logger.log(
            0, torch.tensor(0.1), {"jsd": torch.tensor(0.25), "orient": 1 / 3}, NOW, more={"coherence": np.float32(2)}
        )
    assert rows(tmp_path) == [
        {
            "step": 0,
            "loss": torch.tensor(0.1).item(),
            "loss/jsd": 0.25,
            "loss/orient": 1 / 3,
            "coherence": 2.0,
            "now/resolution": 64,
            "now/guidance_scale": 30.0,
            "now/normals": True,
            "now/lr/encoding": 0.01,
        }
    ]


def test_rows_come_at_fixed_steps_and_at_the_last(tmp_path):
    def run(folder, parts):
        folder.mkdir()
        for start, stop in parts:
            with Logger(folder, steps=25, every=10, stream=io.StringIO()) as logger:
                logger.begin(start)
                for step in range(start, stop):
                    logger.log(step, 1.0 / (step + 1))
        return (folder / "metrics.jsonl").read_bytes()

    whole = run(tmp_path / "whole", [(0, 25)])
    assert [row["step"] for row in rows(tmp_path / "whole")] == [0, 10, 20, 24]
    assert run(tmp_path / "resumed", [(0, 13), (13, 25)]) == whole


def test_a_number_that_json_lacks_is_null(tmp_path):
    with Logger(tmp_path, steps=1, stream=io.StringIO()) as logger:
        logger.log(0, 1.0, more={"coherence": float("nan")})
    assert rows(tmp_path)[0]["coherence"] is None


def test_rows_are_on_disk_before_the_next_step(tmp_path):
    logger = Logger(tmp_path, steps=9, every=1, stream=io.StringIO())
    logger.log(0, 1.0)
    assert len(rows(tmp_path)) == 1
    logger.close()
    logger.close()


def test_every_must_be_positive(tmp_path):
    with pytest.raises(UserError, match=r"every\.log=0"):
        Logger(tmp_path, steps=9, every=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line(tmp_path):
    os.symlink("/dev/full", tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="no space left"), Logger(tmp_path, 9, every=1, stream=io.StringIO()) as logger:
        logger.log(0, 1.0)


# Progress and words


def test_without_a_terminal_progress_is_a_few_whole_lines(tmp_path):
    stream = io.StringIO()
    with Logger(tmp_path, steps=500, every=10, stream=stream) as logger:
        for step in range(500):
            logger.log(step, 0.5, now=NOW)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and "\r" not in stream.getvalue()
    assert lines[0].startswith("step 1/500  loss 0.5  64 px") and "s/step" in lines[0] and "ETA" in lines[0]
    assert lines[1].startswith("step 500/500") and lines[1].endswith("ETA 0s")


def test_the_rate_is_that_of_the_last_minute(tmp_path, monkeypatch):
    """The first step compiles, and a schedule's later stages are slower than its first."""
    clock = [0.0]
    monkeypatch.setattr("jointdreamer.runs.logger.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    with Logger(tmp_path, steps=1000, every=10, stream=stream) as logger:
        for step in range(700):
            clock[0] += 100 if step == 0 else 0.1 if step < 500 else 2.0
            logger.log(step, 0.5)
    found = {int(line.split()[1].partition("/")[0]): line for line in stream.getvalue().splitlines()}
    assert [line for done, line in found.items() if 100 < done < 500 and "0.1 s/step" not in line] == []
    last = found[max(found)]
    assert "2 s/step" in last and f"ETA {duration(2.0 * (1000 - max(found)))}" in last


def test_the_files_at_the_end_are_named_and_shown(tmp_path):
    files = {"turntable": [tmp_path / "turntable" / f"{name}.mp4" for name in ("rgb", "normal")], "mesh": []}
    stream = io.StringIO()
    with Logger(tmp_path, steps=1, stream=stream) as logger:
        logger.show(1, files)
    assert stream.getvalue() == f"made turntable/rgb.mp4, turntable/normal.mp4 in {tmp_path}\n"


def test_a_terminal_gets_a_bar(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Logger(tmp_path, steps=20, stream=stream) as logger:
        logger.begin(5)
        for step in range(5, 20):
            logger.log(step, 0.5, now=NOW)
        logger.message("a word in between")
    shown = stream.getvalue()
    assert "20/20" in shown and "loss=0.5" in shown and "px=64" in shown and "a word in between\n" in shown


def test_messages_and_the_package_s_warnings_reach_stream_and_file(tmp_path):
    stream, package = io.StringIO(), logging.getLogger("jointdreamer")
    before = (package.propagate, package.level, list(package.handlers))
    with Logger(tmp_path, steps=2, stream=stream) as logger:
        logger.message("energy: mvs 🦊 \udcff \x1b[31m")
        logging.getLogger("jointdreamer.runs.folder").warning("checkpoint %s\nis damaged", "x.pt")
    assert "energy: mvs" in stream.getvalue()
    assert "warning: checkpoint x.pt is damaged\n" in stream.getvalue()
    log = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert "mvs 🦊 \\udcff \\x1b[31m" in log and "\x1b" not in stream.getvalue()
    assert "warning: checkpoint x.pt is damaged" in log
    assert (package.propagate, package.level, list(package.handlers)) == before


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (-1, "0s"), (59.6, "1m00s"), (125, "2m05s"), (3599.7, "1h00m"), (7620, "2h07m")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


# NaN


def test_check_finite_names_the_step_and_the_guilty_term():
    assert check_finite(3, torch.tensor(2.0)) == 2.0
    with pytest.raises(NonFiniteLoss) as caught:
        check_finite(7, torch.tensor(float("nan")), {"jsd": torch.tensor(1.0), "orient": float("inf")}, checkpoint=5)
    message = str(caught.value)
    assert message.startswith("step 7: the loss is nan (from orient)") and "step 5 is kept" in message
    assert "\n" not in message and isinstance(caught.value, UserError)


def test_a_run_without_a_row_has_no_file_of_rows(tmp_path):
    """One that is refused before its first step has not begun."""
    with Logger(tmp_path, steps=3, stream=io.StringIO()) as logger:
        logger.message("a warning")
        assert not (tmp_path / "metrics.jsonl").exists()
        logger.log(0, 0.5)
    assert (tmp_path / "metrics.jsonl").exists()
