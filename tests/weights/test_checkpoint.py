"""Pickled checkpoints: read once, without running what is in them, and recognised by their keys."""

import argparse
import os
import sys
import types
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from jointdreamer.errors import UserError
from jointdreamer.weights import checkpoint
from jointdreamer.weights.checkpoint import converted, differences, is_current, read_checkpoint, recognise
from jointdreamer.weights.parts import part_keys


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JOINTDREAMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def state(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((2, 3), value), "b": torch.arange(4, dtype=torch.int64)}


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_read_once_and_then_its_safetensors(cache, tmp_path, monkeypatch, suffix, zipped):
    file = tmp_path / f"model{suffix}"
    wrapped = {"state_dict": state(), "epoch": 3}
    torch.save(wrapped if suffix == ".ckpt" else state(), file, _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(file), state())
    assert converted(file).is_relative_to(cache) and is_current(converted(file), file)
    assert [path.name for path in cache.rglob("*.*")] == [
        converted(file).name
    ]  # whole or not at all: nothing beside it
    monkeypatch.setattr(torch, "load", None)  # a second pickle would fail
    assert same(read_checkpoint(file), state())


def test_the_copy_is_made_again_when_the_file_changes_or_the_copy_is_damaged(cache, tmp_path):
    file = tmp_path / "model.pt"
    torch.save(state(1.0), file)
    read_checkpoint(file)
    torch.save(state(2.0), file)
    os.utime(file, ns=(1, 1))
    assert not is_current(converted(file), file)
    assert same(read_checkpoint(file), state(2.0)) and same(read_checkpoint(file), state(2.0))
    converted(file).write_bytes(converted(file).read_bytes()[:-5])
    assert same(read_checkpoint(file), state(2.0)) and is_current(converted(file), file)


def test_two_files_of_one_name_have_their_own_copies(cache, tmp_path):
    for name, value in (("one", 1.0), ("two", 2.0)):
        (tmp_path / name).mkdir()
        torch.save(state(value), tmp_path / name / "model.pt")
        assert same(read_checkpoint(tmp_path / name / "model.pt"), state(value))
    assert same(read_checkpoint(tmp_path / "one" / "model.pt"), state(1.0))


def test_without_a_place_or_room_for_the_copy_the_pickle_is_read_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    file = tmp_path / "model.pt"
    torch.save(state(), file)
    monkeypatch.setenv("JOINTDREAMER_CACHE", str(tmp_path / "file"))
    assert same(read_checkpoint(file), state())
    monkeypatch.setenv("JOINTDREAMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10))
    assert same(read_checkpoint(file), state()) and not converted(file).exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(28, "No space left"), SafetensorError("I/O error: No space left")]
)
def test_a_copy_that_cannot_be_written_or_read_stops_nobody(cache, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    file = tmp_path / "model.pt"
    torch.save(state(), file)
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", fail)
        assert same(read_checkpoint(file), state()) and not converted(file).exists()
    read_checkpoint(file)
    monkeypatch.setattr("safetensors.torch.load_file", fail)
    assert same(read_checkpoint(file), state())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_cannot_be_read_now_need_not_be_downloaded_again(cache, tmp_path, monkeypatch, suffix):
    file = tmp_path / f"model{suffix}"
    torch.save(state(), file) if suffix == ".pt" else save_file(state(), file)

    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr("safetensors.torch.load_file", fail)
    with pytest.raises(UserError, match="cannot read the checkpoint .* now") as caught:
        read_checkpoint(file)
    assert "download" not in str(caught.value)


def test_tensors_that_share_memory_are_kept_each_for_itself(cache, tmp_path):
    whole = torch.arange(6.0)
    shared = {"a": whole, "b": whole, "c": whole[2:4], "d": whole.reshape(2, 3).T}
    torch.save(shared, tmp_path / "model.pt")
    read_checkpoint(tmp_path / "model.pt")
    assert is_current(converted(tmp_path / "model.pt"), tmp_path / "model.pt")
    assert same(read_checkpoint(tmp_path / "model.pt"), shared)


class Bomb:
    def __init__(self, call, argument):
        self.call, self.argument = call, argument

    def __reduce__(self):
        return self.call, (self.argument,)


@pytest.mark.parametrize("call", [os.system, eval, print])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_execute_code_is_refused(cache, tmp_path, call, zipped):
    mark = tmp_path / "was-run"
    argument = f"touch {mark}" if call is os.system else f"open({str(mark)!r}, 'w')"
    file = tmp_path / "model.pt"
    torch.save({**state(), "x": Bomb(call, argument)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="wants to run code.*refused") as error:
        read_checkpoint(file)
    assert call.__name__ in str(error.value) and "\n" not in str(error.value) and str(file) in str(error.value)
    assert not mark.exists() and not converted(file).exists()


def test_a_trainer_s_callback_is_no_reason_to_refuse(cache, tmp_path, monkeypatch):
    """Zero-1-to-3's checkpoints name Lightning's ModelCheckpoint; the class is not needed, nor imported."""
    *path, name = checkpoint.INERT[0].split(".")
    for end in range(1, len(path) + 1):
        monkeypatch.setitem(sys.modules, ".".join(path[:end]), types.ModuleType(".".join(path[:end])))
    kind = type(name, (), {"__module__": ".".join(path), "__setstate__": lambda self, state: pytest.fail("was run")})
    setattr(sys.modules[".".join(path)], name, kind)
    torch.save({"state_dict": state(), "callbacks": {kind: {"best": 1.0}}}, tmp_path / "model.ckpt")
    for end in range(1, len(path) + 1):
        monkeypatch.delitem(sys.modules, ".".join(path[:end]))
    assert same(read_checkpoint(tmp_path / "model.ckpt"), state())


@pytest.mark.parametrize("wrap", [["model"], ["teacher"], ["state_dict"], ["model", "module"], ["model_state_dict"]])
def test_what_trainers_put_around_the_tensors_is_taken_off(cache, tmp_path, wrap):
    whole: dict[str, Any] = state()
    for name in reversed(wrap):
        whole = {name: whole, "student": state(0.0), "optimizer": {"lr": torch.ones(1)}, "epoch": 3}
    whole["args"] = argparse.Namespace(lr=0.1)  # DINO's own checkpoints
    torch.save(whole, tmp_path / "model.pth")
    assert same(read_checkpoint(tmp_path / "model.pth"), state())


@pytest.mark.parametrize("content", [b"", b"half a download", b"PK\x03\x04 and no more"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_file_is_one_line(cache, tmp_path, content, suffix):
    (tmp_path / f"model{suffix}").write_bytes(content)
    with pytest.raises(UserError, match="cannot read the checkpoint .*download it again") as error:
        read_checkpoint(tmp_path / f"model{suffix}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"epoch": 1}, torch.ones(2), {"state_dict": {}}])
def test_a_file_without_named_tensors_is_one_line(cache, tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match="no named tensors"):
        read_checkpoint(tmp_path / "model.pt")


# Which model is it


def test_the_layouts_of_the_field_are_told_apart(mvdream_state, tiny_sd_folder, tiny_mv_folder):
    ldm = mvdream_state()
    plain = {key for key in ldm if "camera_embed" not in key}
    assert "MVDream" in str(recognise(ldm))
    assert "Stable Diffusion" in str(recognise(plain))
    assert "Zero-1-to-3" in str(recognise(plain | {"cc_projection.weight"}))
    assert "multi-view model's UNet" in str(recognise(part_keys(tiny_mv_folder() / "unet")))
    assert "text-to-image model's UNet" in str(recognise(part_keys(tiny_sd_folder() / "unet")))
    joint = "down_blocks.0.attentions.0.transformer_blocks.0.attn_joint_mid.to_q.weight"
    assert "Wonder3D" in str(recognise([*part_keys(tiny_sd_folder() / "unet"), joint]))
    assert "autoencoder" in str(recognise(part_keys(tiny_sd_folder() / "vae")))
    assert "text encoder" in str(recognise(part_keys(tiny_sd_folder() / "text_encoder")))
    assert recognise(["something.weight"]) is None


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "a LoRA"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", "a LoRA"),
        ("control_model.input_blocks.0.0.weight", "ControlNet"),
        ("model.diffusion_model.image_embed.proj.weight", "ImageDream"),
        ("add_embedding.linear_1.weight", "XL"),
        (
            "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
            "flow-matching transformer (Stable Diffusion 3)",
        ),
        ("single_transformer_blocks.0.attn.to_q.weight", "FLUX"),
        ("blocks.0.ls1.gamma", "DINOv2"),
        ("teacher.backbone.blocks.0.attn.qkv.weight", "DINO's original"),
        ("vit.encoder.layer.0.attention.attention.query.weight", "DINO"),
        ("first_stage_model.encoder.down.0.block.0.conv1.weight", "an autoencoder (the original"),
    ],
)
def test_what_is_read_nowhere_is_known_too(key, what):
    assert what in str(recognise([key]))


def test_dino_clip_and_the_small_decoder_are_known_by_their_libraries_own_keys():
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip = CLIPModel(CLIPConfig(text_config={**small, "vocab_size": 8}, vision_config=small, projection_dim=8))
    assert "CLIP" in str(recognise(clip.state_dict()))
    assert "small decoder" in str(recognise(AutoencoderTiny().state_dict()))
    assert "DINO's original" in str(recognise(["cls_token", "blocks.0.attn.qkv.weight"]))
    assert "DINO" in str(recognise(["encoder.layer.0.attention.attention.query.weight"]))  # as files have it


def test_differences_name_the_first_key_of_each_kind():
    said = differences(["a", "b", "c"], ["a", "x", "y"])
    assert said == "first missing key b, first unexpected key x"
    assert differences(["a"], ["a"]) == "first missing key (none), first unexpected key (none)"
    said = differences(["a"], ["b"], seen=["cc_projection.weight"])
    assert said.endswith("looks like a novel-view model (Zero-1-to-3): name it as models.novel_view.source")
