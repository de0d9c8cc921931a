"""Which files of a folder or repository hold a model's weights, and whether they are whole."""

import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jointdreamer.errors import UserError
from jointdreamer.reading import Unreadable, read_json
from jointdreamer.weights.checkpoint import first_line

UNWANTED = ("*.bin", "*.ckpt", "*.msgpack", "*.h5", "*.onnx*", "*nonema*", "*non_ema*")  # second copies
UNWANTED += ("*.fp16.*", "*.fp16-*", "*.8bit*")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# What both libraries call their pickles, one or several of them; .fp16 where they are in half precision
PICKLED = r"(?:(?:diffusion_)?pytorch_)?model(\.fp16)?(?:[-.]\d+-of-\d+)?(?:\.fp16)?\.bin"

NETWORKS = ("unet/config.json", "transformer/config.json")
DISTILLED = ("guidance_embeds", "time_cond_proj_dim")  # how a network is told its guidance: FLUX's, LCM's


def wanted_files(files: Sequence[str], needs: Sequence[str]) -> list[str]:
    """Which of a repository's files make the folder that has `needs`: whole subfolders, without second copies.

    A subfolder that would be left without weights keeps its half-precision ones, or else its pickle.
    """
    folders = {str(Path(name).parent) for name in needs} or {str(Path(name).parent) for name in files}
    chosen = []
    for folder in sorted(folders):
        here = [name for name in files if str(Path(name).parent) == folder]
        keep = [name for name in here if not any(fnmatch.fnmatch(name, pattern) for pattern in UNWANTED)]
        if not any(name.endswith(".safetensors") for name in keep):
            half = [name for name in here if ".fp16" in name and name.endswith((".safetensors", "index.fp16.json"))]
            keep += half or [name for name in here if Path(name).name in pickles([Path(name).name for name in here])]
        chosen += keep
    return chosen


def pickles(names: Sequence[str]) -> list[str]:
    """Those of a folder's file names that are a model's pickles; of two precisions the full one."""
    found = [(name, match) for name in sorted(names) if (match := re.fullmatch(PICKLED, name))]
    full = [name for name, _ in found if ".fp16" not in name]
    return full or [name for name, _ in found]


def weight_files(where: Path) -> list[Path]:
    """The files of a part's tensors: safetensors, in full precision where there is a choice, or else pickles."""
    names = sorted(path.name for path in where.glob("*.safetensors"))
    full = [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in UNWANTED)]
    return [where / name for name in full or names or pickles([path.name for path in where.glob("*.bin")])]


def lacking(folder: Path, needs: Sequence[str]) -> list[str]:
    """The parts of a folder (those whose config.json it needs) that have no weights beside their config."""
    parts = [folder / Path(name).parent for name in needs if Path(name).name == "config.json"]
    return [str(part) for part in parts if not any(file.suffix in WEIGHTS for file in part.glob("*.*"))]


class Distilled(UserError):
    """A network that is distilled for one guidance: no other source of a list stands in for it."""


def refuse_distilled(config: Mapping[str, Any], where: Any) -> None:
    """Raise Distilled, one line, for a network that is told its guidance (FLUX, latent consistency models): it was
    distilled into one prediction, which has no direction to guide."""
    if mark := next((key for key in DISTILLED if config.get(key)), None):
        raise Distilled(
            f"{where}: {mark}: this model is distilled for one guidance, so it has no prediction without the text to "
            "guide from, which score distillation needs: take a base model, models=sd21, models=sdxl or models=sd35"
        )


def refuse_distilled_folder(folder: Path, needs: Sequence[str] = NETWORKS) -> None:
    """`refuse_distilled` of the network in a diffusers folder, if a network is among what is needed of it.

    What has none, or none that can be read, passes.
    """
    for path in (folder / name for name in NETWORKS if not {*NETWORKS}.isdisjoint(needs)):
        try:
            config = read_json(path) if path.exists() else None
        except Unreadable:  # whoever loads it says what is wrong
            continue
        if isinstance(config, dict):
            refuse_distilled(config, path)


def damaged(path: Path) -> str | None:
    """What is wrong with the files of some weights, in words: unreadable or cut JSON or safetensors; None if nothing.

    Reads what describes the tensors, not the tensors: it takes milliseconds.
    """
    from safetensors import safe_open

    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.*") if file.is_file())
    if not any(file.suffix in WEIGHTS for file in files):
        return f"no weights in {path}"
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as stored:
                    stored.keys()
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.stat().st_size == 0:
                return f"{file} is empty"
        except Exception as error:  # whatever a damaged file provokes
            return f"{file} is damaged ({first_line(error)})"
    return None
