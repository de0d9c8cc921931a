"""Weak scaling, and cards on paper."""

import json
import sys

import pytest

from benchmarks import ranks


def test_a_plan_sends_every_gradient_around_a_ring(tmp_path, capsys, monkeypatch):
    file = tmp_path / "step.json"
    stage = {"seconds_per_step": {"mean": 0.1}}
    file.write_text(json.dumps({"runs": [{"energy": "none", "resolutions": {"64": stage}}]}))
    monkeypatch.setattr(ranks, "gradient_sizes", lambda: {"geometry": 1_000_000, "background": 1000})
    found = ranks.plan(4, file)
    assert found["bytes"] == 4 * 1_001_000 and found["ring_bytes"] == pytest.approx(1.5 * found["bytes"])
    assert found["seconds"]["PCIe 5 x16"] == pytest.approx(found["ring_bytes"] / 64e9)
    assert "of a step of none 64 px" in capsys.readouterr().out


def test_a_plan_without_a_measurement_says_how_to_make_one(tmp_path):
    with pytest.raises(ranks.UserError, match="benchmarks.step --paper-size"):
        ranks.seconds_on_one_card(tmp_path / "nothing.json")


def test_the_paper_s_scene_has_its_hash_grid():
    assert ranks.gradient_sizes()["geometry:encoding"] == 12_599_920


def test_efficiency_is_judged_only_where_each_rank_has_a_core():
    found = {"1": {"seconds_per_step": 1.0}, "2": {"seconds_per_step": 1.25}}
    assert ranks.compared(found)["2"]["efficiency"] == 0.8
    assert [one["holds"] for one in ranks.judge(found, enough=True)] == [False]
    assert [one["holds"] for one in ranks.judge(found, enough=False)] == [None]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_from_the_command_line(monkeypatch, tmp_path, capsys):
    out = tmp_path / "ranks.json"
    words = ["--quick", "--device", "cpu", "--repeats", "2", "--warmup", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmarks/ranks.py", *words, "models=toybox", "schedule=smoke"])
    assert ranks.main() == 0, capsys.readouterr().err
    found = json.loads(out.read_text())["ranks"]
    assert found["1"]["megabytes"] == 0 and found["2"]["megabytes"] > 0.1 and found["2"]["reduction_alone"] > 0
    assert 0 < found["2"]["share_reducing"] < 1
