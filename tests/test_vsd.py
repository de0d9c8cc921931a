"""distillation=vsd as a run of train.py: it resumes with its LoRA, takes an energy, and says what it cannot use."""

from pathlib import Path

import pytest
import torch

VSD = ["prompt=a bear", "distillation=vsd", "every.checkpoint=2"]


def folder(out: Path) -> Path:
    (config,) = out.glob("runs/**/config.yaml")
    return config.parent


def checkpoint(out: Path, step: int):
    return torch.load(folder(out) / "checkpoints" / f"step_{step:06d}.pt", weights_only=True)["parts"]


@pytest.mark.parametrize("energy", ["none", "mvs"])
def test_an_interrupted_run_goes_on_to_the_same_bits(launcher, tiny_run, tmp_path, energy):
    for out, lengths in (("whole", [4]), ("parts", [2, 4])):
        for steps in lengths:
            words = tiny_run(*VSD, f"energy={energy}", f"schedule.steps={steps}")
            assert launcher.run(tmp_path / out, words) == 0, (tmp_path / out / "stderr").read_text()
    whole, parts = (checkpoint(tmp_path / out, 4) for out in ("whole", "parts"))
    assert all(torch.equal(one, two) for one, two in zip(whole["terms"]["lora"], parts["terms"]["lora"], strict=True))
    assert all(torch.equal(whole["scene"][key], parts["scene"][key]) for key in whole["scene"])
    before, after = (checkpoint(tmp_path / "parts", step)["terms"]["lora"] for step in (2, 4))
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["distillation.terms.vsd.baseline.rank=0"], "baseline.rank=0: wanted a whole number from 1 to 256"),
        (["distillation.terms.vsd.baseline.name=x"], "unknown distillation.terms.vsd.baseline 'x'"),
        (["+distillation.terms.vsd.baseline.colour=1"], "unknown key 'distillation.terms.vsd.baseline.colour'"),
        (["schedule.loss.lora=-1"], "schedule.loss.lora: wanted numbers from 0"),
        (["~schedule.lr.lora"], "schedule.lr.lora is missing"),
    ],
)
def test_mistakes_are_one_line(launcher, tiny_run, tmp_path, words, says):
    status = launcher.run(tmp_path, tiny_run(*VSD, *words))
    said = (tmp_path / "stderr").read_text()
    assert status == 2 and says in said and "Traceback" not in said, said
