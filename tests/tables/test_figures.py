"""Losses with known jumps, and what the pictures are given."""

import json
import math
import os

import pytest

from jointdreamer.reading import Unreadable
from jointdreamer.tables import figures
from jointdreamer.tables.definitions import tables
from jointdreamer.tables.figures import average, figure8, figure10, fluctuation, loss_curve
from jointdreamer.tables.runs import plan_jobs


def test_a_constant_loss_does_not_jump_and_a_doubling_one_jumps_by_log_2_whatever_its_size():
    assert fluctuation({0: 3.0, 10: 3.0, 20: 3.0}) == 0
    for size in (1.0, 1e6):
        assert fluctuation({0: size, 10: 2 * size, 20: size}) == pytest.approx(math.log(2))
    assert math.isnan(fluctuation({0: 1.0}))
    assert fluctuation({20: 4.0, 0: 1.0, 10: 2.0}) == pytest.approx(math.log(2))  # by step, not by place


def test_curves_are_averaged_where_all_of_them_are():
    assert average([{0: 1.0, 10: 3.0}, {0: 3.0, 10: 5.0, 20: 9.0}]) == {0: 2.0, 10: 4.0}


@pytest.fixture
def drawn(monkeypatch):
    seen = {}
    monkeypatch.setattr(figures, "plot_curves", lambda path, panels: seen.update(panels) or path)
    return seen


def write_metrics(folder, losses, every=1):
    folder.mkdir(parents=True)
    rows = [{"step": step, "loss": 9.0, "loss/jsd": loss} for step, loss in enumerate(losses) if step % every == 0]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text("{}")


def test_rows_that_hold_no_loss_are_skipped(tmp_path):
    rows = [
        '{"step": 0, "loss/jsd": 2.0}',
        "",
        "{",
        "[]",
        "null",
        '{"step": 10}',
        '{"step": 20, "loss/jsd": null}',
        "[" * 3000,
    ]
    rows += ['{"step": "30", "loss/jsd": 1}', '{"step": 40, "loss/jsd": NaN}', '{"step": 50, "loss/jsd": 4.0}', "\xff"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    assert loss_curve(tmp_path) == {0: 2.0, 50: 4.0}
    for content in ("", "junk"):
        (tmp_path / "metrics.jsonl").write_text(content)
        with pytest.raises(Unreadable, match="holds no loss"):
            loss_curve(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(Unreadable):
        loss_curve(tmp_path)


def test_a_finer_log_does_not_change_the_curve(tmp_path):
    losses = [float(step) + 1 for step in range(31)]
    write_metrics(tmp_path / "fine", losses)
    write_metrics(tmp_path / "coarse", losses, every=10)
    assert loss_curve(tmp_path / "fine") == loss_curve(tmp_path / "coarse") == {0: 1.0, 10: 11.0, 20: 21.0, 30: 31.0}


def test_fig_8_tells_the_jumps_of_both_and_draws_them_over_their_means(tmp_path, drawn):
    table = tables()["fig8"]
    jobs = plan_jobs(table, "toybox", ["a cat", "a pig"], tmp_path, (0,), tmp_path)
    for job in jobs:
        calm = [2.0] * 21
        wild = [4.0 if step % 20 else 1.0 for step in range(21)]
        write_metrics(job.folder, wild if job.row.label == "SDS" else calm)
    said = figure8(table, "toybox", jobs, tmp_path / "fig8.png").splitlines()
    assert said[4] == f"| SDS | 2 | {math.log(4):.2f} | {math.log(4):.2f} (0.00) | 2 |"
    assert said[5] == "| JSD | 2 | 0.00 | 0.00 (0.00) | 2 |"
    assert drawn["loss over its mean, all runs"]["JSD"] == ([0.0, 10.0, 20.0], [1.0, 1.0, 1.0])
    assert drawn["loss over its mean, one run"]["SDS"] == ([0.0, 10.0, 20.0], [0.5, 2.0, 0.5])
    assert "| JSD | 0 | - |" in figure8(table, "toybox", jobs[:1], tmp_path / "fig8.png")


def test_fig_10_draws_the_sums_over_their_weights_and_the_others_level(drawn, tmp_path):
    table = tables(("0.1", "10"))["fig10"]
    values = {"table3/none": 90.0, "fig10/sum_10": 20.0, "fig10/sum_0.1": 80.0, "table3/mvs": 5.0}
    groups = {name: {"janus": {"mean": value}, "r_precision": None} for name, value in values.items()}
    figure10(table, "toybox", groups, tmp_path / "fig10.png")
    janus = drawn["Janus, %, over log10 of the weight"]
    assert janus == {
        "SDS + weight x MVDream": ([-1.0, 1.0], [80.0, 20.0]),
        "SDS": ([-1.0, 1.0], [90.0, 90.0]),
        "JSD": ([-1.0, 1.0], [5.0, 5.0]),
    }
    assert drawn["R-Precision, %, over log10 of the weight"] == {}


def test_the_pictures_are_files(tmp_path):
    groups = {"table3/mvs": {"janus": {"mean": 5.0}}}
    figure10(tables(("1",))["fig10"], "toybox", groups, tmp_path / "fig10.png")
    assert (tmp_path / "fig10.png").read_bytes().startswith(b"\x89PNG")
