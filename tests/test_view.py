"""python -m jointdreamer.view: several runs in the browser; and what a command can be wrong about."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.fake_browser import FakeBrowser
from jointdreamer import view
from jointdreamer.errors import UserError
from jointdreamer.runs.folder import RunFolder
from jointdreamer.scenes.registry import build_scene
from jointdreamer.viewer.server import ViewerSettings, free_port
from jointdreamer.viewer.subjects import MOST_POINTS, Subject

ROOT = Path(__file__).parents[1]
CONFIG = {
    "scene": {"name": "nerf"},
    "field": {"encoding": {"n_levels": 2, "log2_table_size": 6, "base_resolution": 4, "backend": "torch"}, "hidden": 8},
    "renderer": {"grid_resolution": 8, "n_samples": 8, "backend": "torch"},
    "background": {},
    "output": {"views": 3, "resolution": 16, "elevation_deg": 15, "distance": 2.6, "fovy_deg": 40},
}


@pytest.fixture
def make_run(tmp_path):
    """make_run("runs/a") -> the folder of a run that was stopped after step 7."""

    def make(name="runs/a", **changes):
        config = {**CONFIG, **changes}
        scene = build_scene(groups=config, **config["scene"])
        with RunFolder.open(tmp_path / name, config) as run:
            run.save(7, scene=scene)
        rows = [{"step": step, "loss": 10.0 - step, "now/resolution": 64} for step in range(7)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return make


def refused(capsys, *words, says=()):
    assert view.main(list(words)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert [text for text in says if text not in said.err] == [], said.err


def test_what_is_no_run_is_one_line(capsys, tmp_path, make_run):
    (tmp_path / "empty").mkdir()
    refused(capsys, str(tmp_path / "empty"), says=["empty is no run folder"])
    refused(capsys, str(tmp_path / "nowhere"), says=["nowhere matches no run"])
    with RunFolder.open(tmp_path / "begun", CONFIG):
        pass
    refused(capsys, str(tmp_path / "begun"), says=["begun has no checkpoint yet", "viewer=true"])
    run = make_run()
    (run / "config.yaml").write_text("[")
    refused(capsys, str(run), says=["is no run folder: its config.yaml cannot be read"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["port=x"], "port='x': wanted a whole number from 0 to 65535"),
        (["resolution=7"], "resolution=7: wanted a whole number from 32 to 1024"),
        (["mesh.resolution=7"], "mesh_resolution=7"),
        (["host="], "viewer.host=: no such address"),
        (["host=192.0.2.7"], "viewer.host=192.0.2.7"),
        (["texture=3"], "texture=3: wanted RUN folders and KEY=VALUE, of which there are host, port"),
        (["--port"], "--port: wanted RUN folders"),
    ],
)
def test_a_wrong_word_is_one_line(capsys, make_run, words, says):
    refused(capsys, str(make_run()), *words, says=[says])


def test_no_run_and_help(capsys):
    refused(capsys, "port=8080", says=["no run: say which"])
    assert view.main([]) == 2 and view.main(["--help"]) == 0
    assert "mesh.resolution=128" in capsys.readouterr().out


def test_without_the_extra_one_line_names_it(capsys, monkeypatch, make_run):
    monkeypatch.setattr("jointdreamer.viewer.server.find_spec", lambda name: None)
    refused(capsys, str(make_run()), says=["pip install -e '.[viewer]'"])


def test_runs_are_named_by_what_distinguishes_them(tmp_path):
    paths = [tmp_path / "mvs" / "robot" / "seed0", tmp_path / "none" / "robot" / "seed1"]
    assert view.names_of(paths) == ["mvs/seed0", "none/seed1"]
    assert view.names_of(paths[:1]) == ["seed0"]
    assert view.names_of([*paths, tmp_path / "other"]) == ["mvs/robot/seed0", "none/robot/seed1", "other"]


def test_a_subject_reads_what_the_run_wrote(make_run):
    run = make_run()
    subject = Subject.saved(run, "a")
    steps, losses = subject.curve()
    assert steps.tolist() == list(range(1, 8)) and losses.tolist() == [10.0 - step for step in range(7)]
    assert subject.read_numbers() == {"loss": 4.0, "resolution": 64}
    assert subject.step == 7 and subject.orbit == {"elevation_deg": 15, "distance": 2.6, "fovy_deg": 40}
    with (run / "metrics.jsonl").open("a") as file:  # the run goes on: a row that is half written is left for later
        file.write('{"step": 7, "loss": NaN}\n{"step": 8, "loss": 1.0}\njunk\n[]\n{"step": 9, "lo')
    assert subject.curve()[0].tolist() == [*range(1, 8), 9]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('ss": 0.5}\n')
    assert subject.curve()[1].tolist()[-2:] == [1.0, 0.5]


def test_a_long_curve_is_thinned_to_its_means(make_run):
    run = make_run()
    rows = "".join(f'{{"step": {step}, "loss": {step % 2}}}\n' for step in range(4 * MOST_POINTS))
    (run / "metrics.jsonl").write_text(rows)
    steps, losses = Subject.saved(run, "a").curve()
    assert len(steps) == MOST_POINTS and set(losses.tolist()) == {0.5}


def test_a_damaged_checkpoint_is_a_line_and_the_others_are_shown(make_run, caplog):
    pytest.importorskip("viser")
    from jointdreamer.viewer.server import open_server
    from jointdreamer.viewer.window import Viewer

    good, bad = make_run("runs/a"), make_run("runs/b")
    (bad / "checkpoints" / "step_000007.pt").write_bytes(b"junk")
    subjects = [Subject.saved(good, "a"), Subject.saved(bad, "b")]
    viewer = Viewer(open_server("127.0.0.1", 0), subjects, 32, 8)
    try:
        with FakeBrowser(viewer.server.get_port()) as browser:
            browser.look()
            deadline = time.monotonic() + 10
            while not viewer.tick() and time.monotonic() < deadline:
                time.sleep(0.01)
            browser.hear()
            assert browser.pictures
    finally:
        viewer.close()
    assert any("b has no checkpoint yet" in said or "runs/b" in said for said in caplog.messages)
    with pytest.raises(UserError):
        _ = subjects[1].scene


def test_two_runs_side_by_side_until_ctrl_c(make_run):
    """The command itself: both runs' pictures come, in a row each, and Ctrl-C ends it with status 0 and no word."""
    pytest.importorskip("viser")
    make_run("runs/a")
    torch.manual_seed(1)
    make_run("runs/b")
    runs = make_run("runs/c").parent
    port = free_port("127.0.0.1", 0)
    line = [sys.executable, "-m", "jointdreamer.view", str(runs / "[ab]"), f"port={port}", "resolution=32"]
    process = subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        with FakeBrowser(port, seconds=60) as browser:
            browser.look(size=(300, 300))
            deadline = time.monotonic() + 60
            while len(browser.pictures) < 2 and time.monotonic() < deadline:
                browser.hear(0.2)
            labels = {one["props"]["label"] for one in browser.messages if "label" in one.get("props", {})}
        assert {"a", "b", "rgb", "mesh"} <= labels and not {"c", "pause"} & labels
        assert len(browser.pictures) >= 2
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", f"viewer: http://127.0.0.1:{port}\n")


def test_the_settings_are_the_documented_ones():
    assert view.read_words(["run"])[1] == ViewerSettings(resolution=384, mesh_resolution=128)
    given = view.read_words(["run", "host=0.0.0.0", "port=1", "resolution=64", "mesh.resolution=9"])
    assert given == (["run"], ViewerSettings(host="0.0.0.0", port=1, resolution=64, mesh_resolution=9))
