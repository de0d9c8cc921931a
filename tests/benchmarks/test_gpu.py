"""The command for a card, on a CPU: its path, what it refuses, and how it judges."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import METHODS, apart, judge, kernels, method_costs, schedule


def main(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py", *words])
    return gpu.main()


def test_without_a_card_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(monkeypatch) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "--smoke" in said.err
    assert main(monkeypatch, "--smoke", "--device", "cpu", "--methods", "SDX") == 2
    assert "--methods SDX: wanted some of SDS" in capsys.readouterr().err


def test_the_kernels_agree_with_plain_pytorch():
    found = kernels("cpu")
    assert len(found) == 4 and all(one["holds"] for one in found), found


def test_a_wrong_kernel_is_seen_and_one_that_breaks_ends_no_other(monkeypatch):
    checks = {"wrong": (lambda device: 0.5, 1e-3), "broken": (lambda device: 1 / 0, 1e-3)}
    monkeypatch.setattr(gpu, "CHECKS", checks | {"right": (lambda device: 1e-6, 1e-3)})
    assert [one["holds"] for one in kernels("cpu")] == [False, False, True]
    assert apart(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(1 / 18**0.5)


def test_each_resolution_has_as_many_steps():
    assert schedule((64, 256), 5)[:2] == ["schedule.steps=10", "schedule.resolution=[[0,64],[5,256]]"]


def test_what_has_no_time_left_or_fails_is_said(monkeypatch):
    found = {"SDS": {"left_out": "no time left"}, "MVS": {"failed": "out of memory"}}
    assert [one["holds"] for one in judge(found, quick=False)] == [None, False]

    def late(*given, **options):
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(gpu, "measure_run", late)
    args = type("Args", (), {"smoke": False})
    assert method_costs(args, [], {}, None, 100) == {"left_out": "no time left"}  # pyright: ignore[reportArgumentType]
    assert method_costs(args, [], {}, None, 5) == {"left_out": "no time left"}  # pyright: ignore[reportArgumentType]


def test_a_fast_card_holds_what_is_wanted():
    def one(seconds: float, gb: float = 10.0) -> dict:
        return {"seconds": {"64": seconds, "512": 1.0}, "gb": gb, "startup": 5.0}

    assert all(verdict["holds"] for verdict in judge({"SDS": one(0.07), "MVS": one(0.075)}, quick=False))
    slow = judge({"SDS": one(0.07), "MVS": one(0.09)}, quick=False)
    assert [verdict["holds"] for verdict in slow].count(False) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_its_path_on_a_cpu(monkeypatch, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    words = ("--smoke", "--device", "cpu", "--threads", "1", "--methods", "SDS", "--out", str(out))
    assert main(monkeypatch, *words) == 0
    found = json.loads(out.read_text())
    assert found["methods"]["SDS"]["seconds"].keys() == {"8", "12"} and found["methods"]["SDS"]["gb"] > 0
    assert found["profile"]["steps"] > 0 and found["profile"]["operations"]
    assert (tmp_path / found["profile"]["trace"]).stat().st_size > 1000
    assert set(METHODS) == {"SDS", "CLS", "I2I", "MVS", "VSD", "DMTet"}
