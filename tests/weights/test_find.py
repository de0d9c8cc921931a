"""Where weights are looked for, and what is said when they are nowhere."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from jointdreamer.errors import UserError
from jointdreamer.weights import find as weights
from jointdreamer.weights.find import find_weights


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

    files = ["unet/config.json", "vae/config.json", "safety_checker/config.json"]
    about = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, repo, timeout: about)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: str(touch(tmp_path / name)))
    assert find_weights("org/repo", "model", needs=("unet/config.json", "vae/config.json")) == tmp_path
    assert asked["allow_patterns"] == files[:2]


def test_a_distilled_network_of_the_hub_is_refused_by_its_config_before_its_weights_are_downloaded(
    tmp_path, monkeypatch
):
    files = ["transformer/config.json", "transformer/diffusion_pytorch_model.safetensors", "vae/config.json"]
    about = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])
    config = configured(tmp_path, "transformer", guidance_embeds=True) / files[0]
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, repo, timeout: about)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: asked.append(name) or str(config))
    with pytest.raises(UserError, match=r"transformer/config\.json: guidance_embeds: this model is distilled") as error:
        find_weights(["org/flux", "org/other"], "text_to_image", needs=("unet/config.json", "vae/config.json"))
    assert asked == files[:1] and "\n" not in str(error.value)


def test_a_failing_probe_is_one_line_without_a_download(monkeypatch):
    def no_network(self, repo, timeout):
        raise RuntimeError("connection refused\nand a long story")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    with pytest.raises(UserError, match="connection refused") as error:
        find_weights("org/repo", "model")
    assert "\n" not in str(error.value)


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


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            ["model.diffusion_model.input_blocks.0.0.weight"],
            "Stable Diffusion's original layout.*from_single_file.*folder",
        ),
        (["model.diffusion_model.camera_embed.0.weight"], r"multi-view model \(MVDream.*models.multi_view.source"),
        (["cc_projection.weight"], "Zero-1-to-3.*models.novel_view.source"),
        (["conditioner.embedders.0.x", "model.diffusion_model.out.0.bias"], "Stable Diffusion XL.*models=sdxl"),
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


class GatedRepoError(Exception):
    """The hub's client raises one of this name, with and without a token."""


@pytest.mark.parametrize(("token", "says"), [(None, "hf auth login"), ("hf_mine", "this account has not accepted")])
def test_a_gated_repository_says_to_log_in_or_to_accept_its_licence(monkeypatch, token, says):
    def refused(self, repo, timeout):
        raise GatedRepoError("403 and a long story")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refused)
    for repo in ("org/new", "stabilityai/stable-zero123"):  # the second one is known to be gated
        with pytest.raises(UserError, match=f"gated: .*https://huggingface.co/{repo}") as error:
            find_weights(repo, "model", needs=("unet/config.json",))
        assert says in str(error.value) and "long story" not in str(error.value)


def configured(folder, part, **config):
    touch(folder / part / "config.json").write_text(json.dumps(config))
    return folder


def test_what_is_distilled_for_one_guidance_is_refused_whatever_kind_is_wanted(tmp_path, monkeypatch):
    needs = ("unet/config.json", "vae/config.json")
    flux = configured(tmp_path / "flux", "transformer", guidance_embeds=True)
    lcm = configured(configured(tmp_path / "lcm", "unet", time_cond_proj_dim=256), "vae")
    plain = configured(configured(tmp_path / "plain", "unet", time_cond_proj_dim=None), "vae")
    snapshot = cache(monkeypatch, tmp_path, "org/flux")
    configured(snapshot, "transformer", guidance_embeds=True)
    for source, mark in (
        (flux, "guidance_embeds"),
        ([tmp_path / "nowhere", str(flux), plain], "guidance_embeds"),
        ("org/flux", "guidance_embeds"),
        (lcm, "time_cond_proj_dim"),
        ([lcm], "time_cond_proj_dim"),
    ):
        with pytest.raises(UserError, match=f"{mark}: .*no prediction without the text.*models=sd21") as error:
            find_weights(source, "text_to_image", needs=needs)
        assert "\n" not in str(error.value)
    assert find_weights([plain, flux], "text_to_image", needs=needs) == plain
    assert find_weights(lcm, "autoencoder", needs=("vae/config.json",)) == lcm  # its network is not asked for
