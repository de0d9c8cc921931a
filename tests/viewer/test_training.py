"""train.py with a viewer: what a run with a browser leaves behind is, bit for bit, what one without leaves behind."""

import re
import threading
import time

import pytest
import torch

from benchmarks.fake_browser import FakeBrowser
from jointdreamer.viewer.server import free_port

pytest.importorskip("viser")
STEPS = 30
WORDS = (
    "prompt=a red robot",
    "energy=none",
    f"schedule.steps={STEPS}",
    "every.checkpoint=10",
    "every.log=3",
    "every.view=7",
)


def watch(folder, port, heard, stay):
    """A browser that turns the object until the run is over, or, unless it stays, until it has seen two pictures."""
    browser = FakeBrowser(port, seconds=60)
    turn = 0
    try:
        while True:
            turn += 1
            browser.look(position=(3.0, 0.1 * (turn % 7), 0.0))
            browser.hear(0.03)
            if len(browser.pictures) > 1 and not stay:
                return browser.vanish()
    except Exception:  # the server is gone, as the run is
        pass
    finally:
        heard.append(len(browser.pictures))


def files(run):
    return {
        file.relative_to(run).as_posix(): file.read_bytes()
        for pattern in ("metrics.jsonl", "views/*", "mesh/*", "contact_sheet.png")
        for file in run.glob(pattern)
    }


def folder_of(path):
    (result,) = path.rglob("result.json")
    return result.parent


def assert_same(one, two):
    assert files(one) == files(two) and len(files(one)) > 4
    for step in (20, STEPS):
        here, there = (torch.load(run / "checkpoints" / f"step_{step:06d}.pt") for run in (one, two))
        assert_equal(here["parts"], there["parts"])
        assert_equal(here["random"], there["random"])


def assert_equal(one, two, where=""):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{where}.{index}")
    else:
        assert one == two, where


@pytest.fixture(scope="module")
def plain(launcher, tiny_run, tmp_path_factory):
    """A run without a viewer, by its scene."""
    made = {}

    def run(scene):
        if scene not in made:
            folder = tmp_path_factory.mktemp(scene)
            assert launcher.run(folder, tiny_run(*WORDS, *SCENES[scene])) == 0, (folder / "stderr").read_text()
            made[scene] = folder_of(folder)
        return made[scene]

    return run


SCENES = {"nerf": (), "dmtet": ("scene=dmtet", "scene.resolution=12")}


@pytest.mark.parametrize(("scene", "stay"), [("nerf", True), ("nerf", False), ("dmtet", True)])
def test_a_browser_changes_no_bit_of_a_run(launcher, tiny_run, plain, tmp_path, scene, stay):
    port, heard = free_port("127.0.0.1", 0), []
    browser = threading.Thread(target=watch, args=(tmp_path, port, heard, stay))
    browser.start()
    words = tiny_run(*WORDS, *SCENES[scene], "viewer=true", f"viewer.port={port}", "viewer.resolution=32")
    status = launcher.run(tmp_path, words)
    browser.join(60)
    said = (tmp_path / "stderr").read_text()
    assert status == 0, said
    assert f"viewer: http://127.0.0.1:{port}\n" in said and "Traceback" not in said and "warning" not in said
    assert heard[0] >= 2  # it saw the object
    run = folder_of(tmp_path)
    assert (tmp_path / "stdout").read_text() == f"{run.relative_to(tmp_path)}\n"
    assert_same(run, plain(scene))


def test_a_run_is_resumed_with_and_without_a_viewer(launcher, tiny_run, plain, tmp_path):
    """What is looked at is no other config."""
    words = tiny_run(*WORDS, "viewer=true", "viewer.port=0")
    short = [word.replace(f"schedule.steps={STEPS}", "schedule.steps=20") for word in words]
    assert launcher.run(tmp_path, short) == 0, (tmp_path / "stderr").read_text()
    assert launcher.run(tmp_path, tiny_run(*WORDS)) == 0, (tmp_path / "stderr").read_text()
    assert_equal(
        *(
            torch.load(run / "checkpoints" / f"step_{STEPS:06d}.pt")["parts"]
            for run in (folder_of(tmp_path), plain("nerf"))
        )
    )


def test_two_runs_at_a_time_take_two_ports(launcher, tiny_run, tmp_path):
    """As the jobs of a sweep do: the second says where it went."""
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert launcher.run(tmp_path, tiny_run("prompt=a robot", "viewer=true", f"viewer.port={taken}")) == 0
    said = (tmp_path / "stderr").read_text()
    assert re.search(rf"warning: viewer: port {taken} is in use, taking \d+\nviewer: http://127.0.0.1:\d+\n", said)


def test_hosts_that_are_wrong_or_open(launcher, tiny_run, tmp_path):
    begun = time.monotonic()
    assert launcher.run(tmp_path, tiny_run("prompt=a robot", "viewer=true", "viewer.host=192.0.2.7")) == 2
    said = (tmp_path / "stderr").read_text()
    assert said.startswith("error: viewer.host=192.0.2.7: ") and said.count("\n") == 1
    assert time.monotonic() - begun < 30
    words = tiny_run("prompt=a robot", "viewer=true", "viewer.host=0.0.0.0", "viewer.port=0")
    assert launcher.run(tmp_path, words) == 0
    assert "warning: viewer.host=0.0.0.0: anyone on the network can look" in (tmp_path / "stderr").read_text()
    assert "anyone on the network" in (folder_of(tmp_path) / "train.log").read_text()
