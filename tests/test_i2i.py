"""energy=i2i with models=sd21 in small: three steps on files in the layouts of the real weights, random networks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from jointdreamer.cameras import Rig
from jointdreamer.priors.wonder3d import AZIMUTH_DEG
from jointdreamer.project import CONF


@pytest.fixture(scope="module")
def words(tiny_sd_folder) -> Callable[..., list[str]]:
    def command(*more: str) -> list[str]:
        return [
            "prompt=a red robot",
            "models=sd21",
            "device=cpu",
            "energy=i2i",
            f"models.text_to_image.source={tiny_sd_folder()}",
            "models.text_to_image.image_size=16",
            "models.novel_view.image_size=16",
            "schedule.steps=3",
            "schedule.resolution=12",
            "schedule.energy_weight=[[0,0],[1,1.25]]",
            "field.encoding.n_levels=2",
            "field.encoding.backend=torch",
            "renderer.n_samples=32",
            "renderer.grid_resolution=8",
            "every.log=1",
            "every.view=0",
            "output.views=2",
            "output.resolution=16",
            "output.mesh_resolution=16",
            *more,
        ]

    return command


def finished(launcher, folder: Path, words: list[str]) -> Path:
    assert launcher.run(folder, words) == 0, (folder / "stderr").read_text()
    (result,) = folder.rglob("result.json")
    rows = [json.loads(line) for line in (result.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["coherence"] < 0 for row in rows] == [False, True, True]
    return result.parent


def test_zero123_from_the_authors_checkpoint(launcher, words, zero123_file, tmp_path):
    run = finished(launcher, tmp_path, words(f"models.novel_view.source={zero123_file}"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["cameras"]["n_views"] == 4 and config["cameras"]["projection"] == "perspective"
    used = [Path(one["path"]).name for one in json.loads((run / "environment.json").read_text())["weights"]]
    assert "zero123-xl.ckpt" in used


@pytest.mark.gpu
def test_zero123_on_cuda(run_on_cuda, words, zero123_file):
    run = run_on_cuda(words(f"models.novel_view.source={zero123_file}"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["coherence"] < 0 for row in rows] == [False, True, True]


def test_wonder3d_sets_its_own_rig(launcher, words, wonder3d_folder, tmp_path):
    run = finished(launcher, tmp_path, words("novel_view=wonder3d", f"models.novel_view.source={wonder3d_folder}"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["cameras"]["n_views"] == 6 and config["cameras"]["projection"] == "orthographic"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["cameras.n_views=1"], ["cameras.n_views is 1", "at least two"]),
        (["cameras.projection=orthographic"], ["perspective cameras"]),
        (["novel_view=wonder3d", "cameras.n_views=4", "cameras.azimuth_deg=null"], ["six fixed", "n_views 4"]),
        (["novel_view=wonder3d", "cameras.n_views=4"], ["cameras.azimuth_deg must be 4 angles"]),
        (["novel_view=wonder3d", "cameras.projection=perspective"], ["six fixed", "novel_view=wonder3d"]),
        (["models.novel_view.reference=4"], ["reference=4", "n_views=4"]),
        (
            ["models.novel_view.source=/nowhere"],
            ["novel-view model (Zero-1-to-3 XL) not found", "models.novel_view.source="],
        ),
        (["models.novel_view.kind=zero456"], ["'zero456'", "zero123, wonder3d"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_what_does_not_fit_is_one_line(launcher, words, zero123_file, wonder3d_folder, tmp_path, more, says):
    source = wonder3d_folder if "novel_view=wonder3d" in more else zero123_file
    assert launcher.run(tmp_path, words(f"models.novel_view.source={source}", *more)) == 2
    said = (tmp_path / "stderr").read_text()
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert all(text in said for text in says), said


def test_the_rig_comes_with_the_model():
    def config(*words: str) -> dict:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            cfg = compose("config", ["prompt=x", "name=x", *words])
            return OmegaConf.to_container(cfg, resolve=True)  # pyright: ignore

    wonder = config("models=sd21", "energy=i2i", "novel_view=wonder3d")
    assert wonder["models"]["novel_view"]["kind"] == "wonder3d"
    rig = Rig(**wonder["cameras"])
    assert tuple(rig.azimuth_deg or ()) == AZIMUTH_DEG and rig.n_views == 6
    zero = config("models=sd21", "energy=i2i")
    assert zero["models"]["novel_view"]["kind"] == "zero123" and Rig(**zero["cameras"]).fovy_deg[0] == 49.1
    mvs = config("models=sd21", "energy=mvs", "novel_view=wonder3d")  # the rig is the energy's, not the file's
    assert mvs["cameras"] == config("models=sd21", "energy=none")["cameras"]
    toybox = config("models=toybox", "energy=i2i")
    front = {"first_azimuth_deg": [-10, 10]}  # its reference stands near the front
    assert toybox["cameras"] == {**config("models=toybox", "energy=mvs")["cameras"], **front}
    assert config("models=sd21", "energy=i2i", "cameras.n_views=3")["cameras"]["n_views"] == 3  # a typed word wins
