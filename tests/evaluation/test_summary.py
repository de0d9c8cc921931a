import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jointdreamer.errors import UserError
from jointdreamer.evaluation.measure import Measured
from jointdreamer.evaluation.runs import Run
from jointdreamer.evaluation.summary import caption_set, comparable_runs, digest, grouped, scores, summarise, text


def run(method: str, prompt: str, seed: int = 0, **config) -> Run:
    whole = {"name": method, "prompt": prompt, "seed": seed, "models": {"name": "toybox"}, "energy": {"name": method}}
    folder = Path("/runs") / method / prompt / str(seed)
    return Run(folder, whole | config, {"minutes": 2.0, "steps": 1}, folder / "c.pt", f"{method}{prompt}{seed}", None)


def seen(features, janus: Any = False, front: Any = True) -> Measured:
    features = np.asarray(features, np.float64)
    return Measured(features, features, bool(janus), 0.9, bool(front), None, None, 12.5, Path("/runs/sheet.png"))


def test_captions_are_the_runs_own_each_once():
    runs = [run("mvs", "a cat"), run("none", "a cat"), run("mvs", "a dog"), run("none", "a dog", 1)]
    assert caption_set(runs, None) == ["a cat", "a dog"]
    assert caption_set(runs, ["a cow", "a dog ", "a cat", "a cow"]) == ["a cow", "a dog", "a cat"]


def test_groups_compare_by_the_prompts_that_all_have():
    runs = [run("mvs", "a cat"), run("none", "a cat"), run("mvs", "a dog")]
    runs += [run("mvs", "a cat", 1), run("mirror", "a cow")]
    kept, left_out, said = comparable_runs(runs, None, ["method"])
    assert kept == [runs[0], runs[1], runs[3]] and said.startswith("The 1 prompt(s) that all groups share; 2 runs")
    assert left_out == [
        {"folder": "/runs/mirror/a cow/0", "why": "method=mirror shares no prompt with the other groups"},
        {"folder": "/runs/mvs/a dog/0", "why": "method=none has no run of its prompt 'a dog'"},
    ]
    for group_by in ([], ["prompt"], ["method", "prompt"]):
        assert comparable_runs(runs, None, group_by) == (runs, [], "All prompts.")
    alike = [runs[0], runs[1]]
    assert comparable_runs(alike, None, ["method"]) == (alike, [], "All prompts: every group has them.")


def test_groups_that_share_nothing_stay_and_that_is_said():
    runs = [run("mvs", "a cat"), run("none", "a dog")]
    kept, left_out, said = comparable_runs(runs, None, ["method"])
    assert kept == runs and not left_out and "share no prompt" in said and "do not compare" in said


def test_runs_whose_prompt_the_caption_set_lacks_are_left_out():
    runs = [run("mvs", "a cat"), run("none", "a dog")]
    kept, left_out, _ = comparable_runs(runs, ["a dog", "a cow"], ["method"])
    assert kept == runs[1:]
    assert left_out == [{"folder": "/runs/mvs/a cat/0", "why": "the caption set lacks its prompt 'a cat'"}]
    with pytest.raises(UserError, match="lacks 'a cat'.*/runs/mvs/a cat/0"):
        comparable_runs(runs, ["a cow"], ["method"])


def test_runs_are_grouped_by_any_keys():
    runs = [run("mvs", "a", seed, schedule={"steps": 10 * (1 + seed), "t": [[0, 1]]}) for seed in (0, 1)]
    runs.append(run("none", "a"))
    assert [len(members) for members in grouped(runs, ["energy"]).values()] == [2, 1]
    assert list(grouped(runs, ["method", "schedule.steps"])) == [("mvs", "10"), ("mvs", "20"), ("none", "null")]
    assert text(runs[0], "schedule.t") == "[[0, 1]]"
    assert list(grouped(runs, [])) == [()]
    for key in ("schedule.stepz", "seed.of", "nothing"):
        with pytest.raises(UserError, match=f"no run has '{key}'"):
            grouped(runs, [key])


def test_a_run_s_scores_by_hand(tmp_path):
    captions = ["a", "b"]
    row = scores(run("mvs", "b"), seen([[1, 0], [0, 1], [0, 2], [1, 1]]), captions, np.eye(2), tmp_path)
    assert row["clip_score"] == pytest.approx(100 * (0 + 1 + 1 + 0.5**0.5) / 4)
    assert row["r_precision"] == 50  # the second and third; the last is a tie
    assert row["r_at_5"] is None and row["turntable"] is None and row["mesh"] is None
    assert row["consistency"] == pytest.approx((0 + 1 + 0.5**0.5 + 0.5**0.5) / 4)
    assert (row["minutes"], row["peak_memory_gb"]) == (2, None)
    for odd in (1e300, -1, math.inf, 10**18, "2", True, [2]):
        one = run("mvs", "b")
        one.result["minutes"] = odd
        assert scores(one, seen([[1, 0]]), captions, np.eye(2), tmp_path)["minutes"] is None
    alone = scores(run("mvs", "a"), seen([[1, 0]]), ["a"], np.eye(2)[:1], tmp_path)
    assert alone["r_precision"] is None and alone["consistency"] is None


def test_a_group_s_numbers_by_hand(tmp_path):
    runs = [run("mvs", "a"), run("mvs", "b"), run("none", "a"), run("none", "b", 1)]
    looked = [seen([[1, 0], [1, 0]]), seen([[1, 0], [0, 1]]), seen([[2, 2], [4, 2]], True), seen([[0, 1], [0, 1]])]
    captions = ["a", "b"]
    rows = [scores(one, it, captions, np.eye(2), tmp_path) for one, it in zip(runs, looked, strict=True)]
    reference = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    mvs, none = summarise(runs, rows, looked, ["method"], 0.95, reference)
    assert (mvs["keys"], mvs["runs"], mvs["prompts"], mvs["seeds"]) == ({"method": "mvs"}, 2, 2, 1)
    assert none["seeds"] == 2
    assert mvs["r_precision"]["mean"] == 75 and mvs["r_precision"]["n"] == 2
    assert (mvs["janus"]["mean"], none["janus"]["mean"]) == (0, 50)
    assert mvs["resultant_length"] is None and mvs["r_at_5"] is None
    # views (1,0) x 3, (0,1): mean (3/4, 1/4), covariance 1/4 [[1, -1], [-1, 1]], which has the eigenvalues 1/2 and 0;
    # reference: mean (1, 1), covariance 4/3 I. The roots: sqrt(1/2 4/3)
    by_hand = (1 / 16 + 9 / 16) + 1 / 2 + 8 / 3 - 2 * (2 / 3) ** 0.5
    assert mvs["fid"] == pytest.approx(by_hand) and mvs["fid_images"] == 4
    assert summarise(runs, rows, looked, [], 0.95, None)[0]["fid"] is None


def test_what_has_no_front_is_neither_janus_nor_free_of_it(tmp_path):
    runs = [run("mvs", "a", seed) for seed in range(4)]
    looked = [seen([[1, 0]], janus, front) for janus, front in zip((0, 0, 1, 1), (1, 0, 0, 1), strict=True)]
    rows = [scores(one, it, ["a"], np.eye(2)[:1], tmp_path) for one, it in zip(runs, looked, strict=True)]
    assert [row["front"] for row in rows] == [True, False, True, True]  # two fronts are fronts
    (group,) = summarise(runs, rows, looked, [], 0.95, None)
    assert (group["janus"]["mean"], group["no_front"]["mean"]) == (50, 25)


def test_features_of_another_width_than_the_reference_s_are_one_line(tmp_path):
    looked = [seen([[1, 0], [0, 1]])]
    rows = [scores(run("mvs", "a"), looked[0], ["a"], np.eye(2)[:1], tmp_path)]
    with pytest.raises(UserError, match="have 3 numbers, those of the runs 2"):
        summarise([run("mvs", "a")], rows, looked, [], 0.95, np.eye(3))


def test_the_digest_is_of_the_objects_not_of_their_order():
    runs = [run("mvs", "a"), run("none", "a")]
    assert digest(runs) == digest(runs[::-1]) != digest(runs[:1])
