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

import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.files import atomic_path
from jointdreamer.reading import NOT_NOW, answer_of

log = logging.getLogger(__name__)

PICKLES = (".pt", ".pth", ".ckpt", ".bin")
# Named by checkpoints that trainers wrote; as an empty class each is harmless, and nothing of it is kept.
INERT = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "argparse.Namespace")
# Under what trainers keep a network's tensors; of several the first is what the authors use: DINO's teacher
WRAPPERS = ("state_dict", "teacher", "model_state_dict", "model", "module")

SOURCE = "name it as models.{}.source"
SINGLE_FILE = (
    'convert it once, where there is a network: python -c "from diffusers import StableDiffusionPipeline as P; '
    "P.from_single_file('FILE').save_pretrained('FOLDER')\", then models.text_to_image.source=FOLDER"
)
FOREIGN = "nothing here reads it: take a Stable Diffusion 1 or 2 base"
SDXL = "models=sdxl reads it as diffusers' folder, models.text_to_image.source=FOLDER"
SD3 = "models=sd35 reads Stable Diffusion 3.5 as diffusers' folder, models.text_to_image.source=FOLDER"
FLUX = "it is distilled for one guidance and has no prediction without the text to guide from: take models=sd35"
PART = "it is one part of a folder: put it there, and name the folder"

# What a checkpoint holds, by keys that only it has (docs/conventions.md), and where it belongs: the first that fits
LAYOUTS = (
    ("a LoRA", r"lora_(unet|te\d?)_.*|.*\.lora(_[AB]|_down|_up|\.down|\.up)(\..*)?\.weight", "merge it into its base"),
    ("a ControlNet", r"control_model\..*|controlnet_cond_embedding\..*", FOREIGN),
    ("a textual inversion", r"string_to_param.*|emb_params", FOREIGN),
    (
        "an image-conditioned multi-view model (ImageDream)",
        r".*image_embed\..*|.*\.attn2\.to_k_ip\.weight",
        "imagedream",
    ),
    ("a multi-view model (MVDream's layout)", r"(model\.diffusion_model\.)?camera_embed\.0\.weight", "multi_view"),
    ("a novel-view model (Zero-1-to-3)", r"cc_projection\.weight", "novel_view"),
    ("a novel-view model (Wonder3D)", r".*\.attn_joint_(mid|twice)\..*", "wonder3d"),
    ("a Stable Diffusion XL model", r"conditioner\.embedders\..*|add_embedding\.linear_1\.weight", SDXL),
    (
        "a flow-matching transformer (FLUX)",
        r"(model\.diffusion_model\.)?(double|single_transformer)_blocks\.0\..*",
        FLUX,
    ),
    (
        "a flow-matching transformer (Stable Diffusion 3)",
        r"(model\.diffusion_model\.)?(joint|transformer)_blocks\.0\..*",
        SD3,
    ),
    ("a text-to-image model (Stable Diffusion's original layout)", r"model\.diffusion_model\..*", SINGLE_FILE),
    ("a pair classifier", r"key_value\.weight", "name its folder, models.classifier.source=FOLDER"),
    ("a DINOv2", r"(.*\.)?blocks\.(0\.)?0\.ls1\.gamma|(.*\.)?layer\.0\.layer_scale1\..*", "take DINO ViT-S/16"),
    ("a classifier backbone (DINO's original layout)", r"(.*\.)?blocks\.0\.attn\.qkv\.weight", "classifier_backbone"),
    (
        "a classifier backbone (DINO)",
        r"(.*\.)?(encoder\.layer\.0\.attention\.attention\.query|layers\.0\.attention\.q_proj)\.weight",
        "classifier_backbone",
    ),
    ("a CLIP", r"visual_projection\.weight", "clip"),
    ("a text encoder", r"(text_model\.)?embeddings\.token_embedding\.weight", PART),
    ("a multi-view model's UNet (diffusers' layout)", r"class_embedding\.linear_1\.weight", PART),
    ("a text-to-image model's UNet (diffusers' layout)", r"time_embedding\.linear_1\.weight", PART),
    ("a UNet (the original layout)", r"time_embed\.0\.weight", PART),
    ("an autoencoder (diffusers' layout)", r"(.*_)?quant_conv\.weight|encoder\.down_blocks\.0\..*", PART),
    ("an autoencoder (the original layout)", r"(first_stage_model\.)?encoder\.down\.0\..*", PART),
    ("a small decoder (TAESD)", r"decoder\.layers\.0\.weight", "small_decoder"),
)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name; what a trainer put around them (WRAPPERS) is taken off, as is all else.

    Raises UserError, one line, if the file is damaged, no checkpoint, or wants to run code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    copy = converted(path)
    if is_current(copy, path):
        try:
            return _read_safetensors(copy)
        except UserError as error:
            log.info("%s: taking the original", error)
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
    return _layout(keys)[0]


def advice(keys: Iterable[str], place: str = "") -> str:
    """ "; it looks like X: what to do with it", for the end of an error; nothing if we do not know it.

    place: the role that asked, of whose own kind there is nothing to say.
    """
    what, where = _layout(keys)
    if not what or (place and where == place):
        return ""
    todo = SOURCE.format(where) if (where or "").isidentifier() else where or FOREIGN
    return f"; it looks like {what}: {todo}"


def _layout(keys: Iterable[str]) -> tuple[str | None, str | None]:
    keys = list(keys)
    found = (
        (what, where)
        for what, rule, where in LAYOUTS
        if (known := re.compile(rule)) and any(map(known.fullmatch, keys))
    )
    return next(found, (None, None))


def file_keys(path: Path) -> list[str]:
    """The names of the tensors in one file, without a copy of it; none if it cannot be read."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as stored:
                return list(stored.keys())
        return list(_read_pickle(path))
    except Exception:  # it only serves a message
        return []


def differences(wanted: Iterable[str], came: Iterable[str], seen: Iterable[str] | None = None) -> str:
    """In words: the first key that is missing, the first that is unexpected, and what the checkpoint looks like.

    seen: the checkpoint's own keys, where `came` are renamed ones.
    """
    wanted, came = dict.fromkeys(wanted), dict.fromkeys(came)
    missing = next((key for key in wanted if key not in came), "(none)")
    unexpected = next((key for key in came if key not in wanted), "(none)")
    looks = advice(came if seen is None else seen)
    return f"first missing key {missing}, first unexpected key {unexpected}{looks}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # whatever a damaged file provokes
        raise _cannot_read(path, error, first_line(error)) from error


def _cannot_read(path: Path, error: Exception, why: str) -> UserError:
    """The error for a checkpoint that is damaged, or may be good: then there is nothing to download again."""
    if answer_of(error) == NOT_NOW:
        return UserError(f"cannot read the checkpoint {path} now ({why}): the same command goes on when it can")
    return UserError(f"cannot read the checkpoint {path}: {why}; download it again")


def _read_pickle(path: Path) -> dict[str, Tensor]:
    _allow_inert()
    try:
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
        raise _cannot_read(path, error, why) from error
    state = loaded if isinstance(loaded, Mapping) else {}
    while inner := [name for name in WRAPPERS if isinstance(state.get(name), Mapping)]:
        state = state[inner[0]]
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"cannot read the checkpoint {path}: there are no named tensors in it; name another file")
    return tensors


def _allow_inert() -> None:
    """From now on the names of INERT stand for empty classes when a pickle is read."""
    names = [name.rpartition(".") for name in INERT]
    torch.serialization.add_safe_globals([type(name, (), {"__module__": module}) for module, _, name in names])


def _mark(path: Path) -> dict[str, str]:
    """What the copy remembers of its original."""
    about = path.stat()
    return {
        "format": "pt",
        "source": str(path.resolve()),
        "size": str(about.st_size),
        "mtime_ns": str(about.st_mtime_ns),
    }


def _keep(state: dict[str, Tensor], copy: Path, path: Path) -> None:
    """Write the tensors of `path` to `copy`, if there is room: without, the pickle is read again the next time."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    apart = {}
    try:
        for key, value in state.items():  # safetensors knows no tensors that share their memory
            where = value.untyped_storage().data_ptr()
            apart[key] = value.clone(memory_format=torch.contiguous_format) if where in seen else value.contiguous()
            seen.add(where)
        copy.parent.mkdir(parents=True, exist_ok=True)
        size = sum(value.numel() * value.element_size() for value in apart.values())
        if shutil.disk_usage(copy.parent).free < size + 2**30:
            log.info("no room for a safetensors copy of %s in %s", path, copy.parent)
            return
        with atomic_path(copy) as temporary:
            save_file(apart, temporary, metadata=_mark(path))
    except (OSError, UserError, SafetensorError, MemoryError, RuntimeError) as error:  # torch's for want of memory
        log.info("no safetensors copy of %s was kept: %s", path, error)


def first_line(error: BaseException) -> str:
    """An error in one line: the first of its text, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
