"""What a viewer shows: runs, one that trains in this process or several that lie on the disk."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from jointdreamer.distillation.base import Term, pictures_of
from jointdreamer.errors import UserError, one_line
from jointdreamer.images import contact_sheet, read_picture
from jointdreamer.reading import Unreadable, open_file, parse_json
from jointdreamer.runs.checkpoint import checkpoint_files
from jointdreamer.runs.pictures import load_scene
from jointdreamer.runs.records import read_config
from jointdreamer.scenes.base import Scene
from jointdreamer.viewer.frames import Surface

ORBIT = ("elevation_deg", "distance", "fovy_deg")
MOST_POINTS = 400  # of a curve


class Subject:
    """A run's object, and what its folder says of it.

    scene, terms: of the run that trains; without a scene it is loaded from the newest checkpoint when it is first seen.
    """

    def __init__(self, folder: Path, scene: Scene | None = None, terms: Sequence[Term] = (), name: str = "run"):
        self.folder, self.name, self.terms = folder, name, terms
        self.live = scene is not None
        self.step = 0  # completed
        self.orbit: dict[str, float] = {}  # the run's own camera, as `orbit_cameras` takes it
        self.numbers: dict[str, float] = {}
        self.surface: Surface | None = None
        self.surface_step: int | None = None
        self.no_surface = ""  # why there is none
        self._latest: tuple[Mapping[str, Any], SimpleNamespace] = ({}, SimpleNamespace())
        self._scene = scene
        self._failed: UserError | None = None
        self._curve: list[tuple[int, float]] = []
        self._read = 0  # bytes of metrics.jsonl

    @classmethod
    def saved(cls, folder: Path, name: str) -> "Subject":
        """A run on the disk. Raises UserError for a folder that is no run, or a run without a checkpoint."""
        try:
            config = read_config(folder)
        except Unreadable as error:
            raise UserError(f"{folder} is no run folder: its config.yaml cannot be read ({error.why})") from error
        found = checkpoint_files(folder)
        if not found:
            raise UserError(f"{folder} has no checkpoint yet: let the run go on first, or look on with viewer=true")
        subject = cls(folder, name=name)
        subject.step = found[-1][0]
        output = config.get("output")
        if isinstance(output, dict):
            subject.orbit = {key: output[key] for key in ORBIT if isinstance(output.get(key), int | float)}
        return subject

    @property
    def scene(self) -> Scene:
        """Raises UserError for a checkpoint that cannot be loaded."""
        if self._failed is not None:  # not read again for each picture
            raise self._failed
        if self._scene is None:
            try:
                self._scene = load_scene(self.folder)[0]
            except UserError as error:
                self._failed = error
                raise
        return self._scene

    def at(self, step: int, loss: Any, losses: Mapping[str, Any], now: SimpleNamespace) -> None:
        """Note what a step of training came to."""
        self.step, self._latest = step, ({"loss": loss, **losses}, now)

    def read_numbers(self) -> dict[str, float]:
        """The numbers of the last step by name: of training, or of the last row of metrics.jsonl."""
        if self.live:
            parts, now = self._latest
            found = {
                name: float(value.detach() if isinstance(value, Tensor) else value) for name, value in parts.items()
            }
            found |= {name: value for name, value in vars(now).items() if isinstance(value, int | float)}
            self.numbers = found
        return self.numbers

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and losses of metrics.jsonl, in at most MOST_POINTS means. What is new in the file is read."""
        try:
            with open_file(self.folder / "metrics.jsonl") as stream:
                stream.seek(self._read)
                block = stream.read()
        except (Unreadable, OSError):
            block = b""
        whole = block[: block.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                row = parse_json(line)
                step, loss = int(row["step"]), float(row["loss"])
            except (ValueError, TypeError, LookupError):
                continue
            if math.isfinite(loss):
                self._curve.append((step + 1, loss))
            if not self.live:
                plain = {key.removeprefix("now/"): value for key, value in row.items() if key != "step"}
                self.numbers = {key: value for key, value in plain.items() if isinstance(value, int | float)}
        points = np.array(self._curve, np.float64).reshape(-1, 2)
        parts = np.array_split(points, min(len(points), MOST_POINTS)) if len(points) else []
        means = np.array([part.mean(0) for part in parts]).reshape(-1, 2)
        return means[:, 0], means[:, 1]

    def energy_picture(self) -> np.ndarray | None:
        """What the terms saw and wanted at the last step, or the newest file in energy/: uint8 (H, W, 3)."""
        if self.live:
            rows = pictures_of(self.terms)
            return contact_sheet(rows) if rows else None
        files = sorted((self.folder / "energy").glob("step_*.png"))
        return read_picture(files[-1])[..., :3] if files else None

    def make_surface(self, resolution: int) -> None:
        """Take the mesh of the object as it is now; an object without one keeps the reason."""
        self.surface_step = self.step
        try:
            self.surface, self.no_surface = Surface.of(self.scene.mesh(resolution)), ""
        except UserError as error:
            self.surface, self.no_surface = None, one_line(error)
