"""The viewer: what the browser's controls mean, and when what is drawn. All drawing is done by the thread that trains.

```python
with open_viewer({"port": 8080}, run.path, scene, terms) as viewer:
    for step in range(start, steps):
        ...
        if viewer and viewer.watched:
            viewer.show(step + 1, loss, losses, now, stop)
```
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from jointdreamer.distillation.base import Term
from jointdreamer.errors import UserError, one_line
from jointdreamer.runs.signals import Stop
from jointdreamer.scenes.base import Scene
from jointdreamer.viewer.controls import Controls
from jointdreamer.viewer.frames import arrange, camera_of, compose, mesh_picture, pictures_of
from jointdreamer.viewer.pace import MOVING, STILL, Pace
from jointdreamer.viewer.server import ViewerSettings, open_server, random_untouched
from jointdreamer.viewer.subjects import Subject

log = logging.getLogger(__name__)

REST = 0.25  # seconds for which a camera has stood when its picture is drawn finer
POLL = 0.02  # seconds between two looks at the controls while nothing else is to be done


@dataclass
class Seen:
    """What a browser was shown last."""

    camera: float = -1.0  # when its camera moved, as viser has it
    controls: Any = None
    steps: tuple[int, ...] = ()
    side: int = 0  # pixels
    fine: bool = False  # drawn after the camera had come to rest
    moved: float = 0.0  # when it was first drawn from there


class Viewer:
    """Some runs' objects in the browsers that are connected to a viser server.

    server: see `open_server`. subjects: one that trains here, or some that lie on the disk.
    resolution, mesh_resolution: see `ViewerSettings`. orbit: the camera that a browser starts with, `orbit_cameras`.
    Nothing that goes wrong here is more than a line in the log.
    """

    def __init__(self, server: Any, subjects: Sequence[Subject], resolution: int, mesh_resolution: int, **orbit: float):
        self.server, self.subjects, self.mesh_resolution = server, list(subjects), mesh_resolution
        self.live = any(subject.live for subject in subjects)
        self.watched = False  # whether a browser is connected
        self.pace = Pace(resolution)
        self._seen: dict[int, Seen] = {}
        self._said: set[str] = set()
        self._stepped = time.perf_counter()  # when the last step of training began
        self.controls = Controls(server, self.subjects, self.live, **orbit)
        server.on_client_connect(self._count)
        server.on_client_disconnect(self._count)
        self.watched = bool(server.get_clients())  # who came before we listened

    async def _count(self, client: Any) -> None:
        self.watched = bool(self.server.get_clients())

    def close(self) -> None:
        """Let the browsers go."""
        self.watched = False
        with self._at_most_a_line():
            self.server.stop()

    # Between two steps

    def show(
        self, done: int, loss: Any, losses: Mapping[str, Any], now: SimpleNamespace, stop: Stop | None = None
    ) -> None:
        """Draw what is due after `done` steps; wait here while someone pauses the run and looks.

        While someone turns the object this takes as long as the step did; else the shares in pace.SHARES of the time.
        """
        began = time.perf_counter()
        step_seconds = began - self._stepped
        with self._at_most_a_line(), random_untouched():
            self.subjects[0].at(done, loss, losses, now)
            self.controls.step_seconds = step_seconds
            self.tick()
            while self.turning and time.perf_counter() - began < step_seconds:
                if not self.tick():
                    time.sleep(POLL / 4)
            while self.paused and self.watched and (stop is None or stop.requested is None):
                if not self.tick():
                    time.sleep(POLL)
        self._stepped = time.perf_counter()

    @property
    def paused(self) -> bool:
        return self.controls.paused

    @property
    def turning(self) -> bool:
        """Whether a browser's camera has moved since its last picture, or did so just before."""
        for number, client in self.server.get_clients().items():
            seen = self._seen.get(number)
            if seen is None or client.camera.update_timestamp != seen.camera or self._rests(seen) < REST:
                return True
        return False

    def _rests(self, seen: Seen) -> float:
        return time.perf_counter() - seen.moved

    def tick(self) -> bool:
        """Make what is due, at most one picture of the object for each browser; whether there was anything."""
        with self._at_most_a_line():
            return self._tick()
        return False

    def _tick(self) -> bool:
        clients = self.server.get_clients()
        for gone in self._seen.keys() - clients.keys():
            del self._seen[gone]
        if not clients:
            return False
        shown = [subject for subject in self.subjects if self.controls.shows(subject)]
        controls, steps = self.controls.state, tuple(subject.step for subject in shown)
        busy = False
        for number, client in clients.items():
            seen = self._seen.setdefault(number, Seen())
            camera = client.camera.update_timestamp
            changed = camera != seen.camera or controls != seen.controls
            finer = self._rests(seen) >= REST and (not seen.fine or (self.waiting and seen.side < self.finest))
            older = steps != seen.steps and self._may("object")
            if not (changed or finer or older):
                continue
            busy = True
            side = self.pace.side(MOVING) if changed else self.finest
            moved = time.perf_counter() if changed else seen.moved
            self._seen[number] = Seen(
                camera, controls, steps, side, not changed, moved
            )  # what fails is not tried again
            began = time.perf_counter()
            self._draw(client, shown, side)
            seconds = time.perf_counter() - began
            self.pace.drew(side, seconds)
            if not changed and not finer:
                self.pace.spent("object", seconds)
        return self._beside(shown) or busy

    @property
    def waiting(self) -> bool:
        """Whether no training waits for what is drawn here."""
        return self.paused or not self.live

    @property
    def finest(self) -> int:
        """Pixels along a side of a picture of a camera that stands."""
        return self.pace.largest if self.waiting else self.pace.side(STILL)

    def _draw(self, client: Any, shown: Sequence[Subject], side: int) -> None:
        camera, channels = client.camera, self.controls.channels
        width, height = max(64, camera.image_width), max(64, camera.image_height)
        cells = []
        for subject in shown:
            pictures = self._pictures(subject, camera, channels, side)
            several = f"{subject.name}: " if len(shown) > 1 else ""
            cells += [(f"{several}{name}", picture) for name, picture in pictures.items()]
        if not cells:
            return client.scene.set_background_image(None)
        columns = arrange(len(shown), len(cells) // len(shown), width, height)
        client.scene.set_background_image(compose(cells, columns, width, height), format="jpeg", jpeg_quality=85)

    def _pictures(
        self, subject: Subject, camera: Any, channels: Sequence[str], side: int
    ) -> dict[str, np.ndarray | None]:
        cameras = camera_of(camera.wxyz, camera.position, camera.fov, side)
        try:
            made = pictures_of(subject.scene, cameras, channels)
        except UserError as error:  # a checkpoint that cannot be loaded: the others are shown
            self._complain(error)
            return dict.fromkeys(channels)
        cells: dict[str, np.ndarray | None] = {name: made.get(name) for name in channels}
        if "mesh" in cells:
            if subject.surface_step is None:
                subject.make_surface(self.mesh_resolution)
            if subject.surface is None:
                del cells["mesh"]
                cells[f"no mesh: {subject.no_surface}"] = None
            else:
                cells["mesh"] = mesh_picture(subject.surface, cameras)
        return cells

    def _may(self, what: str) -> bool:
        return self.waiting or self.pace.due(what)

    def _beside(self, shown: Sequence[Subject]) -> bool:
        """The panel's numbers, curve and pictures, and the mesh: one that is behind and due; whether there was any."""
        for subject in shown:
            for what in filter(self._may, ("numbers", "others")):
                make = self.controls.next_update(subject, what)
                if make is None and what == "others" and self._surface_is_old(subject):
                    make = partial(self._renew_surface, subject)
                if make is not None:
                    began = time.perf_counter()
                    try:
                        make()
                    finally:  # what fails takes its time as well
                        self.pace.spent(what, time.perf_counter() - began)
                    return True
        return False

    def _surface_is_old(self, subject: Subject) -> bool:
        return "mesh" in self.controls.channels and subject.surface_step not in (None, subject.step)

    def _renew_surface(self, subject: Subject) -> None:
        subject.make_surface(self.mesh_resolution)
        for seen in self._seen.values():
            seen.steps = ()

    # What goes wrong

    @contextmanager
    def _at_most_a_line(self) -> Iterator[None]:
        """Whatever fails in here is a line in the log, once."""
        try:
            yield
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        said = one_line(error)[:300]
        said = said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"
        if said not in self._said:
            self._said.add(said)
            log.warning("viewer: %s", said)


@contextmanager
def open_viewer(
    options: Mapping[str, Any], folder: Path, scene: Scene, terms: Sequence[Term] | None, **orbit: float
) -> Iterator[Viewer | None]:
    """A viewer of a run that trains; None where nobody wants one, there is nothing to train (no terms), or it cannot be
    opened, which is a line in the log: the run goes on without.

    options: of `ViewerSettings`. orbit: see `Viewer`
    """
    settings, viewer = ViewerSettings(**options), None
    if settings.open and terms is not None:
        try:
            server = open_server(settings.host, settings.port)
            subject = Subject(folder, scene, terms)
            viewer = Viewer(server, [subject], settings.resolution, settings.mesh_resolution, **orbit)
        except Exception as error:
            log.warning("no viewer: %s", one_line(error)[:300])
    try:
        yield viewer
    finally:
        if viewer is not None:
            viewer.close()
