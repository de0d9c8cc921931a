"""train_classifier.py on the CPU, small: what a run leaves, kills and resumes, two processes, and what it refuses.

The runs are children of tests/launcher.py, which imports everything once for all of them.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jointdreamer.classifier.losses import MOST_ERROR
from jointdreamer.classifier.model import ClassifierSettings, PairClassifier, load_classifier

ROOT = Path(__file__).parents[1]
STEPS, EVERY = 8, 2
PATIENCE = 300  # seconds


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Path:
    from jointdreamer.toybox.views import pack_toy_views

    folder = tmp_path_factory.mktemp("toys")
    pack_toy_views(folder, 40, seed=0, resolution=16)
    return folder


@pytest.fixture(scope="module")
def words(toys, tiny_classifier_folder) -> Callable[..., list[str]]:
    """words("training.steps=3") -> the command line of a small run; later words win."""
    network = json.loads((tiny_classifier_folder / "config.json").read_text()) | {"frozen_blocks": 0}
    default = [f"classifier.{key}={value}" for key, value in network.items() if key not in ("camera", "layer_norm_eps")]
    default += [
        "models=toybox",
        "device=cpu",
        f"data.folder={toys}",
        "data.toys=0",
        "data.held_out_percent=30",
        f"training.steps={STEPS}",
        "training.groups=2",
        "training.objects=4",
        "training.views=2",
        "training.warm_up=2",
        "training.derivative_weight=0.5",
        "training.step_weight=0.5",
        "training.ascent=2",
        "validation_groups=2",
        "every.log=1",
        f"every.validate={EVERY}",
        f"every.checkpoint={EVERY}",
    ]

    def command(*more: str) -> list[str]:
        given = {word.partition("=")[0] for word in more}
        return [*(word for word in default if word.partition("=")[0] not in given), *more]

    return command


@pytest.fixture
def go(launcher, tmp_path) -> Callable[..., int]:
    def run(words: list[str], folder: Path = tmp_path, **env: str) -> int:
        return launcher.run(folder, words, PATIENCE, "train_classifier", **env)

    return run


@pytest.fixture(scope="module")
def whole(launcher, words, tmp_path_factory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert launcher.run(folder, words(), PATIENCE, "train_classifier") == 0, (folder / "stderr").read_text()
    return run_folder(folder)


def run_folder(folder: Path) -> Path:
    (config,) = folder.glob("runs/**/config.yaml")
    return config.parent


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(run: Path, whole: Path) -> None:
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("best", "last"):
        for file in ("config.json", "model.safetensors"):
            assert (run / name / file).read_bytes() == (whole / name / file).read_bytes(), (name, file)
    assert not list(run.rglob(".tmp-*"))


# What a run leaves


def test_a_run_leaves_curves_checkpoints_and_two_classifiers(whole):
    wanted = ["config.yaml", "metrics.jsonl", "train.log", "environment.json", "command.txt", "result.json"]
    wanted += ["curves.png", "best/config.json", "best/model.safetensors", "last/config.json", "last/model.safetensors"]
    wanted += [f"checkpoints/step_{step:06d}.pt" for step in (STEPS - EVERY, STEPS)]
    assert [name for name in wanted if not (whole / name).is_file()] == []
    assert (whole.parents[3] / "stdout").read_text().strip() == str(whole.relative_to(whole.parents[3]))


def test_every_step_has_a_row_and_every_validation_its_numbers(whole):
    found = rows(whole)
    assert [row["step"] for row in found] == list(range(STEPS))
    assert [("val/auc" in row) for row in found] == [(step + 1) % EVERY == 0 for step in range(STEPS)]
    last = found[-1]
    assert {"val/accuracy", "val/accuracy/true", "val/accuracy/wrong_pose", "val/accuracy/other_object"} <= last.keys()
    assert any(key.startswith("val/accuracy_at_deg/") for key in last)
    rates = [row["lr"] for row in found]
    assert rates[0] == pytest.approx(0.5 * rates[1]) and rates[1] == max(rates) and rates[-1] < 0.2 * rates[1]


def test_the_result_tells_the_best_and_the_classifier_is_the_one_that_was_judged(whole, words):
    result = json.loads((whole / "result.json").read_text())
    validated = [row for row in rows(whole) if "val/auc" in row]
    best = max(validated, key=lambda row: row["val/auc"] + row["val/derivative_cosine"] - row["val/ascent_error"])
    assert result["best_step"] == best["step"] + 1 and result["models"] == "toybox" and result["damaged"] == []
    assert result["val/auc"] == pytest.approx(best["val/auc"], abs=0.05)  # half precision
    model, _ = load_classifier(whole / "best", 16)
    saved = torch.load(whole / "checkpoints" / f"step_{STEPS:06d}.pt", weights_only=True)["parts"]["learner"]
    last = PairClassifier.load(whole / "last").state_dict()
    assert {"direction.weight", "direction.bias"} == {key for key in saved if not key.startswith("classifier.")}
    for key, value in last.items():
        torch.testing.assert_close(value, saved[f"classifier.{key}"], rtol=2e-3, atol=1e-4)
    assert model.settings == ClassifierSettings(**json.loads((whole / "best" / "config.json").read_text()))


def test_it_learns(go, words, tmp_path):
    """Wrong poses off: 28 toys of 16 pixels are soon told apart (by chance the loss is 0.693)."""
    more = ["data.wrong_pose_share=0", "training.objects=8", "training.steps=200", "training.lr=0.003"]
    more += ["training.step_weight=0"]
    more += ["classifier.hidden_size=32", "classifier.head_width=64", "training.warm_up=10", "every.checkpoint=0"]
    more += ["augmentation.jitter=0", "augmentation.blur=0", "every.validate=0", "training.direction_weight=0"]
    assert go(words(*more)) == 0, (tmp_path / "stderr").read_text()
    losses = [row["loss"] for row in rows(run_folder(tmp_path))]
    assert sum(losses[-20:]) / 20 < 0.6


def test_the_derivative_can_be_taught(go, words, tmp_path):
    """28 toys of 16 pixels, two views of eight at a time: the cosine climbs from nothing."""
    more = ["training.objects=8", "training.steps=200", "training.lr=0.003", "training.derivative_weight=3"]
    more += ["training.ascent=0", "training.step_weight=0"]
    more += ["classifier.hidden_size=32", "classifier.head_width=64", "training.warm_up=10", "every.checkpoint=0"]
    more += ["augmentation.jitter=0", "augmentation.blur=0", "every.validate=200"]
    assert go(words(*more)) == 0, (tmp_path / "stderr").read_text()
    found = rows(run_folder(tmp_path))
    cosines = [row["derivative_cosine"] for row in found]
    assert abs(sum(cosines[:5]) / 5) < 0.1 and sum(cosines[-20:]) / 20 > 0.15
    assert found[-1]["val/derivative_cosine"] > 0.1 and "val/ascent_error" not in found[-1]


def test_a_step_can_be_taught_with_guided_estimates(go, words, tiny_sd_folder, toys, tmp_path):
    more = ["estimates.guided=1", "training.steps=3", "training.derivative_weight=0"]
    more += [f"models.text_to_image.source={tiny_sd_folder('epsilon')}", "models.text_to_image.image_size=16"]
    assert go(words(*more)) == 0, (tmp_path / "stderr").read_text()
    assert all(0 < row["step_error"] < MOST_ERROR for row in rows(run_folder(tmp_path)))


def test_a_run_with_guided_estimates_repeats_itself(go, words, tiny_sd_folder, tmp_path):
    """Its threads ask the prior while the main thread switches attention to what has a second derivative."""
    more = ["estimates.guided=1", "training.steps=4", "training.derivative_weight=1", "models.dtype=float32"]
    more += [f"models.text_to_image.source={tiny_sd_folder('epsilon')}", "models.text_to_image.image_size=16"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert go(words(*more), one) == go(words(*more), two) == 0, (one / "stderr").read_text()
    assert_same_run(run_folder(one), run_folder(two))


def test_guided_estimates_want_captions_and_something_to_correct(go, words, toys, tmp_path):
    assert go(words("estimates.guided=0.5", "training.derivative_weight=0", "training.step_weight=0")) == 2
    said = (tmp_path / "stderr").read_text()
    assert "training.step_weight" in said and said.count("\n") == 1
    bare = tmp_path / "bare"
    shutil.copytree(toys, bare)
    (bare / "captions.json").unlink()
    assert go(words("estimates.guided=0.5", f"data.folder={bare}")) == 2
    said = (tmp_path / "stderr").read_text()
    assert "captions.json" in said and said.count("\n") == 1


def test_it_goes_on_from_a_classifier_with_estimates(go, words, whole, tiny_sd_folder, tmp_path):
    more = ["estimates.share=1", "training.steps=2"]
    more += [f"models.text_to_image.source={tiny_sd_folder('epsilon')}", "models.text_to_image.image_size=16"]
    more += [f"start_from={whole / 'best'}", "training.lr=1e-12", "every.validate=1"]
    assert go(words(*more)) == 0, (tmp_path / "stderr").read_text()
    here, there = (
        load_file(folder / "model.safetensors") for folder in (run_folder(tmp_path) / "last", whole / "best")
    )
    for key, value in there.items():  # at no rate to speak of it stays what it was
        torch.testing.assert_close(here[key], value, rtol=2e-3, atol=1e-3)
    judged = next(row for row in rows(run_folder(tmp_path)) if "val/auc" in row)
    assert judged["val/auc"] == pytest.approx(json.loads((whole / "result.json").read_text())["val/auc"], abs=0.01)
    assert str(whole / "best") in (run_folder(tmp_path) / "environment.json").read_text()

    assert go(words(*more, "classifier.head_width=24", "name=other")) == 2
    said = (tmp_path / "stderr").read_text()
    assert "start_from=" in said and "wanted 24" in said and said.count("\n") == 1


# Kills and resumes


def test_a_finished_run_says_so_and_exports(go, words, whole, tmp_path):
    folder = whole.parents[3]
    assert go(words(f"export={tmp_path / 'out'}"), folder) == 0
    assert "is complete" in (folder / "stdout").read_text()
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(whole / "best/model.safetensors").keys()
    )
    load_classifier(tmp_path / "out", 16)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_anywhere_it_ends_as_if_nothing_had_been(launcher, words, whole, tmp_path, number):
    rng = random.Random(int(number))
    for n in (2, 5):
        launcher.start(tmp_path, words(), PATIENCE, "train_classifier")
        deadline = time.monotonic() + PATIENCE
        while sum(file.read_bytes().count(b"\n") for file in tmp_path.glob("runs/**/metrics.jsonl")) < n:
            assert time.monotonic() < deadline, (tmp_path / "stderr").read_text()
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(int((run_folder(tmp_path) / ".lock").read_text()), number)
        status = launcher.finish()
        if number == signal.SIGKILL:
            assert status == -number
        else:
            assert status == 128 + number and "the same command goes on" in (tmp_path / "stderr").read_text()
    assert launcher.run(tmp_path, words(), PATIENCE, "train_classifier") == 0
    assert_same_run(run_folder(tmp_path), whole)


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 60)
def test_two_processes_give_what_one_gives(words, whole, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29511"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # and "auto", as nobody types device=cpu on such a machine
    line = [*torchrun, str(ROOT / "train_classifier.py"), *words(), "device=auto"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    run = run_folder(tmp_path)
    assert "2 processes" in (run / "train.log").read_text()
    for here, there in zip(rows(run), rows(whole), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-5)
    here, there = (PairClassifier.load(folder / "last").state_dict() for folder in (run, whole))
    for key, value in there.items():
        torch.testing.assert_close(here[key], value, rtol=5e-3, atol=1e-4)  # saved in half precision


# DINO


def test_a_dino_backbone_is_taken_and_its_frozen_part_stays(go, words, tmp_path):
    settings: dict[str, Any] = {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 16,
        "n_blocks": 2,
        "n_heads": 2,
        "frozen_blocks": 1,
    }
    torch.manual_seed(5)
    made = PairClassifier(ClassifierSettings(**settings)).save(tmp_path / "other", torch.float32)
    state = {k[9:]: v for k, v in load_file(made / "model.safetensors").items() if k.startswith("backbone.")}
    (tmp_path / "dino").mkdir()
    save_file(state, tmp_path / "dino" / "model.safetensors")
    (tmp_path / "dino" / "config.json").write_text("{}")
    dino = [
        f"+models.classifier_backbone.source={tmp_path / 'dino'}",
        "classifier.frozen_blocks=1",
        "training.steps=2",
    ]
    assert go(words(*dino)) == 0, (tmp_path / "stderr").read_text()
    run = run_folder(tmp_path)
    trained = load_file(run / "last" / "model.safetensors")
    moved = {key: float((trained[f"backbone.{key}"].float() - state[key]).abs().max()) for key in state}
    frozen = [key for key in moved if not key.startswith(("blocks.1.", "norm."))]
    assert len(frozen) == 16 and all(moved[key] < 1e-3 for key in frozen)
    assert max(moved.values()) > 1e-4
    assert str(tmp_path / "dino") in (run / "environment.json").read_text()

    del state["blocks.1.norm1.bias"]
    state["odd.weight"] = torch.ones(3)
    save_file(state, tmp_path / "dino" / "model.safetensors")
    assert go(words(*dino, "name=again")) == 2
    said = (tmp_path / "stderr").read_text()
    assert "first missing: blocks.1.norm1.bias" in said and "first unexpected: odd.weight" in said


# What is refused


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["data.folder=/nowhere"], ["data.folder=/nowhere", "no such folder"]),
        (["data.folder=null"], ["data.folder is empty"]),
        (["data.background=[1,0]"], ["data.background=[1, 0]", "greys from 0 to 1"]),
        (["estimates.t=[0,2]"], ["estimates.t=[0, 2]", "timesteps from 0 to 1"]),
        (["start_from=/nowhere"], ["/nowhere is no pair classifier"]),
        (["training.steps=0"], ["training.steps=0", "wanted a whole number from 1"]),
        (["training.lr=fast"], ["training.lr='fast'"]),
        (["classifier.width=3"], ["unknown key 'classifier.width'"]),
        (["classifier.n_heads=3"], ["multiple", "n_heads 3"]),
        (["augmentation.hue=0.7"], ["augmentation.hue=0.7"]),
        (["training.objects=30"], ["this set has", "data.held_out_percent"]),
        (["data.held_out_percent=100"], ["data.held_out_percent=100"]),
        (["models=sd22"], ["unknown models 'sd22'"]),
        (["models=sd21"], ["classifier backbone (DINO ViT-S/16) not found: facebook/dino-vits16", "weights prefetch"]),
        (["device=cuda"], ["torch sees no CUDA device"]),
        (["precision=fp8"], ["precision='fp8'", "bf16"]),
        (["--folder=x"], ["unknown option --folder"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_mistake_is_one_line(go, words, tmp_path, wrong, says):
    assert go(words(*wrong), CUDA_VISIBLE_DEVICES="") == 2
    said = (tmp_path / "stderr").read_text()
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert [text for text in says if text not in said] == [], said
    assert (tmp_path / "stdout").read_text() == "" and not (tmp_path / "runs").exists()


def test_help_says_how_to_train_both():
    line = [sys.executable, str(ROOT / "train_classifier.py"), "--help"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert "models=toybox" in done.stdout and "models=sd21 data.folder=" in done.stdout and "torchrun" in done.stdout
