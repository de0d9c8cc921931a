"""Training is a product feature: it resumes exactly, and says in one line what is missing."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from jointdreamer.schedules import warm_up_and_cosine
from jointdreamer.toybox.recipes import denoising
from jointdreamer.toybox.recipes.judge import Judge
from jointdreamer.toybox.train import RECIPES, Trainer, main


def trainer(folder, steps):
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    return Trainer(folder, {"net": nn.Linear(3, 1)}, lr=1e-2, steps=steps)


def run(t, until=None):
    def loss(step, rng):
        if step == until:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.normal(size=(8, 3))).float()
        return (t.networks["net"](x) - x.sum(1, keepdim=True) + 0.1 * torch.randn(8, 1)).square().mean()

    t.run(loss, lambda step: None, every=5)


def test_a_stopped_training_ends_like_one_that_was_not(tmp_path):
    whole = trainer(tmp_path / "whole", 20)
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(trainer(tmp_path / "cut", 20), until=13)
    cut = trainer(tmp_path / "cut", 20)
    assert cut.step == 10
    run(cut)
    for a, b in (
        (whole.networks["net"].state_dict(), cut.networks["net"].state_dict()),
        (whole.average["net"], cut.average["net"]),
    ):
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert whole.curve == cut.curve


def test_the_average_of_a_frozen_network_is_the_network(tmp_path):
    t = trainer(tmp_path / "frozen", 5)
    t.networks["other"] = nn.Linear(2, 2).requires_grad_(False)
    t.average["other"] = {k: torch.zeros_like(v) for k, v in t.networks["other"].state_dict().items()}
    run(t)
    assert all(torch.equal(t.average["other"][k], v) for k, v in t.networks["other"].state_dict().items())


def test_the_learning_rate_is_a_plain_number_that_ends_low():
    rates = [warm_up_and_cosine(s, 1000) for s in range(1000)]
    assert all(type(r) is float for r in rates)  # a numpy number would make the checkpoint unreadable
    assert max(rates) == 1 and rates[-1] < 0.02


def test_what_must_come_first_is_named(tmp_path, capsys):
    assert main(["vae", "--folder", str(tmp_path)]) == 2
    assert "toybox.train data" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["vae", "--steps", "0"], ["data", "--pictures", "-1"], ["nonsense"]])
def test_bad_words_cost_one_line(words):
    done = subprocess.run([sys.executable, "-m", "jointdreamer.toybox.train", *words], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)  # 30 s alone, 100 s beside other jobs
def test_every_recipe_learns_its_first_steps_and_saves(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(denoising, "SHEET_STEPS", 2)
    monkeypatch.setattr(Judge, "EXTRA", 8)
    assert main(["data", "--folder", str(tmp_path), "--pictures", "12"]) == 0
    for model in RECIPES:
        assert main([model, "--folder", str(tmp_path), "--steps", "1", "--batch", "4", "--threads", "1"]) == 0
        assert list((tmp_path / model / "model").rglob("*.safetensors"))
