import csv
import io
from typing import Any

import pytest

from jointdreamer.evaluation.table import NO_FRONT, markdown, runs_csv

INTERVAL = {"mean": 1.234, "low": 1.0, "high": 1.5, "n": 3}
EVALUATION: dict[str, Any] = {
    "groups": [
        {"keys": {"method": "a|b\nc"}, "runs": 3, "clip_score": INTERVAL, "janus": None, "fid": None},
        {"keys": {"method": "d"}, "runs": 1, "clip_score": {**INTERVAL, "low": None, "high": None}, "fid": 2.0},
    ],
    "group_by": ["method"],
    "extractors": {"clip": "C", "fid": "F", "janus": "J", "note": "not comparable"},
    "captions": {"kind": "file", "count": 153},
    "confidence": 0.95,
    "intervals": "Student",
    "views": 20,
    "resolution": 64,
    "reference": None,
    "compared": "All prompts.",
    "left_out": [{"folder": "x", "why": "unfinished"}],
}


def test_markdown():
    lines = markdown(EVALUATION).splitlines()
    assert lines[:4] == [
        "| method | runs | CLIP Score | FID |",
        "|---|---|---|---|",
        "| a\\|b c | 3 | 1.23 [1.00, 1.50] | - |",
        "| d | 1 | 1.23 | 2.000 |",
    ]
    assert "- x: unfinished" in lines and any(line.endswith("(file). All prompts.") for line in lines)
    for said in (
        f"Janus: J. {NO_FRONT}",
        "not comparable",
        "FID: no reference given.",
    ):
        assert said in lines


def test_markdown_says_how_many_pictures_fid_saw():
    groups = [{**group, "fid_images": n} for group, n in zip(EVALUATION["groups"], (20, 40), strict=True)]
    said = markdown({**EVALUATION, "groups": groups, "reference": "9 pictures of x"})
    assert "FID: F; 20 to 40 views a group against 9 pictures of x" in said and "one size" in said


def test_names_are_text_in_markdown():
    name = "<script>x</script> ![x](http://y) `a` | \n b \x1b[31m \u202e &amp;"
    said = markdown(
        {
            **EVALUATION,
            "groups": [{**EVALUATION["groups"][0], "keys": {name: name}, "fid_images": 3}],
            "group_by": [name],
            "left_out": [{"folder": name, "why": name}],
            "reference": name,
            "extractors": {**EVALUATION["extractors"], "clip": name, "fid": name, "janus": name},
        }
    )
    assert "<" not in said and "\x1b" not in said and "\u202e" not in said
    assert (
        said.count("&lt;script&gt;x&lt;/script&gt; !\\[x](http://y) \\`a\\` \\| b \\\\x1b\\[31m \\\\u202e &amp;amp;")
        == 8
    )
    assert len(said.splitlines()) == len(markdown({**EVALUATION, "groups": EVALUATION["groups"][:1]}).splitlines())


@pytest.mark.parametrize(
    "formula", ["=1+1", "+A1", "-A1", "@SUM(1)", "\t=1", "\r=1", " =1", "\n=1", "\uff1d1", "=cmd|'/C calc'!A0"]
)
def test_a_spreadsheet_finds_no_formula(formula):
    text = runs_csv([{formula: formula, "n": -1.5}], {"seed": [formula], "schedule.x": ["-3e-05"]})
    header, row = csv.reader(io.StringIO(text))
    assert row[1] == "-1.5" and row[3] == "-3e-05"  # numbers stay numbers
    for cell in (header[0], row[0], row[2]):
        assert cell.lstrip()[0] not in "=+-@\uff1d\t\r" and formula.strip() in cell


def test_csv_has_no_codes_for_a_terminal():
    assert runs_csv([{"a": "x\x1b[31m\x9b\u202e"}], {}) == "a\nx\\x1b[31m\\x9b\\u202e\n"


def test_csv_is_read_back():
    rows = [{"folder": 'a,"b"\n', "janus": None, "seed": 0}, {"folder": "c", "janus": True, "seed": 1}]
    text = runs_csv(rows, {"seed": ["x", "x"], "schedule.steps": ["10", "20"]})
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"folder": 'a,"b"\n', "janus": "", "seed": "0", "schedule.steps": "10"},
        {"folder": "c", "janus": "True", "seed": "1", "schedule.steps": "20"},
    ]
