"""The viewer with viser's server in this process and websocket clients instead of browsers."""

import logging
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.fake_browser import FakeBrowser
from jointdreamer.distillation.base import Term
from jointdreamer.errors import UserError
from jointdreamer.runs.signals import Stop
from jointdreamer.scenes.registry import build_scene
from jointdreamer.viewer.server import open_server
from jointdreamer.viewer.subjects import Subject
from jointdreamer.viewer.window import Viewer, open_viewer

pytest.importorskip("viser")

GROUPS = {
    "field": {"encoding": {"n_levels": 2, "log2_table_size": 6, "base_resolution": 4, "backend": "torch"}, "hidden": 8},
    "renderer": {"grid_resolution": 8, "n_samples": 8, "backend": "torch"},
    "background": {},
}
NOW = SimpleNamespace(resolution=8, guidance_scale=3.0, lr=SimpleNamespace(geometry=0.1))


class Grey(Term):
    """A term that has a picture."""

    def forward(self, scene, render, cameras, now, generator):
        return {}

    def pictures(self):
        return {"noisy": torch.full((2, 3, 8, 8), 0.5)}


@pytest.fixture
def scene():
    return build_scene(groups=GROUPS, name="dmtet", resolution=12)


@pytest.fixture
def viewer(scene, tmp_path):
    made = Viewer(open_server("127.0.0.1", 0), [Subject(tmp_path, scene, [Grey()])], 64, 16)
    yield made
    made.close()


@pytest.fixture
def browser(viewer):
    with FakeBrowser(viewer.server.get_port()) as connected:
        connected.look()
        until(lambda: viewer.watched)
        yield connected


def until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def show(viewer, step=1, **changes):
    viewer.show(step, torch.tensor(2.5), {"jsd": torch.tensor(2.0)}, NOW, **changes)


def has_moved(viewer) -> bool:
    """Whether a camera has come that nothing was drawn for."""
    return (
        any(
            client.camera.update_timestamp != viewer._seen[number].camera
            for number, client in viewer.server.get_clients().items()
            if number in viewer._seen
        )
        or not viewer._seen
    )


def text(viewer) -> str:
    return viewer.controls._panels["run"]._text.content


def test_nobody_looks_and_nothing_is_drawn(viewer):
    """One attribute says so, and the loop asks no more than that."""
    assert viewer.tick() is False
    assert vars(viewer)["watched"] is False  # no property: nothing is computed
    source = (Path(__file__).parents[2] / "train.py").read_text()
    assert "if training.viewer and training.viewer.watched:\n            training.viewer.show(" in source


def test_a_browser_is_shown_the_object_and_the_numbers(viewer, browser):
    show(viewer, 7)
    browser.hear()
    assert len(browser.pictures) == 1
    picture = browser.pictures[0]
    assert picture.shape[1] / picture.shape[0] == pytest.approx(400 / 300, rel=0.05)
    assert picture.min() < 100  # something is on the paper
    until(lambda: show(viewer, 7) or "**step 7**" in text(viewer))
    assert "| loss | 2.5 |" in text(viewer) and "| jsd | 2 |" in text(viewer)
    assert "| guidance_scale | 3 |" in text(viewer)


def test_who_turns_it_sees_another_side_and_who_does_not_is_sent_nothing(viewer, browser):
    viewer.pace.drew(64, 1e-3)
    show(viewer)
    browser.hear()
    front = browser.pictures[-1]
    viewer.pace.spent("object", 1e9)  # what nobody asks for is over
    until(lambda: not viewer.turning)
    show(viewer)  # finer, once it stands
    browser.hear()
    before = len(browser.pictures)
    for step in range(2, 6):
        show(viewer, step)
    browser.hear()
    assert len(browser.pictures) == before
    browser.look(wxyz=(0.0, 1.0, 0.0, 0.0), position=(0.2, 0.1, 3.0))  # from above, off the middle
    until(lambda: has_moved(viewer))
    show(viewer)
    browser.hear()
    assert len(browser.pictures) > before
    assert np.abs(browser.pictures[-1].astype(int) - front).max() > 60


def test_a_picture_that_grew_old_is_drawn_again_when_it_may(viewer, browser):
    show(viewer, 1)
    until(lambda: not viewer.turning)
    show(viewer, 1)
    browser.hear()
    before = len(browser.pictures)
    viewer.pace._free["object"] = -1.0
    show(viewer, 1)  # the same step: nothing is old
    browser.hear()
    assert len(browser.pictures) == before
    show(viewer, 2)
    browser.hear()
    assert len(browser.pictures) == before + 1
    assert viewer.pace._free["object"] > 0  # and has its price


def test_all_kinds_of_pictures_and_the_mesh(viewer, browser):
    for box in viewer.controls._channels.values():
        box.value = True
    viewer.controls._panels["run"]._wanted.value = True
    show(viewer)
    until(lambda: show(viewer) or viewer.controls._panels["run"]._picture.visible)
    assert viewer.subjects[0].surface is not None and viewer.subjects[0].no_surface == ""
    assert viewer.controls._panels["run"]._picture.image.shape[2] == 3
    for box in viewer.controls._channels.values():
        box.value = False
    show(viewer)  # nothing is wanted
    assert browser.hear()


def test_an_object_without_a_surface_says_so(viewer, browser, scene, caplog):
    with torch.no_grad():
        scene.level.fill_(1.0)
    viewer.controls._channels["mesh"].value = True
    show(viewer)
    assert viewer.subjects[0].no_surface == "the mesh has no surface left to export"
    assert caplog.messages == []


def test_pause_waits_until_it_is_over(viewer, browser):
    viewer.controls._pause.value = True
    stop = Stop()
    asked = iter(range(200))

    class Watch:  # looked at once a turn of the waiting loop
        @property
        def requested(self):
            if next(asked) == 20:
                viewer.controls._pause.value = False
            return None

    show(viewer, stop=Watch())
    assert next(asked) >= 20 and not viewer.paused and stop.requested is None


def test_a_signal_ends_a_pause(viewer, browser):
    viewer.controls._pause.value = True
    show(viewer, stop=SimpleNamespace(requested=15))
    assert viewer.paused


@pytest.mark.parametrize("how", ["close", "vanish"])
def test_a_browser_that_goes_in_a_pause_lets_the_run_go_on(viewer, browser, how, caplog):
    viewer.controls._pause.value = True
    left = iter(range(10_000))

    class Watch:
        @property
        def requested(self):
            if next(left) == 5:
                getattr(browser, how)()
            return None

    show(viewer, stop=Watch())
    assert viewer.watched is False and caplog.messages == []


def test_a_browser_that_goes_while_it_is_drawn_for(viewer, browser, caplog, monkeypatch):
    original = viewer._pictures

    def gone(*arguments):
        browser.vanish()
        until(lambda: not viewer.server.get_clients())
        return original(*arguments)

    monkeypatch.setattr(viewer, "_pictures", gone)
    with warnings.catch_warnings():
        warnings.simplefilter("error", append=True)
        show(viewer)
    assert caplog.messages == [] and not viewer.watched
    show(viewer, 2)
    assert viewer._seen == {}


def test_what_fails_is_one_line_once(viewer, browser, monkeypatch, caplog, capfd):
    def fail(*_, **__):
        raise RuntimeError("out of\npaint")

    monkeypatch.setattr("jointdreamer.viewer.window.pictures_of", fail)
    for step in range(3):
        browser.look(position=(3.0, 0.1 * step, 0.0))
        until(lambda: has_moved(viewer))
        show(viewer, step)
    assert caplog.messages == ["viewer: RuntimeError: out of paint"]
    assert capfd.readouterr() == ("", "")


def test_a_camera_without_a_pose_is_one_line(viewer, browser, caplog):
    show(viewer)
    browser.look(wxyz=(0.0, 0.0, 0.0, 0.0))
    until(lambda: has_moved(viewer))
    show(viewer)
    assert len(caplog.messages) == 1 and "no pose" in caplog.messages[0]


def test_two_browsers_see_their_own_sides(viewer, browser):
    with FakeBrowser(viewer.server.get_port()) as other:
        other.look(wxyz=(0.0, 1.0, 0.0, 0.0), position=(0.0, 0.0, 4.0), size=(300, 300))
        until(lambda: len(viewer.server.get_clients()) == 2)
        show(viewer)
        browser.hear()
        other.hear()
        assert other.pictures[0].shape[0] == pytest.approx(other.pictures[0].shape[1], abs=2)
        assert browser.pictures[0].shape != other.pictures[0].shape
    until(lambda: len(viewer.server.get_clients()) == 1)
    assert viewer.watched


def test_the_generators_are_untouched(viewer, browser, scene):
    from jointdreamer.runs.checkpoint import random_state

    generator = torch.Generator().manual_seed(3)
    before, own = random_state(), generator.get_state()
    parameters = [p.detach().clone() for p in scene.parameters()]
    show(viewer)
    after = random_state()
    assert torch.equal(before["torch"], after["torch"]) and before["numpy"] == after["numpy"]
    assert before["python"] == after["python"]
    assert torch.equal(generator.get_state(), own)
    assert all(torch.equal(p, q) for p, q in zip(scene.parameters(), parameters, strict=True))


def test_no_viewer_where_none_is_wanted_or_there_is_nothing_to_train(scene, tmp_path):
    with open_viewer({"open": False}, tmp_path, scene, []) as viewer:
        assert viewer is None
    with open_viewer({"port": 0}, tmp_path, scene, None) as viewer:
        assert viewer is None


def test_a_viewer_that_cannot_be_opened_is_a_line(scene, tmp_path, monkeypatch, caplog):
    def fail(host, port):
        raise OSError("no sockets left")

    monkeypatch.setattr("jointdreamer.viewer.window.open_server", fail)
    with caplog.at_level(logging.WARNING), open_viewer({"port": 0}, tmp_path, scene, []) as viewer:
        assert viewer is None
    assert caplog.messages == ["no viewer: no sockets left"]


def test_a_fault_of_the_run_s_own_is_not_the_viewer_s(scene, tmp_path):
    with pytest.raises(UserError, match="the run's"), open_viewer({"port": 0}, tmp_path, scene, []) as viewer:
        assert viewer is not None
        raise UserError("the run's")
    assert viewer is not None and not viewer.watched
