"""T5's embeddings of a prompt, made in a process that then ends: its memory, up to 19 GB, is free again.

embeddings = embed_t5(folder, "text_encoder_3", "tokenizer_3", texts, length=256)
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.errors import UserError, one_line
from jointdreamer.precision import network_dtype
from jointdreamer.project import PACKAGE
from jointdreamer.reading import is_out_of_memory
from jointdreamer.weights.checkpoint import first_line
from jointdreamer.weights.find import locate
from jointdreamer.weights.folders import weight_files
from jointdreamer.weights.parts import load_part
from jointdreamer.weights.roles import about

WITHOUT_T5 = "leave T5 out, models.text_to_image.text_encoders=2"  # as Stable Diffusion 3 can
MISTAKE = 2  # exit status of a process that said a UserError


def embed_t5(
    folder: Path,
    encoder: str,
    tokenizer: str,
    texts: Sequence[str],
    length: int,
    dtype: torch.dtype = torch.float32,
    masked: bool = False,
    spare: str = "",
) -> Tensor:
    """(N, length, D), float32, on the CPU: T5's last hidden state, of a process of its own.

    encoder, tokenizer: their folders inside `folder`
    length: tokens that a text is filled up with, or cut to
    dtype: in which T5 runs; float16, in which it overflows, is bfloat16
    masked: whether T5 is told which tokens only fill up
    spare: how to do without T5, for the error

    Raises UserError, one line, if it is missing or damaged, or does not fit into memory.
    """
    dtype = t5_dtype(dtype)
    with tempfile.TemporaryDirectory(prefix="jointdreamer-") as scratch:
        job = {
            "folder": str(folder), "encoder": encoder, "tokenizer": tokenizer, "texts": list(texts), "length": length,
            "dtype": str(dtype).removeprefix("torch."), "masked": masked,
        }  # fmt: skip
        (Path(scratch) / "job.json").write_text(json.dumps(job), encoding="utf-8")
        path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        # on the CPU, where the weights have to pass anyway: the GPU holds the prior
        environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "jointdreamer.priors.t5", scratch]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode == 0:
            from safetensors.torch import load_file

            return load_file(Path(scratch) / "embeddings.safetensors")["embeddings"]
    said = done.stderr.strip().splitlines()
    if done.returncode < 0 or is_out_of_memory(RuntimeError(done.stderr)):
        raise UserError(too_large(folder / encoder, dtype, spare))
    if done.returncode == MISTAKE and said:
        raise UserError(said[-1])
    raise RuntimeError(f"T5's process ended with status {done.returncode}: {done.stderr}")


def t5_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which T5 runs beside a prior of this dtype: not in float16, in which it overflows."""
    return torch.bfloat16 if dtype == torch.float16 else dtype


def t5_bytes(where: Path, dtype: torch.dtype) -> int:
    """What a T5 takes in memory at least: its weights as they are stored, or in the dtype that it runs in."""
    return sum(max(file.stat().st_size, _numbers(file) * dtype.itemsize) for file in weight_files(where))


def _numbers(file: Path) -> int:
    """How many numbers a file of weights holds; 0 if it cannot be read, which whoever loads it says."""
    if file.suffix != ".safetensors":
        return file.stat().st_size // (2 if ".fp16" in file.name else 4)
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as stored:
            return sum(prod(stored.get_slice(key).get_shape()) for key in stored.keys())  # noqa: SIM118
    except Exception:  # whatever a damaged file provokes
        return 0


def too_large(where: Path, dtype: torch.dtype, spare: str = "", free: float | None = None) -> str:
    """What to say of a T5 that does not fit into memory."""
    need = f"{t5_bytes(where, dtype) / 1e9:.1f} GB while the prompt is embedded"
    there = "" if free is None else f", and {free / 1e9:.1f} GB are free"
    return f"the T5 in {where} does not fit into memory: it needs about {need}{there}; {spare or 'free some'}"


def check_t5(settings: Mapping[str, Any], free: float, device: torch.device | str) -> None:
    """Refuse a T5 that is at hand and takes more than the free bytes, before anything is loaded. Raises UserError.

    settings: of the text-to-image model, in conf/models, and what its models share
    device: the prior's, by which a dtype of auto is chosen; T5 itself runs on the CPU
    """
    if not about("text_to_image", settings).t5_gb:
        return
    try:
        folder = locate(settings, "text_to_image")
    except UserError:  # whoever reads it says what is missing
        return
    flow = settings.get("kind") == "flow"
    where = folder / ("text_encoder_3" if flow else "text_encoder")
    dtype = t5_dtype(network_dtype(settings.get("dtype", "auto"), device))
    if t5_bytes(where, dtype) > free:
        raise UserError(too_large(where, dtype, WITHOUT_T5 if flow else "", free))


def load_t5_tokenizer(where: Path) -> Any:
    """A T5 tokenizer, from tokenizer.json or spiece.model. Raises UserError, one line."""
    import transformers

    kind = getattr(transformers, "T5TokenizerFast", None) or transformers.T5Tokenizer
    if not (where / "tokenizer.json").exists() and (where / "spiece.model").exists():
        try:
            import sentencepiece  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                f"the tokenizer in {where} is a SentencePiece model: pip install -e '.[t5]' installs what reads it"
            ) from error
    try:
        return kind.from_pretrained(where, local_files_only=True)
    except Exception as error:  # whatever a damaged file provokes
        raise UserError(f"cannot load the tokenizer in {where}: {first_line(error)}") from error


@torch.no_grad()
def embed_here(job: dict[str, Any]) -> Tensor:
    """What `embed_t5` asks for, in this process."""
    from transformers import T5EncoderModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(job["folder"])
    tokenizer = load_t5_tokenizer(folder / job["tokenizer"])
    encoder = load_part(T5EncoderModel, folder, job["encoder"], getattr(torch, job["dtype"]))
    if len(tokenizer) > encoder.config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder / job['tokenizer']} has {len(tokenizer)} tokens, its text encoder "
            f"{encoder.config.vocab_size}: they do not belong together"
        )
    tokens = tokenizer(
        job["texts"], padding="max_length", max_length=job["length"], truncation=True, return_tensors="pt"
    )
    mask = tokens.attention_mask if job["masked"] else None
    return encoder(tokens.input_ids, attention_mask=mask)[0].float()


def main(scratch: str) -> int:
    """Embed the texts of a job; the exit status."""
    from safetensors.torch import save_file

    try:
        embeddings = embed_here(json.loads((Path(scratch) / "job.json").read_text(encoding="utf-8")))
    except UserError as error:
        print(one_line(error), file=sys.stderr)
        return MISTAKE
    save_file({"embeddings": embeddings.contiguous()}, Path(scratch) / "embeddings.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
