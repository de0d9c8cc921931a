"""Load one network or tokenizer of a diffusers folder, and refuse one that is not whole."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.weights.checkpoint import (
    advice,
    converted,
    differences,
    file_keys,
    first_line,
    is_current,
    read_checkpoint,
    recognise,
)
from jointdreamer.weights.folders import weight_files

KIND_OF_PART = {
    "UNet2DConditionModel": "UNet",
    "SD3Transformer2DModel": "flow-matching transformer",
    "AutoencoderKL": "autoencoder",
    "CLIPTextModel": "text encoder",
    "CLIPTextModelWithProjection": "text encoder",
}


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


def build_exactly(
    make: Callable[[], Any], state: Mapping[str, Tensor], dtype: torch.dtype, where: str, names: Mapping[str, str]
) -> Any:
    """A frozen network that holds every tensor of `state` once and nothing else; nothing is initialised at random.

    where: opens the error; names: what the tensors are called in the file, where that is not what they are called here.
    Raises UserError, one line, with the first missing and the first unexpected key.
    """
    with torch.device("meta"):  # 866 million random numbers would take longer than the reading
        model = make()
    wanted = model.state_dict()
    if wanted.keys() != state.keys():
        came = (key if key in wanted else names.get(key, key) for key in state)
        raise UserError(f"{where}: {differences(wanted, came, seen=())}")
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            came, right = tuple(state[key].shape), tuple(value.shape)
            raise UserError(f"{where}: {names.get(key, key)} has the shape {came}, wanted {right}")
    model.load_state_dict({key: value.to(dtype) for key, value in state.items()}, strict=True, assign=True)
    for name, buffer in list(model.named_buffers()):  # not in any file: transformers counts the patches with it
        if buffer.is_meta and name.endswith("position_ids"):
            owner = model.get_submodule(name.rpartition(".")[0])
            owner.position_ids = torch.arange(buffer.shape[-1]).expand(buffer.shape)
    return model.eval().requires_grad_(False)


def part_keys(where: Path) -> list[str]:
    """The names of a part's tensors; none if there are none to read."""
    return [key for file in weight_files(where) for key in file_keys(file)]


def read_part(where: Path) -> dict[str, Tensor]:
    """The tensors of a part. Raises UserError if there are none, or if they cannot be read."""
    files = weight_files(where)
    if not files:
        raise UserError(f"cannot load the {where.name}: there are no weights in {where}; download it again")
    return {key: value for file in files for key, value in read_checkpoint(file).items()}


def load_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer, from tokenizer.json or from vocab.json and merges.txt, in every transformers that we allow.

    Raises whatever a missing or damaged file provokes.
    """
    return clip_tokenizer_class().from_pretrained(folder, local_files_only=True)


def clip_tokenizer_class() -> Any:
    """CLIP's tokenizer on top of `tokenizers`: since transformers 5 there is no other, and its name has no Fast."""
    import transformers

    return getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
