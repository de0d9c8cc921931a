"""Two commits of a toy train.py, and what is said of their runs."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks import same_bits
from benchmarks.same_bits import Job, compare, jobs
from jointdreamer.errors import UserError

ROOT = Path(__file__).parents[2]
# A number that is added up; half of it before a resume gives the same as all at once
TRAIN = """
import json, os, signal, sys, time
from pathlib import Path
import torch
import jointdreamer
assert Path(jointdreamer.__file__).parent.parent == Path(__file__).parent
words = dict(word.lstrip("+").split("=", 1) for word in sys.argv[1:])
if "wrong" in words:
    sys.exit(print("error: no such word", file=sys.stderr) or 2)
stop = []
signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
run = Path(words["out_dir"]) / "toy" / "seed0"
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
x, start = torch.zeros(3), 0
for file in (run / "checkpoints").glob("*.pt"):
    kept = torch.load(file)
    x, start = kept["parts"]["FIELD"]["x"], kept["step"]
steps = int(words["schedule.steps"])
metrics = (run / "metrics.jsonl").open("a")
for step in range(start, steps):
    x = x + torch.arange(3) * ADD
    metrics.write(json.dumps({"step": step, "loss": x.sum().item(), "seconds": time.time(), "now/ADD": ADD}) + chr(10))
    metrics.flush()
    if words.get("slow"):
        time.sleep(0.05)
    if stop or step + 1 == steps:
        torch.save({"step": step + 1, "parts": {"FIELD": {"x": x}, "number": 1}}, run / "checkpoints" / "step_1.pt")
    if stop:
        sys.exit(128 + signal.SIGTERM)
(run / "SHEET.png").write_bytes(repr((x.tolist(), words.get("energy"))).encode())
(run / "result.json").write_text("{}")
"""


def version(add: str = "0.1", **names: str) -> str:
    text = TRAIN.replace("ADD", add) if not names else TRAIN
    for old, new in {**{"ADD": add, "FIELD": "field", "SHEET": "sheet"}, **names}.items():
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """Branches: base; changed, whose sums differ; renamed, whose names do."""
    root = tmp_path_factory.mktemp("repository")
    (root / "jointdreamer").mkdir()
    (root / "jointdreamer" / "__init__.py").write_text("")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    versions = {"base": version(), "changed": version("0.125"), "renamed": version(FIELD="scene", SHEET="contact/a")}
    versions["renamed"] = versions["renamed"].replace(
        '(run / "contact/a', '(run / "contact").mkdir(exist_ok=True)\n(run / "contact/a'
    )
    for name, text in versions.items():
        (root / "train.py").write_text(text)
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-qm", name], check=True)
        subprocess.run([*git, "branch", name], check=True)
    (root / "train.py").write_text(versions["base"])
    return root


WORDS = ["schedule.steps=4"]


def test_the_same_code_is_the_same_and_leaves_nothing_behind(repository, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert compare("base", [Job(WORDS, WORDS)], repository)
    assert "everything is the same" in capsys.readouterr().out and not list(tmp_path.iterdir())
    listed = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 1


def test_a_number_that_differs_is_named(repository, capsys):
    assert not compare("changed", [Job(WORDS, WORDS)], repository)
    said = capsys.readouterr().out
    for what in ("1 of 2 columns differ, first loss (0.3", "1 of 1 tensors differ, first field.x (by at most 0.2)",
                 "1 of 1 files differ, first sheet.png", "NOT the same", "only here, first now/0.1"):  # fmt: skip
        assert what in said, said


def test_names_may_differ(repository, capsys, tmp_path):
    assert compare("renamed", [Job(WORDS, WORDS)], repository, keep=tmp_path / "kept")
    assert capsys.readouterr().out.count("1 under other names") == 2
    assert (tmp_path / "kept" / "0" / "other" / "contact" / "a.png").exists()
    with pytest.raises(UserError, match="holds something already"):
        compare("renamed", [], repository, keep=tmp_path / "kept")


def test_a_run_that_ends_too_early_to_be_stopped(repository):
    with pytest.raises(UserError, match="before it could be stopped at step 99"):
        compare("base", [Job(WORDS, WORDS, resume_at=99)], repository)


def test_the_other_commit_may_have_other_words(repository):
    assert not compare("base", [Job(WORDS, ["schedule.steps=5"])], repository)
    with pytest.raises(UserError, match="ended with status 2: error: no such word"):
        compare("base", [Job([*WORDS, "wrong=1"], WORDS)], repository)


def test_the_whole_list():
    args = parsed("--all", "schedule.steps=40", "--other-words", "schedule.n_steps=40")
    found = jobs(args)
    assert [job.title for job in found] == [
        "energy=none", "energy=mvs", "energy=cls", "energy=i2i", "energy=random", "distillation=mvdream",
        "distillation=sum", "energy=mvs resumed at 20",
    ]  # fmt: skip
    assert found[1].words == ["schedule.steps=40", "energy=mvs"]
    assert found[1].other_words == ["schedule.n_steps=40", "energy=mvs"]
    with pytest.raises(UserError, match="--resume-at"):
        jobs(parsed("--all", "schedule=toybox"))
    with pytest.raises(UserError, match="'mvs': wanted words"):
        jobs(parsed("mvs"))


def parsed(*words: str):
    return same_bits.arguments().parse_intermixed_args(["HEAD", *words])


def test_stopped_and_resumed_from_a_shell_that_ignores_signals(repository, tmp_path):
    """As a job in the background has it: a run is stopped all the same, and SIGTERM ends the command and its run."""
    code = "import pathlib, sys; from benchmarks import same_bits; same_bits.ROOT = pathlib.Path(sys.argv.pop(1)); "
    code += "sys.exit(same_bits.main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(repository), "base", *words]
        return subprocess.Popen(command, env=environment, preexec_fn=ignore, stdout=subprocess.PIPE, text=True)

    resumed = start("schedule.steps=12", "slow=1", "--resume-at", "3")
    said, _ = resumed.communicate(timeout=100)
    assert resumed.returncode == 0 and "resumed at 3" in said, said

    ended = start("schedule.steps=1000000", "slow=1")
    while not list(tmp_path.rglob("metrics.jsonl")):
        assert ended.poll() is None
        time.sleep(0.05)
    ended.terminate()
    ended.communicate(timeout=100)
    assert ended.returncode == 128 + signal.SIGTERM and not list(tmp_path.iterdir())


def test_a_mistake_is_one_line(repository, monkeypatch, capsys):
    monkeypatch.setattr(same_bits, "ROOT", repository)
    monkeypatch.setattr(sys, "argv", ["same_bits", "nowhere", "energy=mvs"])
    before = signal.getsignal(signal.SIGTERM)
    assert same_bits.main() == 2
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err.startswith("error: no commit 'nowhere'")
