"""Where weights are looked for, and what is said when they are nowhere."""

import pytest
import torch
from huggingface_hub import constants

from jointdreamer.diffusion import scaled_linear_alphas_cumprod
from jointdreamer.errors import UserError
from jointdreamer.models import weights
from jointdreamer.models.weights import find_weights, load_noise_schedule, load_part


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
    assert find_weights("jointdreamer/models", "model", file="weights.py") == weights.PACKAGE / "models" / "weights.py"


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
    abar, kind = load_noise_schedule(tiny_sd_folder("v_prediction"))
    assert kind == "v_prediction"
    torch.testing.assert_close(abar, scaled_linear_alphas_cumprod())
    # Stable Diffusion 2.1-base: a PNDM config without a prediction type, with settings of its own
    config = '{"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 10, '
    touch(tmp_path / "scheduler" / "scheduler_config.json").write_text(config + '"skip_prk_steps": true}')
    abar, kind = load_noise_schedule(tmp_path)
    assert kind == "epsilon"
    expected = (1 - torch.linspace(0.001, 0.02, 10, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(abar.double(), expected, rtol=1e-5, atol=0)


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
    import shutil

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    shutil.copytree(tiny_sd_folder(), tmp_path / "sd")
    shutil.copy(next((tmp_path / "sd" / "unet").glob("*.safetensors")), tmp_path / "sd" / "vae")
    with pytest.raises(UserError, match="first unexpected key .*looks like a text-to-image model's UNet") as error:
        load_part(AutoencoderKL, tmp_path / "sd", "vae", torch.float32)
    assert "weights are missing" in str(error.value) and "\n" not in str(error.value)
