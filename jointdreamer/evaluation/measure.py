"""Looking at runs: their views rendered from the checkpoint, and what the networks make of them, each computed once.

What was measured is kept in the run folder, `evaluation/KEY.npz` with the views beside it as `KEY.png`; the key is a
digest of the checkpoint's content, of the networks' files, of what was asked, and of VERSION. When nothing is missing,
no network, no renderer and none of their libraries is loaded.
"""

import hashlib
import json
import math
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.evaluation.networks import TOYBOX, Clip, ClipFiles, Inception
from jointdreamer.evaluation.runs import Run, damaged, file_identity
from jointdreamer.files import atomic_path
from jointdreamer.metrics import is_janus, zero_shot

VERSION = 2  # of what is measured: add one whenever the same views would give other numbers
JUDGE = TOYBOX / "judge" / "model.safetensors"
DIRECTIONS = ("front", "side", "back")
SHEET_COLUMNS = 10

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """One run, looked at. Numbers that this kind of run does not have are None."""

    features: np.ndarray  # (V, D) CLIP's, not normalised
    fid_features: np.ndarray  # (V, D), CLIP's again unless FID has a network of its own
    janus: bool
    janus_confidence: float  # mean probability of the answers, view by view, that decided it
    turning: float | None  # R of metrics.turning
    attributes: float | None  # share of the prompt's words seen
    sheet: Path


@dataclass(frozen=True)
class Instruments:
    """What looks at the runs; loaded when the first run needs it.

    n_views, resolution: of the pictures that CLIP and FID see. fid_file: a network of FID's own, else it takes CLIP's
    features. cache: one folder for all that is kept, else each run's own.
    """

    clip_files: ClipFiles
    fid_file: Path | None
    n_views: int
    resolution: int
    device: str  # auto: cuda where there is one
    cache: Path | None

    @property
    def names(self) -> dict[str, str]:
        """How results name the networks."""
        toybox = self.clip_files.toybox
        judge = f"toybox judge, {self.judge_identity}"
        zero = f"zero-shot view directions by {self.clip_files.title} (automatic estimate, not calibrated)"
        fid = f"image embeddings of the {self.clip_files.name}" if self.fid_file is None else ""
        return {
            "clip": self.clip_files.name,
            "fid": fid or f"Inception {self.fid_file and self.fid_file.name}, {self._fid_identity}",
            "janus": judge if toybox else zero,
        }

    @cached_property
    def _fid_identity(self) -> str:
        return "" if self.fid_file is None else file_identity(self.fid_file)

    @cached_property
    def judge_identity(self) -> str:
        return file_identity(JUDGE) if self.clip_files.toybox else ""

    @cached_property
    def place(self) -> str:
        """The device in torch's words."""
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    @cached_property
    def clip(self) -> Clip:
        return self.clip_files.load(self.place)

    @cached_property
    def inception(self) -> Inception | None:
        return None if self.fid_file is None else Inception(self.fid_file, self.place)

    @cached_property
    def judge(self) -> Any:
        from jointdreamer.toybox.judge import load_judge

        return load_judge()

    def fid_images(self, rgb: Tensor) -> np.ndarray:
        """FID's features of pictures (N, 3, R, R) in [0, 1]."""
        return self.inception.images(rgb) if self.inception is not None else self.clip.images(rgb)

    def key(self, *what: Any) -> str:
        """A digest of `what` and of the networks."""
        asked = [VERSION, self.clip_files.identity, self._fid_identity, self.n_views, self.resolution, *what]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]

    def run_files(self, run: Run) -> tuple[Path, Path]:
        """Where the numbers and the picture of a run are kept."""
        shown = {name: run.config[name] for name in ("field", "renderer", "background", "output")}
        key = self.key("run", run.digest, run.prompt, self.judge_identity, shown)
        folder = self.cache or run.folder / "evaluation"
        return folder / f"{key}.npz", folder / f"{key}.png"


def kept(file: Path) -> Arrays | None:
    """The arrays that were kept in `file`, or None: a file that is damaged is computed again."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def keep(file: Path, arrays: Mapping[str, Any]) -> None:
    """Keep arrays. Raises UserError where the folder cannot be written."""
    try:
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            plain: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
            np.savez(stream, **plain)
    except OSError as error:
        raise UserError(
            f"cannot write in {file.parent} ({error.strerror}), where measurements are kept: choose another place "
            "with cache_dir=..."
        ) from error


def measured(run: Run, instruments: Instruments) -> Measured | None:
    """What is known of a run from an earlier look; None if it has to be looked at."""
    file, sheet = instruments.run_files(run)
    stored = kept(file) if sheet.is_file() else None
    try:
        return None if stored is None else _measured(stored, sheet)
    except KeyError:
        return None


def _measured(stored: Mapping[str, np.ndarray], sheet: Path) -> Measured:
    def number(name: str) -> float | None:
        value = float(stored[name])
        return None if math.isnan(value) else value

    features = stored["features"]
    return Measured(
        features,
        stored.get("fid_features", features),
        bool(stored["janus"]),
        float(stored["janus_confidence"]),
        number("turning"),
        number("attributes"),
        sheet,
    )


def measure_all(runs: Sequence[Run], instruments: Instruments) -> list[Measured]:
    """Every run's measurement, in order; those that are missing are made, with a bar on stderr."""
    found = [measured(run, instruments) for run in runs]
    missing = [number for number, one in enumerate(found) if one is None]
    if missing:
        from tqdm import tqdm

        for number in tqdm(missing, desc="measuring", unit="run", file=sys.stderr):
            found[number] = measure(runs[number], instruments)
    return [one for one in found if one is not None]


def measure(run: Run, instruments: Instruments) -> Measured:
    """Render a run and let the networks look at it; kept for the next time.

    Raises UserError for a checkpoint that is damaged or of another version of the code.
    """
    from jointdreamer.images import grid, write_png

    scene, orbit = load(run, instruments.place)
    rgb = views(scene, orbit, instruments.n_views, instruments.resolution)
    found: dict[str, Any] = {"features": instruments.clip.images(rgb)}
    if instruments.fid_file is not None:
        found["fid_features"] = instruments.fid_images(rgb)
    if instruments.clip_files.toybox:
        found |= _judged(run, scene, instruments)
    else:
        found |= _directions(run, found["features"], instruments)
    file, sheet = instruments.run_files(run)
    keep(file, found)
    write_png(sheet, grid(rgb, min(SHEET_COLUMNS, len(rgb))))
    return _measured({name: np.asarray(value) for name, value in found.items()}, sheet)


def load(run: Run, device: str) -> tuple[tuple[Any, Any, Any], dict[str, float]]:
    """The run's renderer, field and background, and its evaluation camera. Raises UserError as `measure` does."""
    from jointdreamer.outputs import build_scene
    from jointdreamer.run import read_checkpoint_file

    try:
        checkpoint = read_checkpoint_file(run.checkpoint, int(run.result["steps"]))
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes can surface as nearly any error of zipfile, pickle or torch
        raise damaged(run.checkpoint, error) from error
    try:
        scene = build_scene(run.config, checkpoint)
        orbit = {key: float(run.config["output"][key]) for key in ("elevation_deg", "distance", "fovy_deg")}
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise UserError(
            f"{run.folder} was made by another version of this code ({why}): evaluate it with that version, or name "
            "runs that do not include it"
        ) from error
    renderer, field, background = (part.to(device) for part in scene)
    return (renderer, field, background), orbit


@torch.no_grad()
def views(scene: tuple[Any, Any, Any], orbit: Mapping[str, float], n_views: int, resolution: int) -> Tensor:
    """The object from all around: (V, 3, R, R) in [0, 1] on the CPU, azimuth k 360 / V degrees."""
    from jointdreamer.cameras import orbit_cameras
    from jointdreamer.outputs import RAYS

    renderer, field, background = scene
    cameras = orbit_cameras(n_views, resolution, **orbit).to(renderer.occupancy.device)
    return renderer(field, background, cameras, chunk=RAYS).rgb[0].clamp(0, 1).cpu()


@torch.no_grad()
def _judged(run: Run, scene: tuple[Any, Any, Any], instruments: Instruments) -> dict[str, float]:
    """The toybox judge's verdict, from the 16 views that it was calibrated with."""
    from jointdreamer.outputs import RAYS
    from jointdreamer.toybox.judge import judging_cameras, verdict
    from jointdreamer.toybox.world import parse_caption

    renderer, field, background = scene
    cameras = judging_cameras().to(renderer.occupancy.device)
    rgb = renderer(field, background, cameras, chunk=RAYS).rgb[0].clamp(0, 1).cpu()
    said = verdict(instruments.judge, rgb, parse_caption(run.prompt))
    sure = instruments.judge(rgb)["face"].softmax(1).amax(1).mean()
    return {
        "janus": said.janus,
        "janus_confidence": float(sure),
        "turning": said.turning,
        "attributes": said.attributes,
    }


def _directions(run: Run, features: np.ndarray, instruments: Instruments) -> dict[str, float]:
    """Janus by zero-shot directions: where CLIP says "front view" rather than side or back, a face is taken as seen."""
    told = zero_shot(features, instruments.clip.texts([f"{run.prompt}, {word} view" for word in DIRECTIONS]))
    front = torch.from_numpy(told.argmax(1) == DIRECTIONS.index("front"))
    return {
        "janus": is_janus(front),
        "janus_confidence": float(told.max(1).mean()),
        "turning": math.nan,
        "attributes": math.nan,
    }


def caption_features(captions: Sequence[str], instruments: Instruments, folder: Path) -> np.ndarray:
    """CLIP's (C, D) of captions, kept in `folder`."""
    file = folder / f"captions-{instruments.key('captions', list(captions))}.npz"
    return once(file, lambda: instruments.clip.texts(list(captions)))


def once(file: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The features kept in `file`; computed, and kept, where there are none."""
    stored = kept(file)
    if stored is None or "features" not in stored:
        stored = {"features": compute()}
        keep(file, stored)
    return stored["features"]
