"""python -m jointdreamer.doctor: what is there, what is missing, and what will therefore work."""

import importlib.metadata
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from jointdreamer import doctor
from jointdreamer.energies.registry import ENERGIES

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def works(report, *words) -> bool:
    (found,) = [one for one in report["commands"] if all(word in one["command"] for word in words)]
    return found["works"]


def test_a_fresh_machine_can_do_the_toybox_and_is_told_what_the_rest_needs():
    report = doctor.examine([])
    assert {"torch", "diffusers", "hydra-core"} <= set(report["packages"])
    assert not [one for one in report["packages"].values() if one["problem"]]
    assert all(works(report, "models=toybox", f"energy={energy} ") for energy in ENERGIES if energy != "imagedream")
    assert not any("energy=imagedream" in one["command"] and "toybox" in one["command"] for one in report["commands"])
    assert not works(report, "models=sd21", "energy=none ") and works(report, "evaluate.py", "toybox")
    assert works(report, "toybox.table") and works(report, "train_classifier.py models=toybox")
    assert not works(report, "train_classifier.py models=sd21") and not works(report, "evaluate.py", "sd21")
    assert not [one for one in report["models"]["toybox"].values() if one["problem"] or not one["path"]]
    said = "\n".join(doctor.lines(report))
    assert "weights prefetch text_to_image multi_view" in said and "train_classifier.py models=toybox" in said
    assert "python train_classifier.py" in said and "novel_view=wonder3d" in said


def test_settings_move_a_role(tiny_sd_folder, mvdream_state, tmp_path):
    torch.save(mvdream_state(), tmp_path / "mv.pt")
    sd = f"models.text_to_image.source={tiny_sd_folder()}"
    report = doctor.examine(["models=sd21", sd])
    assert works(report, "energy=none") and not works(report, "energy=mvs")
    report = doctor.examine(["models=sd21", sd, f"models.multi_view.source={tmp_path / 'mv.pt'}"])
    assert works(report, "energy=mvs") and report["models"]["sd21"]["multi_view"]["path"] == str(tmp_path / "mv.pt")
    report = doctor.examine(["models=sd21", "models.text_to_image.source=/nowhere"])
    assert "/nowhere" in report["models"]["sd21"]["text_to_image"]["problem"] and not works(report, "energy=none")


@pytest.mark.parametrize("models", ["sdxl", "sd35", "if"])
def test_other_models_can_run_where_their_parts_are_and_their_memory_is(
    models, tiny_text_to_image, tiny_sd_folder, tiny_mv_folder, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    report = doctor.examine([f"models={models}"])
    assert not works(report, "energy=none")
    (note,) = [one["note"] for one in report["commands"] if "energy=none " in one["command"]]
    assert f"prefetch text_to_image models={models}" in note and ("gated" in note) == (models != "sdxl")
    there = [f"models={models}", f"models.text_to_image.source={tiny_text_to_image(models)}"]
    monkeypatch.setattr(doctor, "memory_free_gb", lambda: 64.0)
    report = doctor.examine(there)
    assert works(report, "energy=none") and not works(report, "energy=mvs")
    more = [f"models.text_encoder.source={tiny_sd_folder()}", f"models.multi_view.source={tiny_mv_folder()}"]
    assert works(doctor.examine([*there, *more, "models.multi_view.file=null"]), "energy=mvs")
    monkeypatch.setattr(doctor, "memory_free_gb", lambda: 8.0)
    report = doctor.examine(there)
    assert works(report, "energy=none") == (models == "sdxl")  # the others' T5
    if models == "sd35":
        assert works(doctor.examine([*there, "models.text_to_image.text_encoders=2"]), "energy=none")
        assert "text_encoders=2 leaves T5 out" in "\n".join(doctor.lines(report))


def test_a_gpu_that_is_too_small_is_said():
    machine = {"gpu": {"memory_gb": 8.0}, "memory_free_gb": 64.0}
    large = {"memory_gb": 8.6, "t5_gb": 19.1, "title": "IF"}
    assert doctor.too_small(machine, large) == "its networks take 8.6 GB, the GPU has 8.0 GB"
    assert doctor.too_small({**machine, "gpu": {"memory_gb": 12.0}}, large) == ""
    assert doctor.too_small(machine, {"memory_gb": None, "title": "SD"}) == ""


def test_damaged_weights_are_found_without_loading_them(tiny_sd_folder, tmp_path):
    import shutil

    shutil.copytree(tiny_sd_folder(), tmp_path / "sd")
    file = tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    report = doctor.examine(["models=sd21", f"models.text_to_image.source={tmp_path / 'sd'}"])
    assert str(file) in report["models"]["sd21"]["text_to_image"]["problem"] and not works(report, "energy=none")


def test_missing_and_wrong_packages_are_named_with_the_command(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "accelerate":
            raise importlib.metadata.PackageNotFoundError
        return "0.1" if name == "diffusers" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    report = doctor.examine([])
    assert report["packages"]["accelerate"]["problem"] == "not installed"
    assert "version 0.1 is outside" in report["packages"]["diffusers"]["problem"]
    assert report["models"] == {} and not any(one["works"] for one in report["commands"])
    said = "\n".join(doctor.lines(report))
    assert "accelerate: not installed" in said and "constraints.txt" in said


@pytest.mark.parametrize(
    ("version", "wanted", "right"),
    [("2.13.0+cpu", "<2.14,>=2.4", True), ("2.14.0", "<2.14,>=2.4", False), ("1", "", True)],
)
def test_ranges(version, wanted, right):
    assert doctor.inside(version, wanted) == right


def test_wandb_s_key_is_found_where_wandb_looks(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert doctor.wandb_login() is None
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password something\n")
    assert doctor.wandb_login() == str(tmp_path / "netrc")
    (tmp_path / "netrc").write_text("nonsense")
    assert doctor.wandb_login() is None


def seconds(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def test_the_real_command_is_quick_and_its_json_is_the_report(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    line = [sys.executable, "-m", "jointdreamer.doctor", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=100)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stderr == ""
    report = json.loads(done.stdout)
    assert report["machine"]["offline"] and set(report["models"]) == {"toybox", "sd21"}
    # time of the processor, so that a busy machine does not count, beside what torch alone takes on this one
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    torch_alone = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert seconds(after) - seconds(before) < 2.5 * (seconds(torch_alone) - seconds(after))


def test_a_wrong_word_is_one_line(capsys):
    assert doctor.main(["nmae=x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: unknown key 'nmae'") and said.count("\n") == 1
