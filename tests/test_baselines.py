"""The paper's baselines as choices of the one loop of train.py, with tiny random models."""

import json
from pathlib import Path

import pytest
import torch


def finished(launcher, folder: Path, words: list[str]) -> Path:
    assert launcher.run(folder, ["prompt=a red robot", "device=cpu", *words]) == 0, (folder / "stderr").read_text()
    (result,) = folder.glob("runs/**/result.json")
    return result.parent


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def parameters(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "step_000002.pt", weights_only=True)["parts"]["scene"]


@pytest.fixture(scope="module")
def sds(launcher, tiny_run, tmp_path_factory) -> Path:
    return finished(launcher, tmp_path_factory.mktemp("sds"), tiny_run("energy=none"))


def test_mvdream_distils_the_multi_view_model_alone(launcher, tiny_run, tmp_path, sds):
    run = finished(launcher, tmp_path, tiny_run("distillation=mvdream"))
    assert run.relative_to(tmp_path).parts[:2] == ("runs", "mvdream")
    assert not torch.equal(next(iter(parameters(run).values())), next(iter(parameters(sds).values())))
    weights = json.loads((run / "environment.json").read_text())["weights"]
    assert weights and not any("/sd_" in weight["path"] for weight in weights)  # the other model is not even loaded


def test_the_sum_adds_its_second_term_and_without_weight_is_sds(launcher, tiny_run, tmp_path, sds):
    run = finished(launcher, tmp_path / "1", tiny_run("distillation=sum", "schedule.loss.mvdream=0.5"))
    assert run.relative_to(tmp_path / "1").parts[:2] == ("runs", "sum_0.5")
    for row in rows(run):
        parts = sum(value * row[f"now/{name}"] for name, value in row.items() if name.startswith("loss/"))
        assert row["loss/mvdream"] > 0 and row["loss"] == pytest.approx(parts, rel=1e-5)
    assert rows(run)[0]["loss/jsd"] == rows(sds)[0]["loss/jsd"]  # drawn first, so untouched by the second term

    none = finished(launcher, tmp_path / "0", tiny_run("distillation=sum", "schedule.loss.mvdream=0"))
    assert "loss/mvdream" not in rows(none)[0]
    assert [row["loss"] for row in rows(none)] == [row["loss"] for row in rows(sds)]
    here, there = parameters(none), parameters(sds)
    assert here.keys() == there.keys() and all(torch.equal(value, there[name]) for name, value in here.items())
