"""The examples of docs/extending.md: each is one file and one YAML, and trains as its command says."""

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(folder.name for folder in (ROOT / "examples").iterdir() if folder.is_dir())


def command(name: str) -> list[str]:
    """What follows `python train.py` in docs/extending.md, with the folders of this checkout."""
    start = f"PYTHONPATH=examples/{name} python train.py "
    lines = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(start)]
    return [word.replace("examples/", f"{ROOT}/examples/") for word in shlex.split(line.removeprefix(start))]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_as_its_command_says(launcher, tiny_run, tmp_path, name):
    status = launcher.run(tmp_path, tiny_run(*command(name)), PYTHONPATH=str(ROOT / "examples" / name))
    assert status == 0, (tmp_path / "stderr").read_text()
    (result,) = tmp_path.glob("runs/**/result.json")
    assert json.loads(result.read_text())["steps"] == 2
    first, last = (json.loads(line) for line in (result.parent / "metrics.jsonl").read_text().splitlines())
    assert first["loss"] != last["loss"]


@pytest.mark.parametrize("page", ["README.md", "docs/extending.md"])
def test_the_code_that_a_page_shows_is_an_example_s(page):
    shown = re.findall(r"```(?:python|yaml)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    files = [
        file.read_text(encoding="utf-8") for ends in ("*.py", "*.yaml") for file in (ROOT / "examples").rglob(ends)
    ]
    assert shown
    for block in shown:
        lines = [line for line in block.splitlines() if line]
        assert any(all(line in file for line in lines) for file in files), block


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_one_file_and_one_yaml_that_opens_with_its_command(name):
    folder = ROOT / "examples" / name
    (code,), (config,) = list(folder.glob("*.py")), list(folder.rglob("*.yaml"))
    assert code.read_text(encoding="utf-8").startswith('"""')
    assert f"PYTHONPATH=examples/{name} python train.py --config-dir examples/{name}/conf" in config.read_text()
