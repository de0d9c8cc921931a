"""The report: a folder of plain files that a browser opens from the disk, without a server and without a network.

A page on file:// may not fetch its neighbours, but it may load them as scripts, pictures and videos. So the data is a
script (`data.js`), and each object a script of its own (`models/*.js`: a gzipped GLB in base64) that the page asks for
when the object comes into view. The pages' Content-Security-Policy allows nothing from outside the folder and no script
inside the page, so that whatever a prompt contains stays text.
"""

import base64
import gzip
import hashlib
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from jointdreamer.errors import UserError, one_line
from jointdreamer.evaluation.report.glb import thin_glb
from jointdreamer.files import atomic_path, to_json, write_text
from jointdreamer.images import read_picture
from jointdreamer.reading import DAMAGED, MIB, Unreadable, read_bytes

HERE = Path(__file__).parent
PAGES = ("style.css", "shared.js", "report.js", "study.js", "study.html", "index.html")
VIEWER = HERE / "vendor" / "model-viewer"
PATHS = ("sheet", "mesh", "turntable")  # of a run: what the page needs its own copy of
LARGEST = 1024 * MIB  # of a file that goes into a report
MAX_SIDE = 1600  # pixels of a sheet of views
FORMAT = "2"  # of the made files: part of their names, so that another thinning does not take the old ones
MADE = re.compile(r"[0-9a-f]{24}\.[a-z0-9]{1,5}")

# what is measured: name -> (heading, unit, whether more is better; None: neither). Others are shown as they come.
METRICS: dict[str, tuple[str, str, bool | None]] = {
    "clip_score": ("CLIP Score", "", True),
    "r_precision": ("R-Precision", "%", True),
    "r_at_5": ("R@5", "%", True),
    "fid": ("FID", "", False),
    "janus": ("Janus rate", "%", False),
    "no_front": ("No front", "%", False),
    "resultant_length": ("Turns with the camera (R)", "", True),
    "attributes": ("Words seen", "", True),
    "consistency": ("Consistency", "", None),
    "roughness": ("Roughness", "degrees", None),
    "minutes": ("Minutes", "min", False),
    "seconds_per_step": ("Seconds a step", "s", False),
    "peak_memory_gb": ("Peak memory", "GB", False),
}


def write_report(evaluation: Mapping[str, Any], folder: str | Path, base: str | Path | None = None) -> Path:
    """Write the report of `evaluation` (the content of evaluation.json) into `folder`; returns its index.html.

    base: what the runs' relative paths start from, the folder of evaluation.json: that above `folder` unless given.
    A picture, mesh or video that is gone, or cannot be read, is named on stderr and shown as missing. Models and
    pictures made before are taken over if their source is the same, others are removed, so that a second call costs
    little.

    Raises: UserError for an evaluation of another version, a full disk.
    """
    folder = Path(folder)
    base = folder.parent if base is None else Path(base)
    if evaluation.get("version") != 1 or not isinstance(evaluation.get("runs"), list):
        raise UserError(
            f"evaluation: wanted version 1 with a list of runs, got version {evaluation.get('version')!r}; "
            "make it anew with evaluate.py"
        )
    for name in ("models", "media"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    runs = [with_copies(run, base, folder) for run in evaluation["runs"]]
    kept = {run["files"].get(part) for run in runs for part in PATHS}
    for name in ("models", "media"):
        for file in (folder / name).iterdir():
            if MADE.fullmatch(file.name) and f"{name}/{file.name}" not in kept:
                file.unlink()
    data = {**evaluation, "runs": runs, "metrics": describe_metrics(evaluation)}
    write_text(folder / "data.js", f"window.REPORT = {script_json(data)};\n")
    copy(VIEWER / "model-viewer-umd.min.js", folder / "model-viewer.min.js")
    copy(VIEWER / "LICENSE", folder / "model-viewer.LICENSE.txt")
    for name in PAGES:  # index.html last: who can open it finds everything it needs
        copy(HERE / "page" / name, folder / name)
    return folder / "index.html"


def script_json(value: Any) -> str:
    """JSON that stays one value wherever it stands in a page: ASCII without <, > or & or a control character."""
    return to_json(value).translate(str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\x7f"}))


def describe_metrics(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The measures that some group of the evaluation has, in the order of METRICS, then those unknown here."""
    found = {name for group in evaluation.get("groups", []) for name, value in group.items() if is_measure(name, value)}
    names = [name for name in METRICS if name in found] + sorted(found - set(METRICS))
    described = []
    for name in names:
        label, unit, more_is_better = METRICS.get(name, (name.replace("_", " "), "", None))
        described.append({"name": name, "label": label, "unit": unit, "more_is_better": more_is_better})
    return described


def is_measure(name: str, value: Any) -> bool:
    return (name == "fid" and value is not None) or (isinstance(value, Mapping) and value.get("mean") is not None)


def with_copies(run: Mapping[str, Any], base: Path, folder: Path) -> dict[str, Any]:
    """The run without its paths, and `files`: where the report has them (or lacks them, in `missing`)."""
    files: dict[str, str] = {}
    missing: list[str] = []
    make = {"sheet": put_picture, "mesh": put_model, "turntable": put_video}
    for part in PATHS:
        if not run.get(part):
            continue
        try:
            files[part] = make[part](base / str(run[part]), folder)
        except Unreadable as error:
            print(one_line(f"left out: {error}"), file=sys.stderr)
            missing.append(part)
    rest = {key: value for key, value in run.items() if key not in PATHS}
    return {**rest, "files": files, "missing": missing}


def named(data: bytes, what: str, suffix: str) -> str:
    """A file name that says what it was made from, and neither the method nor the prompt (a rater may see it)."""
    return hashlib.sha256(f"{what} {FORMAT} ".encode() + data).hexdigest()[:24] + suffix


def put_model(source: Path, folder: Path) -> str:
    """models/NAME.js: hands the gzipped GLB to the page. The object looks the same, see `thin_glb`."""
    data = read_bytes(source, LARGEST)
    name = named(data, "model", ".js")
    target = folder / "models" / name
    if not target.exists():
        try:
            small = gzip.compress(thin_glb(data), 6, mtime=0)
        except UserError as error:
            raise Unreadable(source, DAMAGED, error) from error
        write_text(target, f'reportModel("models/{name}", "{base64.b64encode(small).decode()}");\n')
    return f"models/{name}"


def put_picture(source: Path, folder: Path) -> str:
    """media/NAME.jpg, no wider or higher than MAX_SIDE."""
    name = named(read_bytes(source, LARGEST), "picture", ".jpg")
    target = folder / "media" / name
    if not target.exists():
        picture = Image.fromarray(read_picture(source)[..., :3])
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        with atomic_path(target) as temporary:
            picture.save(temporary, quality=85)
    return f"media/{name}"


def put_video(source: Path, folder: Path) -> str:
    """media/NAME.mp4 (or .webm, .gif): a copy."""
    suffix = source.suffix.lower()
    if suffix not in (".mp4", ".webm", ".gif"):
        raise Unreadable(
            source, DAMAGED, f"wanted what browsers play, .mp4, .webm or .gif, got {suffix or 'no suffix'}"
        )
    name = named(read_bytes(source, LARGEST), "video", suffix)
    if not (folder / "media" / name).exists():
        copy(source, folder / "media" / name)
    return f"media/{name}"


def copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
