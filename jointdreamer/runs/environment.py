"""environment.json: what a run ran on, its commit, versions and machine, and the checksums of its weights."""

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jointdreamer.files import sha256, to_json, write_text
from jointdreamer.reading import ABSENT, NOT_NOW, Unreadable, read_json

log = logging.getLogger(__name__)

PACKAGES = ("accelerate", "diffusers", "hydra-core", "numba", "numpy", "safetensors", "tokenizers", "torch")
PACKAGES += ("transformers", "trimesh", "wandb")


def environment() -> dict[str, Any]:
    """The commit, the versions and the machine, as plain values."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    commit, dirty = _commit(Path(__file__).resolve())
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": versions,
    }


def _commit(file: Path) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it) of the repository that tracks `file`; (None, None) without one."""
    # a hook's GIT_DIR would point at another repository
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(file.parent), *arguments]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=20, env=clean, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", file.name) is None:  # installed below some other repository
        return None, None
    changes = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD"), None if changes is None else bool(changes)


def checksums(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Path and sha256 of every weights file (.safetensors, .pt, ...) among `paths` or in the folders of them."""
    files = [f for path in paths for f in ([path] if path.is_file() else sorted(path.rglob("*.*")))]
    weights = [f for f in dict.fromkeys(files) if f.suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin")]
    return [{"path": str(f), "sha256": sha256(f)} for f in weights]


def write_environment(file: Path, weights: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> None:
    """Write `environment()`, `weights` (a dict of path, sha256, ... for each) and `more` to `file`.

    Where it says something else, that is kept under `before`.
    """
    record = {**environment(), "weights": [dict(weight) for weight in weights], **more}
    before: list[Any] = []
    try:
        old = read_json(file)
        if isinstance(old, dict):
            kept = old.pop("before", [])
            before = [*kept] if isinstance(kept, list) else []
            if old != json.loads(to_json(record)):
                before.append(old)
    except Unreadable as error:
        if error.answer == NOT_NOW:
            log.warning("%s: it was left as it is, without what this command runs on", error)
            return
        if error.answer != ABSENT:
            log.warning("%s: it is written anew", error)
    write_text(file, to_json({**record, **({"before": before} if before else {})}, indent=2) + "\n")


def weights_before(file: Path) -> list[dict[str, str]]:
    """The weights of which an `environment.json` says that a run was made with them: {"path", "sha256"} each."""
    try:
        record = read_json(file)
    except Unreadable:
        return []
    listed = record.get("weights") if isinstance(record, dict) else None
    rows = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return [one for one in rows if isinstance(one.get("path"), str) and isinstance(one.get("sha256"), str)]
