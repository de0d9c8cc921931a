"""Networks that others saved: pickles, several files, names of another transformers, another network."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from jointdreamer.errors import UserError
from jointdreamer.weights.folders import wanted_files, weight_files
from jointdreamer.weights.parts import load_part, part_keys


@pytest.fixture
def pickled(tiny_sd_folder, tmp_path, monkeypatch):
    """A folder whose parts are pickles, as the libraries wrote them before safetensors."""
    monkeypatch.setenv("JOINTDREAMER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sd"
    shutil.copytree(tiny_sd_folder(), folder)
    for part, name in {
        "vae": "diffusion_pytorch_model",
        "unet": "diffusion_pytorch_model",
        "text_encoder": "pytorch_model",
    }.items():
        (stored,) = (folder / part).glob("*.safetensors")
        torch.save(load_file(stored), folder / part / f"{name}.bin")
        stored.unlink()
    return folder


def parts():
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

    return {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}


def same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
@pytest.mark.parametrize("room", [True, False])
def test_pickled_parts_are_read(pickled, tiny_sd_folder, monkeypatch, part, room):
    if not room:  # for the copy that reading keeps
        monkeypatch.setattr("jointdreamer.weights.parts.is_current", lambda *_: False)
    ours = load_part(parts()[part], pickled, part, torch.float32)
    assert same_weights(ours, load_part(parts()[part], tiny_sd_folder(), part, torch.float32))
    assert load_part(parts()[part], pickled, part, torch.float16).dtype == torch.float16


def test_pickles_in_several_files_are_one_model_and_other_pickles_are_none(pickled, tiny_sd_folder):
    file = pickled / "vae" / "diffusion_pytorch_model.bin"
    state = list(torch.load(file).items())
    for k, half in enumerate((state[:5], state[5:])):
        torch.save(dict(half), file.with_name(f"diffusion_pytorch_model-0000{k + 1}-of-00002.bin"))
    file.unlink()
    torch.save({"lr": torch.ones(1)}, file.with_name("optimizer.bin"))
    torch.save(dict(state), file.with_name("diffusion_pytorch_model.fp16.bin"))
    kind = parts()["vae"]
    assert same_weights(
        load_part(kind, pickled, "vae", torch.float32), load_part(kind, tiny_sd_folder(), "vae", torch.float32)
    )
    names = [f"vae/{path.name}" for path in file.parent.iterdir()]
    chosen = wanted_files(names, ["vae/config.json"])
    assert {name for name in chosen if name.endswith(".bin")} == {
        f"vae/{path.name}" for path in weight_files(file.parent)
    }


class Bomb:
    def __reduce__(self):
        return (print, ("code from a checkpoint was run",))


def test_a_part_that_wants_to_run_code_is_refused(pickled, capsys):
    torch.save({"x": Bomb()}, pickled / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="wants to run code"):
        load_part(parts()["vae"], pickled, "vae", torch.float32)
    assert "was run" not in capsys.readouterr().out


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_of_either_generation_of_transformers_are_read(tiny_sd_folder, tmp_path, prefix):
    """Releases from 5.6 on write no `text_model.` before the names; earlier ones look for it."""
    shutil.copytree(tiny_sd_folder(), tmp_path / "sd")
    (file,) = (tmp_path / "sd" / "text_encoder").glob("*.safetensors")
    save_file(
        {prefix + key.removeprefix("text_model."): x for key, x in load_file(file).items()}, file, {"format": "pt"}
    )
    kind = parts()["text_encoder"]
    ours, theirs = (
        load_part(kind, folder, "text_encoder", torch.float32) for folder in (tmp_path / "sd", tiny_sd_folder())
    )
    assert same_weights(ours, theirs)


def test_a_part_of_another_architecture_says_what_it_looks_like(tiny_sd_folder, tmp_path):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    shutil.copytree(tiny_sd_folder(), tmp_path / "sd")
    shutil.copy(next((tmp_path / "sd" / "unet").glob("*.safetensors")), tmp_path / "sd" / "vae")
    with pytest.raises(UserError, match="first unexpected key .*looks like a text-to-image model's UNet") as error:
        load_part(AutoencoderKL, tmp_path / "sd", "vae", torch.float32)
    assert "weights are missing" in str(error.value) and "\n" not in str(error.value)


def test_keys_of_a_folder_pass_over_what_cannot_be_read(tmp_path):
    save_file({"a.weight": torch.ones(2), "b": torch.ones(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"")
    assert sorted(part_keys(tmp_path)) == ["a.weight", "b"]
