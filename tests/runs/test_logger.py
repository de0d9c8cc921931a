"""What a run says: exact rows without a clock in them, a quiet progress line, and a wandb that can only warn."""

import io
import json
import logging
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.runs.logger import Logger, NonFiniteLoss, check_finite, duration, logged_in, run_id

NOW = SimpleNamespace(resolution=64, guidance_scale=30.0, normals=True, lr=SimpleNamespace(encoding=1e-2))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


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


# wandb


class FakeWandb:
    """What we use of wandb, in memory; `fail` names the calls that raise."""

    def __init__(self, *fail, credentials=False):
        self.login = lambda prompt, verify: credentials and not prompt and not verify
        self.fail, self.calls, self.url, self.summary = set(fail), [], "https://wandb.example/run", {}
        self.Settings = lambda **keywords: keywords
        for kind in ("Image", "Video", "Object3D"):
            setattr(self, kind, lambda path, kind=kind, **keywords: (kind, path))

    def _call(self, name, *arguments, **keywords):
        self.calls.append((name, arguments, keywords))
        if name in self.fail or (name == "init" and "init online" in self.fail and keywords["mode"] is None):
            raise ConnectionError("no route\nto host")
        return self

    def __getattr__(self, name):
        return lambda *arguments, **keywords: self._call(name, *arguments, **keywords)

    def of(self, name):
        return [(arguments, keywords) for called, arguments, keywords in self.calls if called == name]


def use(monkeypatch, fake):
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def run_with_wandb(folder, stream):
    with Logger(folder, steps=3, every=1, stream=stream) as logger:
        logger.begin(wandb={"project": "mine"}, config={"seed": 0})
        for step in range(3):
            logger.log(step, 1.0, now=NOW)
        logger.image("views", 2, folder / "v.png")
        logger.video("turntable", 2, folder / "v.mp4")
        logger.mesh("mesh", 2, folder / "m.glb")
        logger.summary({"minutes": 1})


def test_wandb_gets_numbers_and_media_and_is_offline_without_login(tmp_path, monkeypatch, no_login):
    fake, stream = use(monkeypatch, FakeWandb()), io.StringIO()
    state = random.getstate()
    run_with_wandb(tmp_path, stream)
    assert random.getstate() == state
    [(_, init)] = fake.of("init")
    assert init["mode"] == "offline" and init["project"] == "mine" and init["config"] == {"seed": 0}
    assert [arguments[0].get("now/lr/encoding") for arguments, _ in fake.of("log")][:3] == [0.01] * 3
    media = [arguments[0] for arguments, _ in fake.of("log")][3:]
    assert media[0] == {"views": ("Image", str(tmp_path / "v.png")), "step": 2}
    assert [next(iter(values.values()))[0] for values in media] == ["Image", "Video", "Object3D"]
    assert fake.summary == {"minutes": 1} and len(fake.of("finish")) == 1
    assert "not logged in" in stream.getvalue()


def test_the_same_wandb_run_goes_on_after_a_resume(tmp_path, monkeypatch, no_login):
    fake = use(monkeypatch, FakeWandb())
    run_with_wandb(tmp_path, io.StringIO())
    run_with_wandb(tmp_path, io.StringIO())
    ids = {init["id"] for _, init in fake.of("init")}
    assert ids == {(tmp_path / "wandb/run_id.txt").read_text().strip()}


def test_logged_in_runs_go_online_and_fall_back_when_the_network_is_away(tmp_path, monkeypatch, no_login):
    fake, stream = use(monkeypatch, FakeWandb(credentials=True)), io.StringIO()
    run_with_wandb(tmp_path, stream)
    [(_, init)] = fake.of("init")
    assert init["mode"] is None and init["resume"] == "allow"
    assert "wandb: https://wandb.example/run" in stream.getvalue() and "warning" not in stream.getvalue()

    fake, stream = use(monkeypatch, FakeWandb("init online", credentials=True)), io.StringIO()
    run_with_wandb(tmp_path, stream)
    assert [name for name, *_ in fake.calls][:3] == ["init", "teardown", "init"]
    assert [init["mode"] for _, init in fake.of("init")] == [None, "offline"]
    assert stream.getvalue().count("warning: wandb") == 1 and len(fake.of("log")) == 6


@pytest.mark.parametrize(("fail", "what"), [("init", "start"), ("log", "log"), ("finish", "finish")])
def test_a_failing_wandb_is_one_warning_and_no_row_is_lost(tmp_path, monkeypatch, no_login, fail, what):
    use(monkeypatch, FakeWandb(fail))
    stream = io.StringIO()
    run_with_wandb(tmp_path, stream)
    assert stream.getvalue().count("warning: wandb") == 1
    assert f"warning: wandb could not {what} (no route to host)" in stream.getvalue()
    assert len(rows(tmp_path)) == 3


def test_wandb_that_is_not_installed_is_one_warning(tmp_path, monkeypatch, no_login):
    monkeypatch.setitem(sys.modules, "wandb", None)
    stream = io.StringIO()
    run_with_wandb(tmp_path, stream)
    assert stream.getvalue().count("warning: wandb") == 1 and len(rows(tmp_path)) == 3


def test_an_explicit_wandb_mode_wins(tmp_path, monkeypatch, no_login):
    for mode in ("disabled", "offline"):
        monkeypatch.setenv("WANDB_MODE", mode)
        fake = use(monkeypatch, FakeWandb(credentials=True))
        run_with_wandb(tmp_path, io.StringIO())
        assert [init["mode"] for _, init in fake.of("init")] == [mode]
    monkeypatch.setenv("WANDB_MODE", "online")  # without a key wandb would ask for one
    fake = use(monkeypatch, FakeWandb())
    run_with_wandb(tmp_path, io.StringIO())
    assert [init["mode"] for _, init in fake.of("init")] == ["offline"]


def test_a_wandb_that_can_only_ask_is_not_asked(monkeypatch, no_login):
    old = SimpleNamespace(login=lambda key=None: pytest.fail("asked"))
    assert not logged_in(old)
    no_login.write_text("machine api.wandb.ai login user password " + "k" * 40)
    assert logged_in(old)
    for text in ("machine example.com login user password x", "machine"):
        no_login.write_text(text)
        assert not logged_in(old)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert logged_in(old)


REAL = """
import sys
from jointdreamer.runs.logger import Logger
with Logger(sys.argv[1], steps=2, every=1) as logger:
    logger.begin(wandb={"project": "test"}, config={"seed": 0})
    for step in range(2):
        logger.log(step, 0.5)
"""


def test_the_real_wandb_runs_offline_without_login_network_or_stdin(tmp_path):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment = {**clean, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "none")}
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(tmp_path)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"../../x", b"a b", b"0" * 10**6])
def test_a_damaged_wandb_id_is_drawn_anew(tmp_path, content):
    file = tmp_path / "wandb" / "run_id.txt"
    first = run_id(file)
    assert run_id(file) == first
    file.write_bytes(content)
    assert re.fullmatch("[0-9a-f]{8}", run_id(file)) and run_id(file) == file.read_text().strip() != first


def test_a_wandb_id_that_cannot_be_read_now_stays(tmp_path, monkeypatch):
    file = tmp_path / "wandb" / "run_id.txt"
    first = run_id(file)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert run_id(file) != first
    assert run_id(file) == first
