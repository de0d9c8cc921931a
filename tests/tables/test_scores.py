"""Tables from groups that are written by hand."""

import json

import pytest

from jointdreamer.errors import UserError
from jointdreamer.evaluation.table import number_cell as cell
from jointdreamer.tables.definitions import HELD_OUT, Row, Table
from jointdreamer.tables.runs import plan_jobs
from jointdreamer.tables.scores import evaluate, is_held_out, markdown, read_groups, score

ROWS = (Row("SDS", "table3/none", {"FID": "429.2"}), Row("not built", None, {"FID": "1.0"}), Row("JSD", "table3/mvs"))


def interval(mean, low=None, high=None, n=4):
    return {"mean": mean, "low": low, "high": high, "n": n}


def group(name, **measures):
    return {"keys": {"method": name}, "runs": 4, "prompts": 2, "seeds": 2, **measures}


def groups(*found):
    return {one["keys"]["method"]: one for one in found}


def test_cells():
    assert cell(None, 1) == "-"
    assert cell(3.14159, 2) == "3.14"
    assert cell(interval(50.04, 40.0, 60.06), 1) == "50.0 [40.0, 60.1]"
    assert cell(interval(50.0), 1) == "50.0"
    assert cell(interval(3.0, 2.0, 4.0), 2, base=2.0) == "1.50 [1.00, 2.00]"


def test_ours_beside_the_paper_s_and_dashes_for_what_nobody_knows():
    table = Table("T", ROWS, ("FID", "CLIP Score"), "A note.")
    found = {"all": groups(group("table3/none", fid=7.25, clip_score=interval(20.0, 19.0, 21.0)))}
    assert markdown(table, "toybox", found).splitlines() == [
        "### T, models=toybox",
        "",
        "|  | runs | FID | paper | CLIP Score |",
        "|---|---|---|---|---|",
        "| SDS | 4 | 7.2 | 429.2 | 20.0 [19.0, 21.0] |",
        "| not built | - | - | 1.0 | - |",
        "| JSD | - | - | - | - |",
        "",
        "A note. The toybox's numbers compare with each other, not with the paper's.",
    ]


def test_costs_are_relative_to_the_first_row():
    table = Table("T", ROWS, ("s a step, relative",))
    found = {"all": groups(group("table3/none", seconds_per_step=interval(0.2, 0.1, 0.3)),
                           group("table3/mvs", seconds_per_step=interval(0.3, 0.3, 0.4)))}  # fmt: skip
    lines = markdown(table, "toybox", found).splitlines()
    assert lines[4] == "| SDS | 4 | 1.00 [0.50, 1.50] |" and lines[6] == "| JSD | 4 | 1.50 [1.50, 2.00] |"
    del found["all"]["table3/none"]
    assert markdown(table, "toybox", found).splitlines()[6] == "| JSD | 4 | - |"


def test_held_out_scores_come_from_their_own_evaluation_and_only_on_the_toybox():
    table = Table("T", ROWS, ("R-Precision", HELD_OUT))
    found = {"all": groups(group("table3/mvs", r_precision=interval(90.0))),
             "held out": groups(group("table3/mvs", r_precision=interval(70.0)))}  # fmt: skip
    assert markdown(table, "toybox", found).splitlines()[6] == "| JSD | 4 | 90.0 | 70.0 |"
    assert HELD_OUT not in markdown(table, "sd21", found)


def fake_evaluation(tmp_path, monkeypatch, status=0):
    """An evaluate.py that keeps its words and answers with one group."""
    answer = json.dumps({"id": "1", "groups": [group("table3/none", fid=1.0)]})
    (tmp_path / "evaluate.py").write_text(
        "import json, pathlib, sys\n"
        "out = pathlib.Path(next(w[8:] for w in sys.argv if w.startswith('out_dir=')))\n"
        "out.mkdir(parents=True)\n"
        "(out / 'words.json').write_text(json.dumps(sys.argv[1:]))\n"
        f"(out / 'evaluation.json').write_text({answer!r})\n"
        f"sys.exit({status})\n"
    )
    monkeypatch.setattr("jointdreamer.tables.scores.ROOT", tmp_path)


def test_only_finished_runs_are_scored_each_once_and_the_held_out_ones_apart(tmp_path, monkeypatch):
    fake_evaluation(tmp_path, monkeypatch)
    prompts = ["a red cat", "a brown cat with a red cape", "a white frog", "a spotted red bear with an orange flag"]
    held = [prompt for prompt in prompts if is_held_out(prompt)]
    assert 0 < len(held) < 4
    table = Table("T", ROWS, (HELD_OUT,))
    jobs = plan_jobs(table, "toybox", prompts, tmp_path / "p.txt", (0,), tmp_path / "runs")
    for job in jobs[:-1]:
        job.folder.mkdir(parents=True)
        (job.folder / "result.json").write_text("{}")
    found = score(jobs, table, "toybox", tmp_path / "p.txt", tmp_path / "scores", report=True)
    assert found["all"] == found["held out"] == groups(group("table3/none", fid=1.0))
    words = {part: json.loads((tmp_path / "scores" / part / "words.json").read_text()) for part in ("all", "held_out")}
    assert [w for w in words["all"] if w.startswith("runs=")] == [f"runs={job.folder}" for job in jobs[:-1]]
    assert sum(w.startswith("runs=") for w in words["held_out"]) == sum(job.prompt in held for job in jobs[:-1])
    assert f"captions={tmp_path / 'p.txt'}" in words["held_out"]
    assert "report=true" in words["all"] and "report=false" in words["held_out"]
    assert score(jobs, table, "sd21", tmp_path / "p.txt", tmp_path / "others", False).keys() == {"all"}


def test_a_failed_evaluation_and_no_runs_are_one_line(tmp_path, monkeypatch):
    fake_evaluation(tmp_path, monkeypatch, status=2)
    with pytest.raises(UserError, match="status 2"):
        evaluate([tmp_path], tmp_path / "p.txt", tmp_path / "out", False)
    with pytest.raises(UserError, match="no run"):
        score([], Table("T", ROWS), "toybox", tmp_path, tmp_path, False)


def test_groups_are_found_by_the_name_of_their_runs(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps({"id": "1", "groups": [group("a"), group("b/c")]}))
    assert read_groups(tmp_path / "evaluation.json").keys() == {"a", "b/c"}


def test_what_people_prefer_is_a_column_of_the_study_about_these_runs_only(tmp_path, capsys):
    names = ("table3/none", "table3/mvs")
    (tmp_path / "evaluation.json").write_text(json.dumps({"id": "1", "groups": [group(name) for name in names]}))
    nobody = {"wins": 0, "n": 0, "share": None, "low": None, "high": None}
    some = {"wins": 3, "n": 4, "share": 0.75, "low": 0.3, "high": 0.95}
    methods = [{"method": "table3/none", "preferred": nobody}, {"method": "table3/mvs", "preferred": some}]
    study = tmp_path / "study.json"
    study.write_text(json.dumps({"evaluation": "1", "methods": [*methods, {"method": "another", "preferred": some}]}))
    table = Table("T", (Row("SDS", names[0], {"users prefer, %": "18.2"}), Row("JSD", names[1])), ("users prefer, %",))
    lines = markdown(table, "toybox", {"all": read_groups(tmp_path / "evaluation.json")}).splitlines()
    assert lines[4:6] == ["| SDS | 4 | - | 18.2 |", "| JSD | 4 | 75.0 [30.0, 95.0] | - |"]
    assert not capsys.readouterr().err
    study.write_text(json.dumps({"evaluation": "2", "methods": methods}))
    assert "preferred" not in read_groups(tmp_path / "evaluation.json")["table3/mvs"]
    assert "study.json: it is about other runs" in capsys.readouterr().err
    odd = [{**some, "share": "0.5"}, {**some, "low": None}, {**some, "high": 7}, 1, None, [], {}]
    contents = [json.dumps({"evaluation": "1", "methods": [{"method": "table3/mvs", "preferred": one}]}) for one in odd]
    for damaged in ("", "{", "[]", "null", "[" * 9000, '{"evaluation": "1", "methods": [1]}', *contents):
        study.write_text(damaged)
        assert "preferred" not in read_groups(tmp_path / "evaluation.json")["table3/mvs"]
        assert "study.json: damaged" in capsys.readouterr().err, damaged
