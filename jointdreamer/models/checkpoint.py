"""Checkpoints of the original codes (.pt, .pth, .ckpt, .bin): read without running what is in them, and recognised.

Such a file is a pickle. It is read with `weights_only=True`, once: its tensors are then kept as safetensors in our
cache, which load without a pickle and without copying, for as long as the original stays as it is.
"""

import hashlib
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.files import atomic_path

log = logging.getLogger(__name__)

PICKLES = (".pt", ".pth", ".ckpt", ".bin")
# Named by checkpoints that trainers wrote; as an empty class each is harmless, and nothing of it is kept.
INERT = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)

# What a checkpoint holds, by keys that only it has (docs/conventions.md): the first rule that fits
LAYOUTS = (
    ("a multi-view model (MVDream's layout)", r"(model\.diffusion_model\.)?camera_embed\.0\.weight"),
    ("a novel-view model (Zero-1-to-3)", r"cc_projection\.weight"),
    ("a novel-view model (Wonder3D)", r".*\.attn_joint_(mid|twice)\..*"),
    ("a text-to-image model (Stable Diffusion's original layout)", r"model\.diffusion_model\..*"),
    ("a classifier backbone (DINO's original layout)", r"(.*\.)?blocks\.0\.attn\.qkv\.weight"),
    ("a classifier backbone (DINO)", r"(vit\.)?encoder\.layer\.0\.attention\.attention\.query\.weight"),
    ("a CLIP", r"visual_projection\.weight"),
    ("a text encoder", r"(text_model\.)?embeddings\.token_embedding\.weight"),
    ("a multi-view model's UNet (diffusers' layout)", r"class_embedding\.linear_1\.weight"),
    ("a text-to-image model's UNet (diffusers' layout)", r"time_embedding\.linear_1\.weight"),
    ("an autoencoder (diffusers' layout)", r"post_quant_conv\.weight"),
    ("a small decoder (TAESD)", r"decoder\.layers\.0\.weight"),
)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name; a `state_dict` around them is taken off, whatever is no tensor is left out.

    Raises UserError, one line, if the file is damaged, no checkpoint, or wants to run code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    copy = converted(path)
    if is_current(copy, path):
        return _read_safetensors(copy)
    state = _read_pickle(path)
    _keep(state, copy, path)
    return state


def cache_folder() -> Path:
    """Where converted checkpoints and files from plain addresses are kept: JOINTDREAMER_CACHE, or beside the hub's."""
    from huggingface_hub import constants

    own = os.environ.get("JOINTDREAMER_CACHE")
    return Path(own).expanduser() if own else Path(constants.HF_HUB_CACHE).parent / "jointdreamer"


def converted(path: Path) -> Path:
    """Where the safetensors of a pickled checkpoint are kept, or would be."""
    where = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    return cache_folder() / "converted" / f"{path.stem}-{where}.safetensors"


def is_current(copy: Path, path: Path) -> bool:
    """Whether `copy` is whole, and of the file as it is now."""
    from safetensors import safe_open

    try:
        with safe_open(copy, "pt") as file:
            return file.metadata() == _mark(path)
    except Exception:  # missing, damaged, or unreadable: it will be made again
        return False


def recognise(keys: Iterable[str]) -> str | None:
    """What a checkpoint with these keys holds, in words; None if we do not know it."""
    keys = list(keys)
    return next((what for what, rule in LAYOUTS if any(re.fullmatch(rule, key) for key in keys)), None)


def stored_keys(folder: Path) -> list[str]:
    """Names of the tensors in a folder's safetensors files; files that cannot be read are passed over."""
    from safetensors import safe_open

    keys: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as stored:
                keys += stored.keys()
        except Exception:
            continue
    return keys


def differences(wanted: Iterable[str], came: Iterable[str], seen: Iterable[str] | None = None) -> str:
    """In words: the first key that is missing, the first that is unexpected, and what the checkpoint looks like.

    seen: the checkpoint's own keys, where `came` are renamed ones.
    """
    wanted, came = dict.fromkeys(wanted), dict.fromkeys(came)
    missing = next((key for key in wanted if key not in came), "(none)")
    unexpected = next((key for key in came if key not in wanted), "(none)")
    what = recognise(came if seen is None else seen)
    looks = f"; it looks like {what}" if what else ""
    return f"first missing key {missing}, first unexpected key {unexpected}{looks}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # whatever a damaged file provokes
        raise UserError(f"cannot read the checkpoint {path}: {first_line(error)}; download it again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with _inert_names():
            # mmap: of five gigabytes a third may be for nobody
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a damaged file provokes
        # torch's own advice, to load without weights_only, would run it
        if code := re.search(r"GLOBAL (\S+)|unrecognized function (\S+)|class (\S+)", str(error)):
            name = next(filter(None, code.groups())).strip("'`.,")
            raise UserError(
                f"cannot read the checkpoint {path}: it wants to run code when it is opened ({name}), which is "
                "refused; take a file of tensors only, best a .safetensors"
            ) from error
        why = "it is damaged or no checkpoint" if "weights_only" in str(error) else first_line(error)
        raise UserError(f"cannot read the checkpoint {path}: {why}; download it again") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)} if state else {}
    if not tensors:
        raise UserError(f"cannot read the checkpoint {path}: there are no named tensors in it; name another file")
    return tensors


def _inert_names() -> Any:
    """A context in which the names of INERT stand for empty classes."""
    from contextlib import nullcontext

    if not hasattr(torch.serialization, "safe_globals"):  # torch 2.4
        return nullcontext()
    return torch.serialization.safe_globals([(type("Inert", (), {}), name) for name in INERT])  # pyright: ignore


def _mark(path: Path) -> dict[str, str]:
    """What the copy remembers of its original."""
    about = path.stat()
    return {"source": str(path.resolve()), "size": str(about.st_size), "mtime_ns": str(about.st_mtime_ns)}


def _keep(state: dict[str, Tensor], copy: Path, path: Path) -> None:
    """Write the tensors of `path` to `copy`, if there is room: without, the pickle is read again the next time."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    apart = {}
    for key, value in state.items():  # safetensors knows no tensors that share their memory
        where = value.untyped_storage().data_ptr()
        apart[key] = value.clone(memory_format=torch.contiguous_format) if where in seen else value.contiguous()
        seen.add(where)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        size = sum(value.numel() * value.element_size() for value in apart.values())
        if shutil.disk_usage(copy.parent).free < size + 2**30:
            log.info("no room for a safetensors copy of %s in %s", path, copy.parent)
            return
        with atomic_path(copy) as temporary:
            save_file(apart, temporary, metadata=_mark(path))
    except (OSError, UserError) as error:
        log.info("no safetensors copy of %s was kept: %s", path, error)


def first_line(error: BaseException) -> str:
    """An error in one line: the first of its text, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
