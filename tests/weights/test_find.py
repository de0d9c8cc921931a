"""Where weights are looked for, and what is said when they are nowhere."""

import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from jointdreamer.diffusion import scaled_linear_alphas_cumprod
from jointdreamer.errors import UserError
from jointdreamer.weights import find as weights
from jointdreamer.weights.find import find_weights, load_noise_process, load_part


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return path


def test_a_local_folder_is_itself(tmp_path):
    touch(tmp_path / "unet" / "config.json")
    assert find_weights(tmp_path, "model") == tmp_path
    assert find_weights(str(tmp_path), "model", needs=("unet/config.json",)) == tmp_path


def test_a_file_inside_a_folder_and_a_file_itself(tmp_path):
    checkpoint = touch(tmp_path / "model.pt")
    assert find_weights(tmp_path, "model", file="model.pt") == checkpoint
    assert find_weights(checkpoint, "model", file="other.pt") == checkpoint


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path / "mine" / "config.json")
    assert find_weights("~/mine", "model") == tmp_path / "mine"


def test_bundled_weights_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_weights("jointdreamer/weights", "model", file="find.py") == weights.PACKAGE / "weights" / "find.py"


def test_the_error_lists_what_was_tried_and_the_fix(tmp_path):
    touch(tmp_path / "vae" / "config.json")
    with pytest.raises(UserError) as error:
        find_weights(tmp_path, "text-to-image model", needs=("vae/config.json", "unet/config.json"))
    text = str(error.value)
    assert text.startswith("text-to-image model not found") and "lacks unet/config.json" in text and "\n" not in text
    with pytest.raises(UserError, match="run the doctor"):
        find_weights(tmp_path / "nowhere", "model", hint="run the doctor")


def cache(monkeypatch, root, repo, *files):
    """A hub cache as the client lays it out: blobs are the snapshot's own files here."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    base = root / f"models--{repo.replace('/', '--')}"
    touch(base / "refs" / "main").write_text("abc")
    for file in files:
        touch(base / "snapshots" / "abc" / file)
    return base / "snapshots" / "abc"


def test_the_hub_s_cache_is_used_offline(tmp_path, monkeypatch):
    snapshot = cache(monkeypatch, tmp_path, "org/repo", "unet/config.json", "model.pt")
    assert find_weights("org/repo", "model", needs=("unet/config.json",)) == snapshot
    assert find_weights("org/repo", "model", file="model.pt") == snapshot / "model.pt"
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        find_weights("org/repo", "model", needs=("unet/config.json", "vae/config.json"))


def test_an_unknown_hub_id_says_offline_and_how_to_download():
    with pytest.raises(UserError, match=r"multi-view model.*HF_HUB_OFFLINE is set.*hf download some-org/some\.model"):
        find_weights("some-org/some.model", "multi-view model")


def test_online_one_probe_then_the_wanted_folders_only(tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(repo, **options):
        asked.update(repo=repo, **options)
        return str(tmp_path)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, repo, timeout: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find_weights("org/repo", "model", needs=("unet/config.json", "vae/config.json")) == tmp_path
    assert asked["allow_patterns"] == ["unet/*", "vae/*"]


def test_a_failing_probe_is_one_line_without_a_download(monkeypatch):
    def no_network(self, repo, timeout):
        raise RuntimeError("connection refused\nand a long story")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    with pytest.raises(UserError, match="connection refused") as error:
        find_weights("org/repo", "model")
    assert "\n" not in str(error.value)


def test_noise_schedule_is_read_from_the_folder(tiny_sd_folder, tmp_path):
    process = load_noise_process(tiny_sd_folder("v_prediction"))
    assert process.prediction_type == "v_prediction"
    abar = scaled_linear_alphas_cumprod()
    torch.testing.assert_close((process.alpha, process.sigma), (abar.sqrt(), (1 - abar).sqrt()))
    # Stable Diffusion 2.1-base: a PNDM config without a prediction type, with settings of its own
    config = '{"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 10, '
    touch(tmp_path / "scheduler" / "scheduler_config.json").write_text(config + '"skip_prk_steps": true}')
    process = load_noise_process(tmp_path)
    assert process.prediction_type == "epsilon"
    expected = (1 - torch.linspace(0.001, 0.02, 10, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(process.alpha.double().square(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(process.sigma.double().square(), 1 - expected, rtol=1e-5, atol=1e-7)


def test_the_cache_s_main_branch_stands_in_for_a_pinned_revision(tmp_path, monkeypatch):
    snapshot = cache(monkeypatch, tmp_path, "org/repo", "model.pt")
    assert find_weights("org/repo@0123abc", "model", file="model.pt") == snapshot / "model.pt"


def test_a_list_of_sources_takes_the_first_at_hand(tmp_path, monkeypatch):
    cache(monkeypatch, tmp_path, "org/repo", "model.pt")
    mine = touch(tmp_path / "mine" / "model.pt")
    assert find_weights(["/nowhere", mine.parent, "org/repo"], "model", file="model.pt") == mine
    for nothing in ([], [""], [None], None):
        with pytest.raises(UserError, match="names no weights"):
            find_weights(nothing, "model")  # pyright: ignore[reportArgumentType]


def test_a_part_of_another_architecture_says_what_it_looks_like(tiny_sd_folder, tmp_path):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    shutil.copytree(tiny_sd_folder(), tmp_path / "sd")
    shutil.copy(next((tmp_path / "sd" / "unet").glob("*.safetensors")), tmp_path / "sd" / "vae")
    with pytest.raises(UserError, match="first unexpected key .*looks like a text-to-image model's UNet") as error:
        load_part(AutoencoderKL, tmp_path / "sd", "vae", torch.float32)
    assert "weights are missing" in str(error.value) and "\n" not in str(error.value)


# Schedules that others wrote

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 100}


def schedule(folder, **config):
    path = touch(folder / "scheduler" / "scheduler_config.json")
    path.write_text(json.dumps({**BETAS, **config}))
    return folder


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr_gives_finite_estimates_at_every_timestep(tmp_path, kind):
    process = load_noise_process(schedule(tmp_path, rescale_betas_zero_snr=True, prediction_type=kind))
    abar = process.alpha.square()
    assert process.prediction_type == kind and 0 < abar[-1] < 1e-7 and (abar[1:] <= abar[:-1]).all()
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(100, 1, 4, 2, 2, generator=g) for _ in range(2))
    t = torch.arange(100)
    alpha_t, sigma_t = process.at(t)
    x_t = alpha_t * x0 + sigma_t * noise
    prediction = x0 if kind == "sample" else alpha_t * noise - sigma_t * x0
    as_noise = process.noise(prediction, x_t, t)
    torch.testing.assert_close(as_noise, noise, rtol=0, atol=1e-3)
    torch.testing.assert_close(process.x0(as_noise, x_t, t), x0, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ({"rescale_betas_zero_snr": "yes"}, "wanted true or false"),
        ({"trained_betas": [0.1, 1.0]}, "zero terminal SNR"),
        ({"trained_betas": [0.1, -0.5]}, "make no noise schedule"),
        ({"trained_betas": [0.1, float("nan")]}, "make no noise schedule"),
        ({"trained_betas": [[0.1], [0.2]]}, "make no noise schedule|cannot read"),
        ({"trained_betas": [0.1]}, "make no noise schedule"),
        ({"trained_betas": "0.1, 0.2"}, "cannot read"),
        ({"beta_end": 0.0, "beta_start": 0.0}, "make no noise schedule"),
        ({"beta_start": None}, "beta_start=None"),
        ({"beta_start": "0.1"}, "beta_start='0.1'"),
        ({"beta_end": float("inf")}, "beta_end=inf"),
        ({"beta_end": 10**400}, "63 bits"),
        ({"beta_end": [[0.1]]}, "beta_end="),
        ({"beta_schedule": "wavy"}, "cannot read"),
        ({"beta_schedule": ["linear"]}, "cannot read"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"num_train_timesteps": 1}, "num_train_timesteps=1"),
        ({"num_train_timesteps": 10**10}, "num_train_timesteps=10000000000"),
        ({"num_train_timesteps": -5}, "num_train_timesteps=-5"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps='1000'"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps=1000.0"),
        ({"num_train_timesteps": True}, "num_train_timesteps=True"),
        ({"num_train_timesteps": None}, "num_train_timesteps=None"),
        ({"prediction_type": "flow_prediction"}, "'flow_prediction' is not one of"),
        ({"prediction_type": None}, "None is not one of"),
        ({"prediction_type": ["epsilon"]}, "is not one of"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow-matching"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_one_line(tmp_path, config, says):
    with pytest.raises(UserError, match=says) as error:
        load_noise_process(schedule(tmp_path, **config))
    assert "scheduler_config.json" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '"x"', "{}", "[" * 5000, '{"beta_schedule": ', "\x00"])
def test_a_file_that_is_no_schedule_is_one_line(tmp_path, text):
    touch(tmp_path / "scheduler" / "scheduler_config.json").write_text(text)
    with pytest.raises(UserError, match="scheduler_config.json") as error:
        load_noise_process(tmp_path)
    assert "\n" not in str(error.value)


def test_the_768_pixel_model_has_to_say_what_it_predicts(tmp_path):
    touch(tmp_path / "unet" / "config.json").write_text('{"sample_size": 96, "cross_attention_dim": 1024}')
    with pytest.raises(UserError, match="v_prediction"):
        load_noise_process(schedule(tmp_path))
    assert load_noise_process(schedule(tmp_path, prediction_type="epsilon")).prediction_type == "epsilon"
    assert load_noise_process(schedule(tmp_path, prediction_type="v_prediction")).prediction_type == "v_prediction"


# Parts that others saved


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
        monkeypatch.setattr("jointdreamer.weights.find.is_current", lambda *_: False)
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
    chosen = weights.wanted_files(names, ["vae/config.json"])
    assert {name for name in chosen if name.endswith(".bin")} == {
        f"vae/{path.name}" for path in weights.weight_files(file.parent)
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


# One file where a folder is wanted


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            ["model.diffusion_model.input_blocks.0.0.weight"],
            "Stable Diffusion's original layout.*from_single_file.*folder",
        ),
        (["model.diffusion_model.camera_embed.0.weight"], r"multi-view model \(MVDream.*models.multi_view.source"),
        (["cc_projection.weight"], "Zero-1-to-3.*models.novel_view.source"),
        (["conditioner.embedders.0.x", "model.diffusion_model.out.0.bias"], "Stable Diffusion XL.*1 or 2"),
        (["lora_unet_mid_block_attentions_0.lora_up.weight"], "a LoRA"),
        (["time_embedding.linear_1.weight"], "UNet .*put it there"),
        (["nobody.knows"], "one file: wanted a folder"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_where_a_folder_is_wanted_is_named_by_its_tensors(tmp_path, keys, says, suffix):
    file, state = tmp_path / f"model{suffix}", {key: torch.zeros(2) for key in keys}
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    with pytest.raises(UserError, match=says) as error:
        find_weights(file, "text_to_image")
    assert (
        str(file) in str(error.value) and "\n" not in str(error.value) and "download it again" not in str(error.value)
    )
    assert find_weights(file, "novel_view") == file  # the authors' checkpoint may be there


def test_an_address_of_one_file_is_no_folder_either(monkeypatch):
    monkeypatch.setattr(weights, "download_url", None)
    with pytest.raises(UserError, match="is one file: wanted a folder"):
        find_weights("https://example.org/sd.safetensors", "text_to_image")
