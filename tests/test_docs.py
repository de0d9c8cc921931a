"""What the code and the texts refer to can be opened: documents, their sections, files."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
READ = (".py", ".yaml", ".md", ".toml", ".cff", ".txt")


def texts() -> dict[str, str]:
    """The texts of the repository, each line without its comment mark, on one line."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.split("\0") if name.endswith(READ) and name != "tests/test_docs.py"]
    files = {name: (ROOT / name).read_text(encoding="utf-8") for name in names if (ROOT / name).is_file()}
    return {name: re.sub(r"\s*\n[\s#]*", " ", text) for name, text in files.items()}


@cache
def headings(document: str) -> list[str]:
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    return [line.lstrip("#").strip() for line in lines if line.startswith("#")]


def test_every_section_that_is_cited_is_there():
    found = 0
    for name, text in texts().items():
        for citation in re.finditer(r"((?:docs/\w+|CONTRIBUTING|README)\.md), (?=[A-Z])", text):
            document, rest = citation[1], text[citation.end() :]
            assert (ROOT / document).is_file(), f"{name} cites {document}"
            assert rest.startswith(tuple(headings(document))), f"{name} cites {document}, {rest[:40]!r}"
            found += 1
    assert found > 15


def test_every_document_that_is_named_is_there():
    for name, text in texts().items():
        for document in re.findall(r"(?<![\w/])docs/[\w/]+\.(?:md|png)", text):
            assert (ROOT / document).is_file(), f"{name} names {document}"


def test_links_inside_the_documents_lead_somewhere():
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)(#[^)\s]*)?\)", file.read_text(encoding="utf-8")):
            where = (file.parent / target) if target else file
            assert where.exists(), f"{file.name} links to {target}"
            if anchor and where.suffix == ".md":
                known = [github_anchor(heading) for heading in headings(str(where.relative_to(ROOT)))]
                assert anchor[1:] in known, f"{file.name} links to {target}{anchor}"


def github_anchor(heading: str) -> str:
    """How GitHub names a heading: lower case, no punctuation, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_nothing_refers_to_texts_that_are_not_here():
    for name, text in texts().items():
        for word in (r"\bALGORITHM section", r"\bCONVENTIONS section", r"\bDESIGN section", r"\bMACHINE section"):
            assert not re.search(word, text), f"{name}: {word}"


def test_licence_citation_and_package_agree():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["license"] == citation["license"] == "Apache-2.0" and project["license-files"] == ["LICENSE"]
    assert project["version"] == citation["version"]
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and "JointDreamer contributors" in text
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2407.12291"


def test_the_workflow_runs_what_is_run_before_a_push():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert "push" in workflow[True]  # YAML reads `on` as true
    assert [step["run"] for step in workflow["jobs"]["ci"]["steps"] if "run" in step] == [".ci/run"]


def test_the_python_page_runs_as_it_stands(launcher, tiny_run, tmp_path, monkeypatch):
    """Its blocks one after the other, on a tiny run instead of the one that it names, and smaller pictures."""
    words = tiny_run("prompt=a red robot", "models.text_to_image.image_size=16", "energy=none")
    assert launcher.run(tmp_path, words) == 0, (tmp_path / "stderr").read_text()
    (result,) = tmp_path.glob("runs/**/result.json")
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for there, here in {
        "runs/mvs/a_red_robot_with_a_blue_hat-HASH/seed0": str(result.parent),
        "runs/.../metrics.jsonl": str(result.parent / "metrics.jsonl"),
        "jointdreamer/toybox/weights": str(ROOT / "jointdreamer" / "toybox" / "weights"),
        "resolution=256": "resolution=16",
        "texture=1024": "texture=32",
    }.items():
        assert there in code
        code = code.replace(there, here)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert (tmp_path / "first_view.png").stat().st_size > 0 and (tmp_path / "fine.glb").stat().st_size > 0
    assert names["losses"] and names["steps"] == [0, 1]
    scene = names["scene"]
    assert any(p.grad is not None and bool(p.grad.any()) for p in scene.parameters())  # type: ignore[attr-defined]
