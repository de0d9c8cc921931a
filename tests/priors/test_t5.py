"""T5 in a process of its own: what it gives, that it ends, and what it says when it cannot."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from jointdreamer.errors import UserError
from jointdreamer.priors import t5
from jointdreamer.priors.t5 import check_t5, embed_here, embed_t5, load_t5_tokenizer, t5_bytes
from tests.priors.folders import T5_WIDTH


@pytest.fixture(scope="module")
def folder(tiny_text_to_image):
    return tiny_text_to_image("if")


def job(folder, **changes):
    of_if = {"folder": str(folder), "encoder": "text_encoder", "tokenizer": "tokenizer", "texts": ["a red robot", ""]}
    return {**of_if, "length": 9, "dtype": "float32", "masked": True, **changes}


def test_another_process_gives_what_this_one_would_and_has_ended(folder, monkeypatch):
    real, started = subprocess.run, []

    def run(command, **options):
        started.append(command)
        return real(command, **options)

    monkeypatch.setattr(t5.subprocess, "run", run)  # returns when the process has ended
    there = embed_t5(folder, "text_encoder", "tokenizer", ["a red robot", ""], 9, masked=True)
    assert there.shape == (2, 9, T5_WIDTH) and there.dtype == torch.float32
    assert torch.equal(there, embed_here(job(folder)))
    assert len(started) == 1 and started[0][:3] == [sys.executable, "-m", "jointdreamer.priors.t5"]


def test_words_are_known_and_padding_is_masked_where_asked(folder):
    tokenizer = load_t5_tokenizer(folder / "tokenizer")
    ids = tokenizer(["a red robot"]).input_ids[0]
    assert tokenizer.convert_ids_to_tokens(ids) == ["\u2581a", "\u2581red", "\u2581robot", "</s>"]
    masked, short = (embed_here(job(folder, length=length)) for length in (9, 4))
    torch.testing.assert_close(masked[0, :4], short[0])  # what fills up is not looked at
    assert not torch.allclose(embed_here(job(folder, masked=False))[0, :4], short[0], atol=1e-3)


@pytest.mark.parametrize(
    ("status", "stderr"), [(-9, ""), (1, "RuntimeError: not enough memory: you tried"), (2, "bad_alloc")]
)
def test_a_process_that_runs_out_of_memory_is_one_line(folder, monkeypatch, status, stderr):
    done = SimpleNamespace(returncode=status, stderr=stderr)
    monkeypatch.setattr(t5.subprocess, "run", lambda *args, **options: done)
    with pytest.raises(UserError, match=r"does not fit into memory: it needs about 0.0 GB.*; leave it out") as error:
        embed_t5(folder, "text_encoder", "tokenizer", ["a"], 9, spare="leave it out")
    assert "\n" not in str(error.value)


def test_a_fault_of_ours_keeps_its_traceback(folder, monkeypatch):
    done = SimpleNamespace(returncode=1, stderr="Traceback ...")
    monkeypatch.setattr(t5.subprocess, "run", lambda *args, **options: done)
    with pytest.raises(RuntimeError, match="Traceback"):
        embed_t5(folder, "text_encoder", "tokenizer", ["a"], 9)


def test_half_precision_is_bfloat16(folder, monkeypatch):
    asked = []

    def run(command, **options):
        with open(f"{command[-1]}/job.json") as file:
            asked.append(json.load(file)["dtype"])
        return SimpleNamespace(returncode=2, stderr="error")

    monkeypatch.setattr(t5.subprocess, "run", run)
    for dtype in (torch.float16, torch.float32):
        with pytest.raises(UserError):
            embed_t5(folder, "text_encoder", "tokenizer", ["a"], 9, dtype)
    assert asked == ["bfloat16", "float32"]


def test_damaged_parts_are_said_in_one_line_by_the_other_process(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "text_encoder" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot load the text_encoder in .*other"):
        embed_t5(other, "text_encoder", "tokenizer", ["a"], 9)


def test_a_tokenizer_that_needs_sentencepiece_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install -e '.\[t5\]'"):
        load_t5_tokenizer(tmp_path)
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        load_t5_tokenizer(tmp_path / "nowhere")


def test_too_little_memory_is_found_before_anything_is_loaded(folder, tiny_text_to_image):
    need = t5_bytes(folder / "text_encoder", torch.float32)
    assert need > 10_000
    of_if = {"kind": "pixel", "source": str(folder)}
    check_t5(of_if, need, "cpu")
    with pytest.raises(UserError, match=r"text_encoder does not fit.*0.0 GB are free; free some"):
        check_t5(of_if, need - 1, "cpu")
    of_sd35 = {"kind": "flow", "source": str(tiny_text_to_image("sd35"))}
    with pytest.raises(UserError, match=r"text_encoder_3 does not fit.*models.text_to_image.text_encoders=2"):
        check_t5(of_sd35, 1, "cpu")
    check_t5({**of_sd35, "text_encoders": 2}, 1, "cpu")
    check_t5({"source": "nowhere"}, 0, "cpu")
    check_t5({**of_if, "source": "nowhere"}, 0, "cpu")


def test_what_is_stored_in_half_precision_takes_twice_that_where_it_runs_in_full(folder, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    state = {key: value.half() for key, value in load_file(half / "text_encoder" / "model.safetensors").items()}
    numbers = sum(value.numel() for value in state.values())
    save_file(state, half / "text_encoder" / "model.safetensors", {"format": "pt"})
    where = half / "text_encoder"
    assert t5_bytes(where, torch.float32) == 4 * numbers
    assert t5_bytes(where, torch.bfloat16) == (where / "model.safetensors").stat().st_size < 3 * numbers
    of_if = {"kind": "pixel", "source": str(half), "dtype": "float32"}
    check_t5(of_if, 4 * numbers, "cuda")
    with pytest.raises(UserError, match="does not fit"):
        check_t5(of_if, 4 * numbers - 1, "cuda")
    check_t5({**of_if, "dtype": "auto"}, 3 * numbers, "cuda")  # float16 beside a GPU, where T5 takes bfloat16
    (where / "model.safetensors").write_bytes(b"nothing")  # whoever loads it says so
    check_t5(of_if, 100, "cpu")
