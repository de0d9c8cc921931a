"""models=sd21 in small: folders and files in the layouts of the real weights, the paper's schedule, random networks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
PER_STEP = 500  # steps of the paper for one of ours
RESOLUTION = {64: 8, 256: 12, 512: 16}
STEPS, JOINT, FINE, FADED = 12, 1, 6, 10  # Appendix A.1: 6000 steps; the energy from 600, 256 pixels and fading


def in_small(spec):
    """A schedule of conf/ with all its knots PER_STEP times earlier."""
    if isinstance(spec, dict):
        return {key: in_small(value) for key, value in spec.items()}
    return [[knot[0] // PER_STEP, *knot[1:]] for knot in spec] if isinstance(spec, list) else spec


def overrides(spec: dict, prefix: str) -> list[str]:
    words = []
    for key, value in spec.items():
        nested = isinstance(value, dict)
        words += overrides(value, f"{prefix}.{key}") if nested else [f"{prefix}.{key}={json.dumps(value)}"]
    return words


@pytest.fixture(scope="module")
def schedule() -> dict:
    paper = yaml.safe_load((ROOT / "conf" / "schedule" / "jointdreamer.yaml").read_text())
    small = in_small(paper) | {"steps": STEPS}
    small["resolution"] = [[step, RESOLUTION[size]] for step, size in small["resolution"]]
    return small


@pytest.fixture(scope="module")
def words(tiny_sd_folder, mvdream_state, schedule, tmp_path_factory) -> Callable[..., list[str]]:
    """words(...) -> the command line for the paper's run, with the checkpoint of MVDream in a .pt file."""
    file = tmp_path_factory.mktemp("mvdream") / "sd-v2.1-base-4view.pt"
    torch.save(mvdream_state(), file)

    def command(*more: str) -> list[str]:
        return [
            "prompt=a red robot",
            "models=sd21",
            "device=cpu",
            f"models.text_to_image.source={tiny_sd_folder()}",
            "models.text_to_image.image_size=16",
            f"models.multi_view.source={file}",
            "models.multi_view.image_size=16",
            *overrides(schedule, "schedule"),
            "field.encoding.n_levels=4",
            "field.encoding.log2_table_size=10",
            "renderer.n_samples=32",
            "renderer.grid_resolution=8",
            "every.log=1",
            "every.checkpoint=1",
            "output.views=2",
            "output.resolution=16",
            "output.mesh_resolution=16",
            *more,
        ]

    return command


@pytest.fixture(scope="module")
def run(launcher, words, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    # two steps' worth of checkpoints are kept: stop before the end to look at the step where the geometry fades
    assert launcher.run(folder, words()) == 0, (folder / "stderr").read_text()
    (result,) = folder.rglob("result.json")
    return result.parent


@pytest.fixture(scope="module")
def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_runs_to_the_end_on_a_cpu_and_says_that_this_is_slow(run):
    assert json.loads((run / "result.json").read_text())["models"] == "sd21"
    said = (run / "train.log").read_text()
    assert "models=sd21 on a CPU" in said and "models=toybox" in said


def test_every_milestone_of_the_paper_is_passed(run, rows):
    def seen(name):
        return [row[f"now/{name}"] for row in rows]

    assert seen("resolution") == [8] * FINE + [12] * (FADED - FINE) + [16] * (STEPS - FADED)
    assert seen("guidance_scale") == [31] * FADED + [51] * (STEPS - FADED)  # the usual form of the paper's 30 and 50
    assert seen("energy_weight") == [0] * JOINT + [1.25] * (STEPS - JOINT)
    assert seen("negative_prompt") == [False] * FINE + [True] * (STEPS - FINE)
    assert seen("shading") == [False] * FADED + [True] * (STEPS - FADED)
    assert seen("t_max")[0] == 0.98 and seen("t_max")[FINE:] == [0.5] * (STEPS - FINE)
    assert seen("lr/geometry") == [1e-2] * FADED + [1e-6] * (STEPS - FADED)
    assert yaml.safe_load((run / "config.yaml").read_text())["field"]["encoding_lr"] == 1  # of the encoding, too


def test_the_energy_joins_and_the_normals_are_judged(rows):
    assert [row["coherence"] != 0 for row in rows] == [False] * JOINT + [True] * (STEPS - JOINT)
    assert all(row["loss/orient"] >= 0 for row in rows[:FADED]) and any(row["loss/orient"] > 0 for row in rows[:FADED])
    assert not any("loss/orient" in row for row in rows[FADED:])


def test_the_pair_classifier_s_energy_takes_the_multi_view_model_s_place(
    launcher, words, tiny_classifier_folder, tmp_path
):
    classifier = [f"models.classifier.source={tiny_classifier_folder}", "models.classifier.image_size=16"]
    assert launcher.run(tmp_path, words("energy=cls", *classifier, "schedule.steps=3")) == 0, (
        tmp_path / "stderr"
    ).read_text()
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    coherence = [json.loads(line)["coherence"] for line in metrics.read_text().splitlines()]
    assert [value != 0 for value in coherence] == [False, True, True]
    assert str(tiny_classifier_folder) in (metrics.parent / "environment.json").read_text()


@pytest.mark.gpu
@pytest.mark.parametrize("energy", ("none", "random", "cls", "mvs"))
def test_on_cuda(energy, run_on_cuda, words, tiny_classifier_folder):
    """In half precision, from the first step to the mesh."""
    classifier = [f"models.classifier.source={tiny_classifier_folder}", "models.classifier.image_size=16"]
    run = run_on_cuda(words(f"energy={energy}", *classifier))
    found = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(found) == STEPS and any(row["coherence"] for row in found) == (energy != "none")


def test_faded_geometry_stands_still_while_the_colours_move(run):
    before, after = (
        torch.load(run / "checkpoints" / f"step_{step:06d}.pt", weights_only=True)["parts"]["scene"]
        for step in (STEPS - 1, STEPS)
    )
    field = [name for name in before if name.startswith("field.")]
    moved = {name: float((after[name] - before[name]).abs().max()) for name in field}
    assert all(change < 1e-5 for name, change in moved.items() if "albedo" not in name), moved
    assert any(change > 1e-4 for name, change in moved.items() if "albedo" in name), moved


def test_the_record_holds_the_checksums_of_both_models(run):
    weights = [Path(one["path"]) for one in json.loads((run / "environment.json").read_text())["weights"]]
    assert {"sd-v2.1-base-4view.pt", "model.safetensors", "diffusion_pytorch_model.safetensors"} == {
        path.name for path in weights
    }


def test_shaded_from_the_first_step_with_both_kinds_of_normals(launcher, words, tmp_path):
    for normal in ("analytic", "finite_difference"):
        more = ["schedule.steps=3", "schedule.shading=true", f"field.normal={normal}", f"name={normal}"]
        assert launcher.run(tmp_path, words(*more)) == 0, (tmp_path / "stderr").read_text()


def test_a_diffusers_folder_of_mvdream_goes_with_no_file(launcher, words, tiny_mv_folder, tmp_path):
    folder = [f"models.multi_view.source={tiny_mv_folder()}", "schedule.steps=2"]
    assert launcher.run(tmp_path, words(*folder)) == 2
    assert "models.multi_view.file=null" in (tmp_path / "stderr").read_text()
    assert launcher.run(tmp_path, words(*folder, "models.multi_view.file=null")) == 0


def test_a_multi_view_model_of_another_text_width_is_one_line(launcher, words, mvdream_state, tmp_path):
    torch.save(mvdream_state(text=24), tmp_path / "other.pt")
    assert launcher.run(tmp_path, words(f"models.multi_view.source={tmp_path}/other.pt")) == 2
    said = (tmp_path / "stderr").read_text().splitlines()
    assert said[-1].startswith("error: ") and "width 24" in said[-1]
