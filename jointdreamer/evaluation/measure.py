"""Looking at runs: their views rendered from the checkpoint, and what the networks make of them, each computed once.

What was measured is kept in the run folder, `evaluation/KEY.npz` with the views beside it as `KEY.png`; the key is a
digest of the checkpoint's content, of the networks' files, of what was asked, and of VERSION. When nothing is missing,
no network, no renderer and none of their libraries is loaded.
"""

import hashlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.evaluation.networks import TOYBOX, Clip, ClipFiles, Inception
from jointdreamer.evaluation.runs import Run, file_identity
from jointdreamer.files import atomic_path
from jointdreamer.metrics import has_front, is_janus, roughness, zero_shot
from jointdreamer.reading import DAMAGED, NOT_NOW, Unreadable, read_arrays
from jointdreamer.scenes.base import Scene

VERSION = 3  # of what is measured: add one whenever the same views would give other numbers
JUDGE = TOYBOX / "judge" / "model.safetensors"
DIRECTIONS = ("front", "side", "back")
LARGEST = 1e15  # of a feature: its square is still a number
SHEET_COLUMNS = 10
SURFACE_VIEWS, SURFACE_PIXELS = 16, 96

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """One run, looked at. Numbers that this kind of run does not have are None."""

    features: np.ndarray  # (V, D) CLIP's, not normalised
    fid_features: np.ndarray  # (V, D), CLIP's again unless FID has a network of its own
    janus: bool
    janus_confidence: float  # mean probability of the answers, view by view, that decided it
    front: bool  # whether any of it is a front, without which there is no Janus to see
    resultant_length: float | None  # R of metrics.resultant_length
    attributes: float | None  # share of the prompt's words seen
    roughness: float | None  # of metrics.roughness, degrees
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

    def load(self) -> None:
        """Load the networks. Raises UserError for one that is damaged."""
        _ = self.clip, self.inception
        if self.clip_files.toybox:
            _ = self.judge

    def fid_images(self, rgb: Tensor) -> np.ndarray:
        """FID's features of pictures (N, 3, R, R) in [0, 1]."""
        return self.inception.images(rgb) if self.inception is not None else self.clip.images(rgb)

    def key(self, *what: Any) -> str:
        """A digest of `what` and of the networks."""
        asked = [VERSION, self.clip_files.identity, self._fid_identity, self.n_views, self.resolution, *what]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]

    def run_files(self, run: Run) -> tuple[Path, Path]:
        """Where the numbers and the picture of a run are kept."""
        groups = ("scene", "field", "renderer", "background", "output")
        shown = {name: run.config[name] for name in groups if name in run.config}
        key = self.key("run", run.digest, run.prompt, self.judge_identity, shown)
        folder = self.cache or run.folder / "evaluation"
        return folder / f"{key}.npz", folder / f"{key}.png"


def kept(file: Path) -> Arrays | None:
    """The arrays that were kept in `file`, or None: what cannot be read is computed again."""
    try:
        return read_arrays(file)
    except Unreadable:
        return None


def are_features(array: np.ndarray | None, rows: int | None = None, width: int | None = None) -> bool:
    """Whether an array is features as a network gives them: finite, a row a picture; of any number where None."""
    if array is None or array.ndim != 2 or array.dtype.kind != "f" or len(array) != (rows or len(array)):
        return False
    return array.shape[1] == (width or array.shape[1]) and bool((np.abs(array) < LARGEST).all())  # NaN is not


def keep(file: Path, arrays: Mapping[str, Any]) -> None:
    """Keep arrays. Raises UserError where the folder cannot be written."""
    with _writing(file), atomic_path(file) as temporary, temporary.open("wb") as stream:
        plain: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
        np.savez(stream, **plain)


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {file.name} in {file.parent} ({error.strerror}), where measurements are kept: choose "
            "another place with cache_dir=..."
        ) from error


def measured(run: Run, instruments: Instruments, fid_width: int | None = None) -> Measured | None:
    """What is known of a run from an earlier look; None if it has to be looked at.

    fid_width: how many numbers FID's features have, where that is known.
    """
    file, sheet = instruments.run_files(run)
    stored = kept(file) if sheet.is_file() else None
    return None if stored is None else _measured(stored, sheet, instruments, fid_width)


def _measured(
    stored: Mapping[str, np.ndarray], sheet: Path, instruments: Instruments, fid_width: int | None
) -> Measured | None:
    """None for arrays that are not what `measure` finds."""
    views, width = instruments.n_views, instruments.clip_files.width
    features = stored.get("features")
    own_fid = instruments.fid_file is not None
    fid_features = stored.get("fid_features") if own_fid else features
    if not (are_features(features, views, width) and are_features(fid_features, views, fid_width)):
        return None
    number: dict[str, float | None] = {}
    for name in ("janus", "janus_confidence", "front", "resultant_length", "attributes", "roughness"):
        value = stored.get(name, np.asarray(math.nan))
        if value.shape != () or not (np.isnan(value) or 0 <= value <= (180 if name == "roughness" else 1)):
            return None
        number[name] = None if np.isnan(value) else float(value)
    janus, sure, front, resultant_length, attributes, rough = number.values()
    if front is None and resultant_length is not None:  # kept by a version that did not ask
        front = has_front(resultant_length)
    if features is None or fid_features is None or janus is None or sure is None or front is None:
        return None
    return Measured(features, fid_features, bool(janus), sure, bool(front), resultant_length, attributes, rough, sheet)


def measure_all(
    runs: Sequence[Run], instruments: Instruments, fid_width: int | None = None
) -> list[Measured | UserError]:
    """Every run's measurement, in order, or why it has none; what is missing is made, with a bar on stderr."""
    found: list[Measured | UserError | None] = [measured(run, instruments, fid_width) for run in runs]
    missing = [number for number, one in enumerate(found) if one is None]
    if missing:
        from tqdm import tqdm

        instruments.load()  # a network that is damaged is no run's fault
        for number in tqdm(missing, desc="measuring", unit="run", file=sys.stderr):
            try:
                found[number] = measure(runs[number], instruments)
            except UserError as error:
                found[number] = error
    return [one for one in found if one is not None]


def measure(run: Run, instruments: Instruments) -> Measured:
    """Render a run and let the networks look at it; kept for the next time.

    Raises UserError for a checkpoint that cannot be read, is of another version of the code, or shows no picture.
    """
    from jointdreamer.images import grid, write_png
    from jointdreamer.runs.pictures import IMPOSSIBLE, of_another_version

    scene, orbit = load(run, instruments.place)
    try:
        rgb = views(scene, orbit, instruments.n_views, instruments.resolution)
        judged_rgb = judging_views(scene) if instruments.clip_files.toybox else None
        rough = surface_roughness(scene, orbit)
    except IMPOSSIBLE as error:
        raise of_another_version(run.folder, error) from error
    found: dict[str, Any] = {"features": instruments.clip.images(rgb), "roughness": rough}
    if instruments.fid_file is not None:
        found["fid_features"] = instruments.fid_images(rgb)
    if judged_rgb is not None:
        found |= _judged(run, judged_rgb, instruments)
    else:
        found |= _directions(run, found["features"], instruments)
    file, sheet = instruments.run_files(run)
    arrays = {name: np.asarray(value) for name, value in found.items()}
    result = _measured(arrays, sheet, instruments, None)
    if result is None:
        raise UserError(f"{run.folder}: its views are no pictures: the features of them are not finite")
    keep(file, arrays)
    with _writing(sheet):
        write_png(sheet, grid(rgb, min(SHEET_COLUMNS, len(rgb))))
    return result


def load(run: Run, device: str) -> tuple[Scene, dict[str, float]]:
    """The run's scene and its evaluation camera. Raises UserError as `measure` does."""
    from jointdreamer.runs.checkpoint import read_checkpoint_file
    from jointdreamer.runs.pictures import IMPOSSIBLE, of_another_version, scene_of

    try:
        checkpoint = read_checkpoint_file(run.checkpoint, run.result["steps"])
    except (PermissionError, MemoryError) as error:
        raise Unreadable(run.checkpoint, NOT_NOW, error or "not enough memory") from error
    except Exception as error:  # damaged bytes can surface as nearly any error of zipfile, pickle or torch
        raise Unreadable(run.checkpoint, DAMAGED, error) from error
    try:
        with torch.device("meta"), warnings.catch_warnings():  # sizes that are not the checkpoint's cost no memory
            warnings.simplefilter("ignore")
            scene_of(run.config, checkpoint)
        scene = scene_of(run.config, checkpoint)
    except IMPOSSIBLE as error:
        raise of_another_version(run.folder, error) from error
    orbit = {key: float(run.config["output"][key]) for key in ("elevation_deg", "distance", "fovy_deg")}
    return scene.to(device), orbit


@torch.no_grad()
def views(scene: Scene, orbit: Mapping[str, float], n_views: int, resolution: int) -> Tensor:
    """The object from all around: (V, 3, R, R) in [0, 1] on the CPU, azimuth k 360 / V degrees."""
    from jointdreamer.cameras import orbit_cameras
    from jointdreamer.runs.pictures import RAYS

    cameras = orbit_cameras(n_views, resolution, **orbit).to(next(scene.parameters()).device)
    return scene.render(cameras, chunk=RAYS, normals=False).rgb[0].clamp(0, 1).cpu()


@torch.no_grad()
def surface_roughness(scene: Scene, orbit: Mapping[str, float]) -> float:
    """`metrics.roughness` of SURFACE_VIEWS views of SURFACE_PIXELS pixels; NaN for a scene without normals."""
    from jointdreamer.cameras import orbit_cameras
    from jointdreamer.runs.pictures import RAYS

    cameras = orbit_cameras(SURFACE_VIEWS, SURFACE_PIXELS, **orbit).to(next(scene.parameters()).device)
    render = scene.render(cameras, chunk=RAYS)
    return math.nan if render.normal is None else roughness(render.normal[0].cpu(), render.opacity[0].cpu())


@torch.no_grad()
def judging_views(scene: Scene) -> Tensor:
    """The 16 views (16, 3, R, R) that the toybox's judge was calibrated with."""
    from jointdreamer.runs.pictures import RAYS
    from jointdreamer.toybox.judge import judging_cameras

    cameras = judging_cameras().to(next(scene.parameters()).device)
    return scene.render(cameras, chunk=RAYS, normals=False).rgb[0].clamp(0, 1).cpu()


@torch.no_grad()
def _judged(run: Run, rgb: Tensor, instruments: Instruments) -> dict[str, float]:
    """The toybox judge's verdict of its 16 views."""
    from jointdreamer.toybox.judge import verdict
    from jointdreamer.toybox.world import parse_caption

    said = verdict(instruments.judge, rgb, parse_caption(run.prompt))
    sure = instruments.judge(rgb)["face"].softmax(1).amax(1).mean()
    return {
        "janus": said.janus,
        "janus_confidence": float(sure),
        "front": has_front(said.resultant_length),
        "resultant_length": said.resultant_length,
        "attributes": said.attributes,
    }


def _directions(run: Run, features: np.ndarray, instruments: Instruments) -> dict[str, float]:
    """Janus by zero-shot directions: where CLIP says "front view" rather than side or back, a face is taken as seen."""
    told = zero_shot(features, instruments.clip.texts([f"{run.prompt}, {word} view" for word in DIRECTIONS]))
    front = torch.from_numpy(told.argmax(1) == DIRECTIONS.index("front"))
    return {
        "janus": is_janus(front),
        "janus_confidence": float(told.max(1).mean()),
        "front": bool(front.any()),
        "resultant_length": math.nan,
        "attributes": math.nan,
    }


def caption_features(captions: Sequence[str], instruments: Instruments, folder: Path) -> np.ndarray:
    """CLIP's (C, D) of captions, kept in `folder`."""
    file = folder / f"captions-{instruments.key('captions', list(captions))}.npz"
    return once(file, lambda: instruments.clip.texts(list(captions)), len(captions), instruments.clip_files.width)


def once(
    file: Path, compute: Callable[[], np.ndarray], rows: int | None = None, width: int | None = None
) -> np.ndarray:
    """The features kept in `file`; computed, and kept, where there are none, or none of this shape."""
    features = (kept(file) or {}).get("features")
    if features is None or not are_features(features, rows, width):
        features = compute()
        keep(file, {"features": features})
    return features
