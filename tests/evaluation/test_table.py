import csv
import io
from typing import Any

from jointdreamer.evaluation.table import markdown, runs_csv

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
    assert "- x: unfinished" in lines
    for said in ("CLIP: C; retrieval among 153 captions (file).", "not comparable", "FID: no reference given."):
        assert said in lines


def test_markdown_says_how_many_pictures_fid_saw():
    groups = [{**group, "fid_images": n} for group, n in zip(EVALUATION["groups"], (20, 40), strict=True)]
    said = markdown({**EVALUATION, "groups": groups, "reference": "9 pictures of x"})
    assert "FID: F; 20 to 40 views a group against 9 pictures of x" in said and "one size" in said


def test_csv_is_read_back():
    rows = [{"folder": 'a,"b"\n', "janus": None, "seed": 0}, {"folder": "c", "janus": True, "seed": 1}]
    text = runs_csv(rows, {"seed": ["x", "x"], "schedule.steps": ["10", "20"]})
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"folder": 'a,"b"\n', "janus": "", "seed": "0", "schedule.steps": "10"},
        {"folder": "c", "janus": "True", "seed": "1", "schedule.steps": "20"},
    ]
