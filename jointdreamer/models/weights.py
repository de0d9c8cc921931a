"""From the name of pretrained weights to a path, and from a path to a checked model.

A source is a local folder or file, or a hub id "org/repo". The hub's cache comes first; the network only when
HF_HUB_OFFLINE allows it, and after one short probe: left to themselves its clients retry every file for 23 seconds.
"""

import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.diffusion import PREDICTION_TYPES
from jointdreamer.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
PROBE_SECONDS = 7.0
UNWANTED = ("*.bin", "*.ckpt", "*.msgpack", "*.onnx*", "*.fp16.*", "*nonema*", "*non_ema*")  # second copies


def find_weights(
    source: str | Path,
    role: str,
    file: str | None = None,
    needs: Sequence[str] = (),
    hint: str | None = None,
    download: bool = True,
) -> Path:
    """The local path of some weights: a folder, or one file.

    source: a local path ("jointdreamer/..." is also looked for beside the package), or a hub id "org/repo"
    role: what it is for, e.g. "text-to-image model"; opens the error
    file: the one file wanted from a folder or repository; ignored if the source is itself a file
    needs: files that a folder must contain; their folders are what is downloaded
    hint: what to do when nothing is found
    download: whether the hub may be asked for what is neither local nor in its cache

    Raises UserError, one line, with everything that was tried.
    """
    tried: list[str] = []
    wanted = [file] if file else list(needs)
    for path in _local_candidates(source):
        if path.is_file():
            return path
        if path.is_dir():
            missing = [name for name in wanted if not (path / name).exists()]
            if not missing:
                return path / file if file else path
            tried.append(f"folder {path} lacks {', '.join(missing)}")
        else:
            tried.append(f"no file or folder {path}")
    if re.fullmatch(HUB_ID, str(source)) and not Path(source).exists():
        found = _from_hub(str(source), file, wanted, tried, download)
        if found is not None:
            return found
    hint = hint or "give a local folder"
    if re.fullmatch(HUB_ID, str(source)):
        hint = f"run `hf download {' '.join(filter(None, (str(source), file)))}` where there is a network, or {hint}"
    raise UserError(f"{role} not found: {source} ({'; '.join(tried)}); {hint}")


def _local_candidates(source: str | Path) -> list[Path]:
    path = Path(source).expanduser()
    beside_package = PACKAGE.parent / path
    if path.parts[:1] == (PACKAGE.name,) and beside_package != path.absolute():
        return [path, beside_package]
    return [path]


def _from_hub(repo: str, file: str | None, wanted: list[str], tried: list[str], download: bool) -> Path | None:
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache

    cached = [try_to_load_from_cache(repo, name) for name in wanted or ["model_index.json"]]
    if all(isinstance(path, str) for path in cached):
        first = Path(str(cached[0]))
        return first if file else first.parents[len(Path(wanted[0] if wanted else "x").parts) - 1]
    tried.append("not in the hub's cache")
    if not download:
        tried.append("not downloaded for a CPU, where such a model takes days")
        return None
    if constants.HF_HUB_OFFLINE:
        tried.append("HF_HUB_OFFLINE is set")
        return None
    try:
        HfApi().model_info(repo, timeout=PROBE_SECONDS)
        if file:
            return Path(hf_hub_download(repo, file))
        patterns = [f"{Path(name).parent}/*" if "/" in name else name for name in wanted] or None
        return Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=list(UNWANTED)))
    except Exception as error:  # the hub's client lets the errors of its HTTP library through, whatever that is
        tried.append(f"hub: {type(error).__name__}: {_first_line(error)}")
        return None


def load_part(kind: Any, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """One model of a diffusers folder, `kind.from_pretrained(folder / part)`, frozen, in eval mode, on the CPU.

    Both libraries fill weights that a file lacks with random numbers and a log line; here that is an error.
    Raises UserError, one line, if the part is missing, damaged or incomplete.
    """
    where = folder / part
    stored = sorted(path.name for path in where.glob("*.safetensors"))
    if not stored:  # the libraries would turn to pickles
        raise UserError(f"cannot load the {part}: there is no .safetensors file in {where}; download it again")
    try:
        variant = "fp16" if all(".fp16" in name for name in stored) else None
        cast = {"torch_dtype" if kind.__module__.startswith("diffusers") else "dtype": dtype}
        model, report = kind.from_pretrained(
            folder, subfolder=part, local_files_only=True, variant=variant, output_loading_info=True, **cast
        )
    except Exception as error:  # whatever a damaged file provokes: OSError, SafetensorError, KeyError, ...
        raise UserError(
            f"cannot load the {part} in {where}: {_first_line(error)}; "
            f"it is missing, damaged, or no {kind.__name__}: download it again"
        ) from error
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:
        raise UserError(
            f"cannot load the {part} in {where}: {len(missing)} weights are missing or of another shape, "
            f"the first is {missing[0]}; download it again"
        )
    return model.eval().requires_grad_(False)


def load_noise_schedule(folder: Path) -> tuple[Tensor, str]:
    """alphas_cumprod (1000,) and prediction_type of a folder's scheduler/scheduler_config.json.

    Raises UserError if there is none, or none that we know.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    path = folder / "scheduler" / "scheduler_config.json"
    try:
        config = json.loads(path.read_text())
        # Only what the noise process is made of: a sampler's own settings would draw a warning each.
        known = inspect.signature(DDPMScheduler.__init__).parameters
        scheduler = DDPMScheduler(**{k: v for k, v in config.items() if k in known and k.split("_")[0] in SCHEDULE})
    except (OSError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {_first_line(error)}; it must be a diffusers scheduler config") from error
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        raise UserError(f"{path}: prediction_type {kind!r} is not one of {', '.join(PREDICTION_TYPES)}")
    return scheduler.alphas_cumprod.float(), kind


SCHEDULE = ("num", "beta", "trained", "rescale")  # num_train_timesteps, beta_*, trained_betas, rescale_betas_zero_snr


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
