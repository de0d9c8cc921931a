"""What is written, read as files; test_page.py looks at it in a browser."""

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from jointdreamer.errors import UserError
from jointdreamer.evaluation.report import write, write_report
from jointdreamer.files import sha256

PAGES = write.HERE / "page"


def data_of(folder: Path) -> dict:
    text = (folder / "data.js").read_text(encoding="utf-8")
    assert text.startswith("window.REPORT = ") and text.endswith(";\n")
    return json.loads(text.removeprefix("window.REPORT = ").removesuffix(";\n"))


def test_the_folder_is_whole(evaluation, tmp_path):
    given = evaluation()
    index = write_report(given, tmp_path / "report")
    folder = index.parent
    assert index == tmp_path / "report" / "index.html" and index.is_file()
    data = data_of(folder)
    assert data["id"] == given["id"] and [run["prompt"] for run in data["runs"]] == [r["prompt"] for r in given["runs"]]
    for run in data["runs"]:
        assert run["files"].keys() == {"mesh", "sheet", "turntable"} and not run["missing"]
        assert all((folder / file).is_file() for file in run["files"].values())
        assert run["method"] not in " ".join(run["files"].values())  # a rater may see the names
        assert "turntable" not in run  # paths of this machine that the page does not need
    for page in ("index.html", "study.html"):
        for link in re.findall(r'(?:src|href)="([^"#]+)"', (folder / page).read_text(encoding="utf-8")):
            assert link.startswith("data:,") or (folder / link).is_file(), link
    assert [metric["name"] for metric in data["metrics"]] == ["clip_score", "r_precision", "fid", "janus", "minutes"]


def test_hostile_prompts_cannot_leave_their_string(evaluation, tmp_path):
    given = evaluation()
    write_report(given, tmp_path / "report")
    text = (tmp_path / "report" / "data.js").read_text(encoding="utf-8")
    assert not set("<>&") & set(text) and text.isascii() and text.rstrip("\n").isprintable()
    assert data_of(tmp_path / "report")["runs"][2]["prompt"] == given["runs"][2]["prompt"]


def test_a_second_call_makes_nothing_anew_and_removes_what_is_gone(evaluation, tmp_path):
    given, folder = evaluation(), tmp_path / "report"
    write_report(given, folder)
    before = {file: file.stat().st_mtime_ns for name in ("models", "media") for file in (folder / name).iterdir()}
    (folder / "media" / "mine.txt").write_text("kept")
    fewer = {**given, "runs": given["runs"][1:]}
    write_report(fewer, folder)
    kept = {folder / file for run in data_of(folder)["runs"] for file in run["files"].values()}
    after = {file for name in ("models", "media") for file in (folder / name).iterdir()}
    assert after == kept | {folder / "media" / "mine.txt"} and len(before.keys() - after) == 3
    assert all(before[file] == file.stat().st_mtime_ns for file in kept)


def test_a_part_that_is_gone_is_missing_and_one_that_never_was_is_not(evaluation, tmp_path):
    given = evaluation()
    (tmp_path / given["runs"][0]["mesh"]).unlink()
    given["runs"][1]["turntable"] = None
    write_report(given, tmp_path / "report")
    first, second = data_of(tmp_path / "report")["runs"][:2]
    assert first["missing"] == ["mesh"] and "mesh" not in first["files"]
    assert second["missing"] == [] and "turntable" not in second["files"]


def test_paths_may_start_elsewhere(evaluation, tmp_path):
    write_report(evaluation(), tmp_path / "far" / "away", base=tmp_path)
    assert not any(run["missing"] for run in data_of(tmp_path / "far" / "away")["runs"])


@pytest.mark.parametrize(
    ("part", "says"),
    [("mesh", "mesh.glb: damaged (damaged mesh: wanted a GLB"), ("sheet", "sheet.png: damaged (")],
)
def test_damaged_parts_are_named_and_shown_as_missing(evaluation, tmp_path, part, says, capsys):
    given = evaluation()
    file = tmp_path / given["runs"][0][part]
    whole = file.read_bytes()
    for content in (whole[:40], b""):
        file.write_bytes(content)
        write_report(given, tmp_path / "report")
        assert says in capsys.readouterr().err
        first, *others = data_of(tmp_path / "report")["runs"]
        assert first["missing"] == [part] and len(first["files"]) == 2 and not any(run["missing"] for run in others)
    file.unlink()
    os.mkfifo(file)
    write_report(given, tmp_path / "report")
    assert data_of(tmp_path / "report")["runs"][0]["missing"] == [part]


def test_a_bomb_for_a_sheet_is_left_out(evaluation, tmp_path, capsys):
    given = evaluation(prompts=("a pig",), seeds=(0,))
    Image.new("1", (30_000, 30_000)).save(tmp_path / given["runs"][0]["sheet"])  # a few kB, 3.6 GB of RGBA
    write_report(given, tmp_path / "report")
    assert "sheet.png: too large (" in capsys.readouterr().err
    assert data_of(tmp_path / "report")["runs"][0]["missing"] == ["sheet"]


def test_other_input_is_refused_or_missing(evaluation, tmp_path, capsys):
    given = evaluation(prompts=("a pig",), seeds=(0,))
    with pytest.raises(UserError, match="wanted version 1 with a list of runs, got version 2"):
        write_report({**given, "version": 2}, tmp_path / "report")
    given["runs"][0]["turntable"] = given["runs"][0]["sheet"]
    write_report(given, tmp_path / "report")
    assert data_of(tmp_path / "report")["runs"][0]["missing"] == ["turntable"]
    assert "wanted what browsers play" in capsys.readouterr().err


def test_the_pages_name_nothing_outside_their_folder():
    for page in PAGES.iterdir():
        text = page.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.search(r"https?:|//cdn|url\(", text), page
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), page
        if page.suffix == ".html":
            policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
            assert policy and "default-src 'none'" in policy[1]
            scripts = next(part for part in policy[1].split(";") if "script-src" in part)
            assert scripts.split() == ["script-src", "'self'", "file:", "'wasm-unsafe-eval'"]


def test_the_viewer_is_the_released_one_and_in_the_wheel():
    readme = (write.VIEWER / "README.md").read_text(encoding="utf-8")
    assert sha256(write.VIEWER / "model-viewer-umd.min.js") in readme and (write.VIEWER / "LICENSE").is_file()
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert "evaluation/report/page/*" in project and "evaluation/report/vendor/**/*" in project
    assert set(write.PAGES) == {page.name for page in PAGES.iterdir()}
