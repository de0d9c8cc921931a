"""An energy that the package does not know: the example of examples/mirror, and what its author can get wrong."""

import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "mirror"
WORDS = ["--config-dir", str(EXAMPLE / "conf"), "energy=mirror", "prompt=a red robot"]


def test_the_example_runs_as_its_command_says(launcher, tiny_run, tmp_path):
    status = launcher.run(tmp_path, tiny_run(*WORDS), PYTHONPATH=str(EXAMPLE))
    assert status == 0, (tmp_path / "stderr").read_text()
    (result,) = tmp_path.glob("runs/mirror/*/seed0/result.json")
    assert json.loads(result.read_text())["energy"] == "mirror_energy:MirrorEnergy"
    rows = [json.loads(line) for line in (result.parent / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["coherence"] < 0 for row in rows)


def test_the_number_is_zero_for_mirrored_views_and_falls_with_asymmetry(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from types import SimpleNamespace

    from jointdreamer.energies.registry import build_energy

    energy = build_energy("mirror_energy:MirrorEnergy", strength=0.5)
    x0 = torch.zeros(2, 4, 4, 2, 2)
    x0[1, 2, 3, 0, 1] = 3.0  # one pixel of rig 1: it differs from its mirror image, and that from it
    assert energy(SimpleNamespace(x0=x0)).tolist() == [0.0, -0.5 * 2 * 9.0]  # pyright: ignore


def test_the_command_in_the_yaml_is_the_one_that_works():
    command = (EXAMPLE / "conf" / "energy" / "mirror.yaml").read_text().splitlines()[1]
    assert "PYTHONPATH=examples/mirror python train.py --config-dir examples/mirror/conf energy=mirror" in command


def refused(launcher, folder, words, **env) -> str:
    assert launcher.run(folder, words, **env) == 2, (folder / "stderr").read_text()
    said = (folder / "stderr").read_text()
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line


def test_without_its_folder_on_the_path(launcher, tiny_run, tmp_path):
    assert "no module 'mirror_energy'; is its folder on PYTHONPATH?" in refused(launcher, tmp_path, tiny_run(*WORDS))


def test_an_option_that_it_does_not_take(launcher, tiny_run, tmp_path):
    said = refused(launcher, tmp_path, tiny_run(*WORDS, "energy.strenth=2"), PYTHONPATH=str(EXAMPLE))
    assert "unknown key 'energy.strenth': there are name, strength" in said
    said = refused(launcher, tmp_path, tiny_run(*WORDS, "energy.strength=much"), PYTHONPATH=str(EXAMPLE))
    assert "energy.strength='much': wanted a number" in said


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("views.x0.square().mean()", "energy Mine must return one number per rig, a tensor of shape (1,), got ()"),
        ("views.x0.square().sum((2, 3, 4))", "shape (1,), got (1, 4)"),
        ("0.5", "shape (1,), got float"),
        ("views.x0.detach().square().sum((1, 2, 3, 4))", "does not depend on views.x0"),
        ("self.scale * views.rgb.sum((1, 2, 3, 4))", "does not depend on views.x0"),
    ],
)
def test_a_wrong_answer_is_one_clear_line(launcher, tiny_run, tmp_path, body, says):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from jointdreamer.energies.base import Energy\n\n\n"
        "class Mine(Energy):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.ones(1))\n\n"
        "    def forward(self, views):\n"
        f"        return {body}\n"
    )
    (tmp_path / "conf" / "energy").mkdir(parents=True)
    (tmp_path / "conf" / "energy" / "mine.yaml").write_text("# @package _global_\nenergy: {name: 'mine:Mine'}\n")
    words = tiny_run("--config-dir", str(tmp_path / "conf"), "energy=mine", "prompt=a red robot")
    assert says in refused(launcher, tmp_path, words, PYTHONPATH=str(tmp_path))
