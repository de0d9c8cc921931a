"""The viewer in Chromium. Skipped where there is no Chromium ($CHROMIUM, or on the PATH), or no viser."""

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.chromium import chromium, find
from jointdreamer.scenes.registry import build_scene
from jointdreamer.viewer.server import open_server
from jointdreamer.viewer.subjects import Subject
from jointdreamer.viewer.window import Viewer

pytest.importorskip("viser")
pytestmark = [pytest.mark.skipif(find() is None, reason="no Chromium here"), pytest.mark.timeout(600), pytest.mark.slow]

GROUPS = {
    "field": {"encoding": {"n_levels": 2, "log2_table_size": 6, "base_resolution": 4, "backend": "torch"}, "hidden": 8},
    "background": {},
}
SIZE = (900, 500)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        opened.size(*SIZE)
        yield opened


@pytest.fixture
def viewer(tmp_path):
    """Two objects on the disk's side: a ball, and one that is long along x; the page is open on them."""
    subjects = []
    for name, stretch in (("ball", 1.0), ("long", 0.4)):
        scene: Any = build_scene(groups=GROUPS, name="dmtet", resolution=16)
        with torch.no_grad():
            p = scene.grid_vertices() * torch.tensor([1.0, 1 / stretch, 1 / stretch])
            scene.level.copy_((p.norm(dim=1) - 0.5).clamp(-1, 1))
        subject = Subject(tmp_path / name, scene, name=name)
        subject.live = False
        subjects.append(subject)
    made = Viewer(open_server("127.0.0.1", 0), subjects, 64, 16)
    over = threading.Event()

    def serve():
        while not over.is_set():
            if not made.tick():
                time.sleep(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    yield made
    over.set()
    thread.join()
    made.close()


def boxes(page):
    """The panel's own check boxes, by label."""
    labels = page.js(
        "[...document.querySelectorAll('input[type=checkbox]')].map(b => "
        "{let e = b; while (e && !e.textContent.trim()) e = e.parentElement; return e ? e.textContent : ''})"
    )
    return {label: index for index, label in enumerate(labels)}


def seen(page, tmp_path):
    """What the page shows left of its panel: pixels that are no paper, a truth value each."""
    page.screenshot(tmp_path / "page.png")
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    width = page.js("document.querySelector('canvas').getBoundingClientRect().width")
    return (pixels[:, : int(width)] < 200).any(2)


def until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_objects_are_shown_turned_and_chosen(viewer, page, tmp_path):
    page.call("Page.navigate", url=f"http://127.0.0.1:{viewer.server.get_port()}")
    page.wait("document.querySelectorAll('input[type=checkbox]').length > 7")
    assert {"rgb", "normals", "depth", "opacity", "mesh", "ball", "long"} <= boxes(page).keys()
    page.js("document.querySelector('.mantine-Notification-closeButton')?.click()")  # WebGL is slow here, it says
    until(lambda: seen(page, tmp_path).mean() > 0.02)
    until(lambda: all(one.fine for one in viewer._seen.values()))
    before = seen(page, tmp_path)

    # dragging turns both, by the browser's own camera
    [client] = viewer.server.get_clients().values()
    was = client.camera.position.copy()
    assert was == pytest.approx([3 * np.cos(np.deg2rad(15)), 0, 3 * np.sin(np.deg2rad(15))], abs=1e-3)
    page.call("Input.dispatchMouseEvent", type="mousePressed", x=200, y=250, button="left", buttons=1, clickCount=1)
    for x in range(200, 320, 20):
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=250, button="left", buttons=1)
        time.sleep(0.05)
    page.call("Input.dispatchMouseEvent", type="mouseReleased", x=320, y=250, button="left", clickCount=1)
    until(lambda: np.linalg.norm(client.camera.position - was) > 0.5)
    assert np.linalg.norm(client.camera.position) == pytest.approx(3, abs=0.05)
    until(lambda: (seen(page, tmp_path) != before).mean() > 0.005)  # the long one is wider from the side

    for name in ("normals", "ball"):  # one picture of one run is left
        page.js(f"document.querySelectorAll('input[type=checkbox]')[{boxes(page)[name]}].click()")
    until(lambda: viewer.controls.state == ("rgb", "long"))
    page.js(f"document.querySelectorAll('input[type=checkbox]')[{boxes(page)['mesh']}].click()")
    until(lambda: viewer.subjects[1].surface is not None)
    assert viewer.subjects[0].surface is None  # nobody looks at it
    assert page.errors == []
    assert {url.split("/")[2] for url in page.requests if url.startswith(("http", "ws"))} == {
        f"127.0.0.1:{viewer.server.get_port()}"
    }
    assert viewer.watched
    page.call("Page.close")
    until(lambda: not viewer.watched)
