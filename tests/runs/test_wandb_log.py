"""wandb that can only warn: offline without a login, one warning when it fails, the same run after a resume."""

import io
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jointdreamer.runs.logger import Logger
from jointdreamer.runs.wandb_log import logged_in, run_id

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


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
            logger.log(step, 1.0, now=SimpleNamespace(lr=SimpleNamespace(encoding=1e-2)))
        logger.image("views", 2, folder / "v.png")
        logger.show(2, {"turntable": [folder / "v.mp4"], "mesh": [folder / "m.glb"]})
        logger.summary({"minutes": 1})


def rows_written(folder):
    return len((folder / "metrics.jsonl").read_text().splitlines())


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
    assert rows_written(tmp_path) == 3


def test_wandb_that_is_not_installed_is_one_warning(tmp_path, monkeypatch, no_login):
    monkeypatch.setitem(sys.modules, "wandb", None)
    stream = io.StringIO()
    run_with_wandb(tmp_path, stream)
    assert stream.getvalue().count("warning: wandb") == 1 and rows_written(tmp_path) == 3


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
