"""The panel beside the picture: what is shown, pause, and each run's numbers, loss curve and energy's pictures."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jointdreamer.viewer.frames import CHANNELS
from jointdreamer.viewer.subjects import Subject

NUMBERS_EVERY = 0.5  # seconds: faster than that nobody reads
OTHERS_EVERY = 2.0


class Controls:
    """viser's handles of the panel. Their values are looked at where they are needed; nothing is called by a click.

    live: whether a run trains here, which can be paused
    """

    def __init__(
        self,
        server: Any,
        subjects: Sequence[Subject],
        live: bool,
        elevation_deg: float = 15.0,
        distance: float = 3.0,
        fovy_deg: float = 40.0,
    ):
        gui, self.step_seconds = server.gui, 0.0
        server.scene.set_up_direction("+z")
        elevation = math.radians(elevation_deg)
        server.initial_camera.position = (distance * math.cos(elevation), 0.0, distance * math.sin(elevation))
        server.initial_camera.look_at = (0.0, 0.0, 0.0)
        server.initial_camera.fov = math.radians(fovy_deg)
        gui.main_panel.dock_right()
        self._pause = gui.add_checkbox("pause", False, hint="training waits while you look") if live else None
        with gui.add_folder("pictures"):
            self._channels = {name: gui.add_checkbox(name, name in ("rgb", "normals")) for name in CHANNELS}
        self._runs: dict[str, Any] = {}
        if len(subjects) > 1:
            with gui.add_folder("runs"):
                self._runs = {one.name: gui.add_checkbox(one.name, one in subjects[:2]) for one in subjects}
        self._panels: dict[str, _Panel] = {}
        tabs = gui.add_tab_group() if len(subjects) > 1 else None
        for subject in subjects:
            with tabs.add_tab(subject.name) if tabs else gui.add_folder("run"):
                self._panels[subject.name] = _Panel(gui)

    @property
    def paused(self) -> bool:
        return self._pause is not None and bool(self._pause.value)

    @property
    def channels(self) -> list[str]:
        """The pictures that are wanted, of CHANNELS."""
        return [name for name, box in self._channels.items() if box.value]

    def shows(self, subject: Subject) -> bool:
        return not self._runs or bool(self._runs[subject.name].value)

    @property
    def state(self) -> tuple[Any, ...]:
        """Changes when other pictures are wanted."""
        return (*self.channels, *(name for name, box in self._runs.items() if box.value))

    def next_update(self, subject: Subject, what: str) -> Callable[[], None] | None:
        """What of a run's panel is behind, "numbers" or "others", as a function that mends it; None for nothing."""
        return self._panels[subject.name].next_update(subject, what, self.step_seconds)


class _Panel:
    """One run's numbers, loss curve and energy's pictures."""

    def __init__(self, gui: Any):
        self._curve = gui.add_uplot(
            (np.zeros(1), np.zeros(1)),
            series=({"label": "step"}, {"label": "loss", "stroke": "#4263eb", "width": 1.5}),
            scales={"x": {"time": False}},
            aspect=1.8,
            visible=False,
        )
        self._wanted = gui.add_checkbox("energy's pictures", False, hint="what each prior saw and the energy wants")
        self._picture = gui.add_image(np.full((1, 1, 3), 255, np.uint8), visible=False)
        self._text = gui.add_markdown("")
        self._made: dict[str, tuple[float, Any]] = {}  # when, and of what

    def next_update(self, subject: Subject, what: str, step_seconds: float) -> Callable[[], None] | None:
        if what == "others":
            wanted = bool(self._wanted.value)
            if self._behind("picture", (wanted, subject.step if wanted else None), OTHERS_EVERY):
                return lambda: self._show_picture(subject, wanted)
        elif self._behind("curve", subject.step, OTHERS_EVERY):
            return lambda: self._show_curve(subject)
        elif self._behind("numbers", subject.step, NUMBERS_EVERY):
            return lambda: self._show_numbers(subject, step_seconds)
        return None

    def _behind(self, name: str, of: Any, every: float) -> bool:
        clock = time.perf_counter()
        when, what = self._made.get(name, (-math.inf, None))
        if of == what or clock - when < every:
            return False
        self._made[name] = (clock, of)  # before it is made: what fails is not tried again at once
        return True

    def _show_curve(self, subject: Subject) -> None:
        steps, losses = subject.curve()
        if len(steps):
            self._curve.data = (steps, losses)
            self._curve.visible = True

    def _show_numbers(self, subject: Subject, step_seconds: float) -> None:
        lines = [f"**step {subject.step}**", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in subject.read_numbers().items()]
        lines += [f"| seconds a step | {step_seconds:.3g} |"] if subject.live and step_seconds else []
        self._text.content = "\n".join(lines)

    def _show_picture(self, subject: Subject, wanted: bool) -> None:
        picture = subject.energy_picture() if wanted else None
        if picture is not None:
            self._picture.image = picture
        self._picture.visible = picture is not None
