"""What raters say together, against published worked examples and counts by hand."""

import itertools
import json

import numpy as np
import pytest

from jointdreamer.errors import UserError
from jointdreamer.evaluation.report.study import aggregate_study, fleiss_kappa, study_table
from jointdreamer.evaluation.statistics import wilson

# Fleiss (1971), table 1: 30 patients, 6 psychiatrists; depression, personality disorder, schizophrenia, neurosis, other
PSYCHIATRISTS = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031 00501 30012 51000 02040 10203
00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""


def test_fleiss_kappa_gives_fleiss_own_example():
    counts = [[int(digit) for digit in row] for row in PSYCHIATRISTS.split()]
    assert np.allclose(np.sum(counts, 0) / 180, [0.144, 0.144, 0.167, 0.306, 0.239], atol=5e-4)
    assert fleiss_kappa(counts) == pytest.approx(0.430, abs=5e-4)


def test_kappa_of_full_agreement_of_chance_and_of_none():
    assert fleiss_kappa([[3, 0], [0, 3]]) == pytest.approx(1)
    assert fleiss_kappa([[1, 1], [1, 1]]) == pytest.approx(-1)
    assert fleiss_kappa([[2, 0], [0, 2], [1, 1], [1, 1]]) == pytest.approx(0)
    assert fleiss_kappa([[2, 0], [2, 0]]) is None  # all alike: chance would agree as well
    assert fleiss_kappa([[1, 0], [0, 1]]) is None and fleiss_kappa([]) is None


def test_kappa_with_unequal_numbers_of_ratings_counts_pairs():
    rng = np.random.default_rng(0)
    ratings = [list(rng.integers(0, 3, n)) for n in (2, 3, 5, 2, 4)]
    observed = [np.mean([a == b for a, b in itertools.permutations(subject, 2)]) for subject in ratings]
    everything = sum(ratings, [])
    chance = sum((everything.count(category) / len(everything)) ** 2 for category in range(3))
    counts = [[subject.count(category) for category in range(3)] for subject in ratings]
    expected = (np.mean(observed) - chance) / (1 - chance)
    assert fleiss_kappa(counts) == pytest.approx(expected)
    assert fleiss_kappa([*counts, [1, 0, 0]]) == pytest.approx(expected)  # a single rating says nothing of agreement


PROMPTS, METHODS = ("a pig", "a cat"), ("sds", "jsd")
EVALUATION = {
    "id": "abc",
    "runs": [{"prompt": prompt, "seed": 0, "method": method} for method in METHODS for prompt in PROMPTS],
}


def answer(prompt, janus, preferred, methods=METHODS):
    """janus: a mark for each method. preferred: a method."""
    objects = [{"method": m, "object": f"models/{prompt}{m}.js", "janus": janus[k]} for k, m in enumerate(methods)]
    return {
        "prompt": prompt,
        "seed": 0,
        "objects": objects,
        "preferred": methods.index(preferred) if preferred else None,
    }


@pytest.fixture
def study(tmp_path):
    """study("Ann", [answers]) -> a file."""

    def write(rater, answers, changes=()):
        content = {"kind": "jointdreamer-study", "version": 1, "evaluation": "abc", "rater": rater, "answers": answers}
        path = tmp_path / f"{rater}{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({**content, **dict(changes)}))
        return path

    return write


def test_counts_by_hand(study):
    files = [
        study("Ann", [answer("a pig", (True, False), "jsd"), answer("a cat", (True, False), "jsd")]),
        study("Bob", [answer("a pig", (False, True), "jsd", METHODS[::-1]), answer("a cat", (False, False), "sds")]),
        study("Cy", [answer("a pig", (True, None), None)]),
    ]
    found = aggregate_study(files, EVALUATION)
    assert found["raters"] == ["Ann", "Bob", "Cy"] and found["trials"] == 2 and found["evaluation"] == "abc"
    sds, jsd = found["methods"]
    assert (sds["method"], sds["objects"]) == ("sds", 2)
    # Bob saw jsd first: his marks of the pig are jsd no, sds yes
    assert (sds["janus"]["yes"], sds["janus"]["n"]) == (4, 5) and (jsd["janus"]["yes"], jsd["janus"]["n"]) == (0, 4)
    assert sds["janus"]["rate"] == 0.8 and (sds["janus"]["low"], sds["janus"]["high"]) == wilson(4, 5)
    assert (sds["preferred"]["wins"], sds["preferred"]["n"]) == (1, 4)
    assert jsd["preferred"]["share"] == 0.75 and (jsd["preferred"]["low"], jsd["preferred"]["high"]) == wilson(3, 4)
    agreement = found["agreement"]
    # objects (no, yes): sds pig (0, 3), sds cat (1, 1), jsd pig (2, 0), jsd cat (2, 0)
    expected = fleiss_kappa([[0, 3], [1, 1], [2, 0], [2, 0]])
    assert agreement["janus"] == {"kappa": expected, "subjects": 4}
    # preferred (sds, jsd): the pig (0, 2), the cat (1, 1)
    assert agreement["preferred"] == {"kappa": fleiss_kappa([[0, 2], [1, 1]]), "subjects": 2}
    table = study_table(found)
    assert "| sds | 80.0 [37.6, 96.4] | 5 | 25.0 [4.6, 69.9] | 4 |" in table and "3 rater(s)" in table


def test_two_runs_of_one_method_are_two_objects(study):
    evaluation = {**EVALUATION, "runs": [*EVALUATION["runs"], EVALUATION["runs"][0]]}
    three = answer("a pig", (True, False, True), "jsd", (*METHODS, "sds"))
    three["objects"][2]["object"] = "models/other.js"
    sds, _ = aggregate_study([study("Ann", [three])], evaluation)["methods"]
    assert sds["objects"] == 2 and sds["janus"]["n"] == 2 and sds["preferred"]["n"] == 1


def test_a_method_nobody_rated_has_no_share(study):
    found = aggregate_study([study("Ann", [answer("a pig", (True, None), None)])], EVALUATION)
    assert found["methods"][1]["janus"] == {"yes": 0, "n": 0, "rate": None, "low": None, "high": None}
    assert found["agreement"]["janus"]["kappa"] is None and "nothing was rated by two" in study_table(found)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"evaluation": "xyz"}, "is of another report: wanted answers about evaluation abc, got 'xyz'"),
        ({"kind": "shopping"}, "got some other JSON"),
        ({"version": 2}, "wanted version 1, got 2"),
        ({"rater": ""}, "names no rater"),
        ({"answers": None}, "no list of answers"),
        ({"answers": []}, "hold no answer"),
        ({"answers": [answer("a dog", (True, True), "jsd")]}, "answer 1 shows an object that the evaluation lacks"),
        ({"answers": [answer("a pig", (True, True), "vsd", ("sds", "vsd"))]}, "the evaluation lacks"),
        ({"answers": [answer("a pig", (True, "maybe"), "jsd")]}, "neither yes nor no"),
        ({"answers": [{**answer("a pig", (True, True), "jsd"), "preferred": 2}]}, "prefers what it did not show"),
        ({"answers": [answer("a pig", (True, True), "jsd")] * 2}, "answer 2 is the second"),
        ({"answers": [{"prompt": "a pig"}]}, "answer 1 lacks a part"),
        ({"answers": [None]}, "answer 1 lacks a part"),
    ],
)
def test_a_wrong_file_is_refused(study, changes, match):
    with pytest.raises(UserError, match=match):
        aggregate_study([study("Ann", [], changes)], EVALUATION)


def test_one_rater_twice_no_file_no_json(study, tmp_path):
    answers = [answer("a pig", (True, False), "jsd")]
    other = [answer("a pig", (False, False), None)]
    for first, second, rate in (({}, {}, 0), ({"saved": "2026-02"}, {"saved": "2026-01"}, 1), ({"saved": []}, {}, 1)):
        files = [study("Ann", answers, first), study("Ann", other, second)]
        found = aggregate_study(files, EVALUATION)
        assert found["raters"] == ["Ann"] and found["methods"][0]["janus"]["rate"] == rate
        assert found["left_out"][0]["file"] == str(files[rate == 1]) and "comes twice" in found["left_out"][0]["why"]
    with pytest.raises(UserError, match="names no file"):
        aggregate_study([], EVALUATION)
    with pytest.raises(UserError, match="none.json: absent"):
        aggregate_study([tmp_path / "none.json"], EVALUATION)
    (tmp_path / "cut.json").write_bytes(b'{"kind": "joint\xff')
    with pytest.raises(UserError, match="cut.json: damaged"):
        aggregate_study([tmp_path / "cut.json"], EVALUATION)


PIG = answer("a pig", (True, False), "jsd")
HEAD = {"kind": "jointdreamer-study", "version": 1, "evaluation": "abc", "rater": "Eve"}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b"3", b'"x"', b"[" * 5000 + b"]" * 5000, b"\xff\xfe", b"1e400", b"9" * 5000,
        *(
            json.dumps({**HEAD, **odd}).encode()
            for odd in (
                {}, {"answers": {}}, {"answers": 1}, {"answers": [[]]}, {"answers": [3]}, {"answers": ["a pig"]},
                {"answers": [PIG], "rater": ["Eve"]}, {"answers": [PIG], "rater": None},
                {"answers": [{**PIG, "objects": None}]}, {"answers": [{**PIG, "objects": {}}]},
                {"answers": [{**PIG, "objects": "ab"}]}, {"answers": [{**PIG, "objects": [None]}]},
                {"answers": [{**PIG, "objects": [{"method": []}]}]}, {"answers": [{**PIG, "prompt": []}]},
                {"answers": [{**PIG, "seed": {}}]}, {"answers": [{**PIG, "seed": float("inf")}]},
                {"answers": [{**PIG, "preferred": float("nan")}]}, {"answers": [{**PIG, "preferred": True}]},
                {"answers": [PIG], "evaluation": ["abc"]}, {"answers": [PIG], "version": {}},
            )
        ),
    ],
)  # fmt: skip
def test_one_odd_file_is_left_out_and_the_rest_counts(study, tmp_path, content):
    good = study("Ann", [PIG])
    (tmp_path / "odd.json").write_bytes(content)
    found = aggregate_study([tmp_path / "odd.json", good], EVALUATION)
    assert found["raters"] == ["Ann"] and [one["file"] for one in found["left_out"]] == [str(tmp_path / "odd.json")]
    assert found["left_out"][0]["why"] and "\n" not in found["left_out"][0]["why"]


NO_SEED = {"prompt": "a pig", "seed": None, "method": "sds"}


@pytest.mark.parametrize(
    "odd",
    [None, [], {}, {"id": 1, "runs": []}, *({"id": "a", "runs": runs} for runs in (None, {}, [3], [NO_SEED]))],
)
def test_an_evaluation_that_is_none(study, odd):
    with pytest.raises(UserError, match="evaluation.json is damaged"):
        aggregate_study([study("Ann", [PIG])], odd)


def test_a_method_s_name_is_no_markup(study):
    evaluation = {"id": "abc", "runs": [{"prompt": "a pig", "seed": 0, "method": "<b>|\n\x1b[31m![x](http://y)"}]}
    objects = [{"method": evaluation["runs"][0]["method"], "object": "o", "janus": True}]
    answers = [{"prompt": "a pig", "seed": 0, "objects": objects, "preferred": None}]
    table = study_table(aggregate_study([study("Ann", answers)], evaluation))
    assert "| &lt;b&gt;\\| \\\\x1b\\[31m!\\[x](http://y) |" in table and "\x1b" not in table
