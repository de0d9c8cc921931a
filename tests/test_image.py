"""image=FILE, end to end: three steps on files in the layouts of real weights, runs on tiny ones, and mistakes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.test_reference import disc, picture, png_of_size


@pytest.fixture(scope="module")
def bear(tmp_path_factory) -> Path:
    """A brown disc without a background."""
    file = tmp_path_factory.mktemp("image") / "bear.png"
    rgba = np.dstack([picture(inside=(120, 70, 30)), np.where(disc(), 255, 0).astype(np.uint8)])
    Image.fromarray(rgba).save(file)
    return file


@pytest.fixture(scope="module")
def layout(zero123_file, tiny_sd_folder, bear, tmp_path_factory):
    """layout("stable_zero123") -> the words of three steps with models=sd21 on an authors' checkpoint."""
    stable = tmp_path_factory.mktemp("stable") / "stable_zero123.ckpt"
    shutil.copy(zero123_file, stable)  # the same names and shapes

    def words(experiment: str, *more: str) -> list[str]:
        file = stable if experiment == "stable_zero123" else zero123_file
        sizes = {"resolution": 12, "steps": 3} | ({} if experiment == "imagedream" else {"reference_resolution": 16})
        return [
            f"experiment=image/{experiment}",
            "models=sd21",
            "device=cpu",
            f"image={bear}",
            f"models.text_to_image.source={tiny_sd_folder()}",
            "models.text_to_image.image_size=16",
            f"models.novel_view.source={file}",
            "models.novel_view.file=null",
            "models.novel_view.image_size=16",
            *(f"schedule.{key}={value}" for key, value in sizes.items()),
            "field.encoding.n_levels=2",
            "field.encoding.backend=torch",
            "renderer.backend=torch",
            "renderer.n_samples=32",
            "renderer.grid_resolution=8",
            "every.log=1",
            "every.view=0",
            "output.views=2",
            "output.resolution=16",
            "output.mesh_resolution=16",
            "output.texture=16",
            *more,
        ]

    return words


def rows_of(launcher, folder: Path, words: list[str]) -> tuple[Path, list[dict]]:
    assert launcher.run(folder, words) == 0, (folder / "stderr").read_text()
    run = max(folder.rglob("result.json"), key=lambda file: file.stat().st_mtime).parent
    return run, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["zero123", "stable_zero123"])
def test_the_authors_layouts_without_a_prompt(launcher, layout, tmp_path, kind):
    run, rows = rows_of(launcher, tmp_path, layout(kind))
    assert run.parent.name.startswith("bear-") and run.parents[1].name == kind
    assert [{"loss/zero123", "loss/rgb", "loss/mask", "loss/smooth_2d"} <= row.keys() for row in rows] == [True] * 3
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert len(config["image_sha256"]) == 16 and config["models"]["novel_view"]["kind"] == kind
    assert json.loads((run / "result.json").read_text())["prompt"] == "bear"


def test_magic123_asks_both_priors_and_jsd_the_energy(launcher, layout, tmp_path):
    run, rows = rows_of(launcher, tmp_path, layout("magic123", "prompt=a red robot"))
    assert all(row["loss/jsd"] > 0 and row["loss/zero123"] > 0 for row in rows)
    assert run.parent.name.startswith("a_red_robot_bear-")
    words = layout("jsd", "prompt=a red robot", "schedule.energy_weight=[[0,0],[1,1.25]]")
    _, rows = rows_of(launcher, tmp_path, words)
    assert [row["coherence"] < 0 for row in rows] == [False, True, True] and all(row["loss/rgb"] > 0 for row in rows)


def test_imagedream_as_the_energy_beside_a_text_s_prior(launcher, layout, imagedream_file, tmp_path):
    own = [f"models.imagedream.source={imagedream_file}", "models.imagedream.file=null", "prompt=a red robot"]
    own += ["models.imagedream.image_size=16", "distillation=jsd", "energy=imagedream", "schedule.energy_weight=1"]
    _, rows = rows_of(launcher, tmp_path, layout("imagedream", *own, "schedule.loss.jsd=1"))
    assert len(rows) == 3 and all(row["loss/jsd"] > 0 and row["coherence"] != 0 for row in rows)


def test_the_one_model_taken_for_the_other(launcher, layout, zero123_file, tmp_path):
    for experiment, file, kind in (
        ("stable_zero123", zero123_file, "models.novel_view.kind=zero123"),
        ("zero123", tmp_path / "stable-zero123.ckpt", "models.novel_view.kind=stable_zero123"),
    ):
        if not file.exists():
            shutil.copy(zero123_file, file)
        words = layout(experiment, f"models.novel_view.source={file}")
        assert launcher.run(tmp_path, words) == 2
        said = (tmp_path / "stderr").read_text()
        assert said.count("\n") == 1 and kind in said, said


def test_resume_notices_another_picture(launcher, tiny_run, bear, tmp_path):
    own = tmp_path / "bear.png"
    shutil.copy(bear, own)
    words = tiny_run("experiment=image/zero123", f"image={own}")
    rows_of(launcher, tmp_path, words)
    (tmp_path / "copy").mkdir()
    shutil.copy(own, tmp_path / "copy")
    elsewhere = [word.replace(str(own), str(tmp_path / "copy" / "bear.png")) for word in words]
    assert launcher.run(tmp_path, elsewhere) == 0 and "is complete" in (tmp_path / "stdout").read_text()
    Image.fromarray(picture(inside=(0, 0, 200))).save(own)
    assert launcher.run(tmp_path, words) == 2
    said = (tmp_path / "stderr").read_text()
    assert "image_sha256" in said and "belongs to another config" in said and said.count("\n") == 1


def test_what_cannot_be_is_one_line(launcher, tiny_run, bear, tmp_path):
    (tmp_path / "huge.png").write_bytes(png_of_size(50_000, 50_000))
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(tmp_path / "busy.png")
    zero = ["experiment=image/zero123"]
    for more, says in (
        ([*zero, "image=huge.png"], ["image=huge.png", "too large"]),
        ([*zero, "image=text.png"], ["damaged"]),
        ([*zero, "image=busy.png"], ["mask=FILE", "rembg"]),
        ([*zero, "image=nowhere.png"], ["no such file"]),
        ([*zero, f"image={bear}", "image=text.png"], ["two images"]),
        (zero, ["distillation.terms.reference wants a picture", "image=FILE"]),
        ([*zero, "image=5"], ["image=5", "no such file"]),
        (["prompt=a red robot", "mask=text.png"], ["mask=text.png", "image=FILE"]),
        (["experiment=image/jsd", f"image={bear}"], ["no prompt", "terms.jsd"]),
        (["prompt=a red robot", "energy=i2i", f"image={bear}"], ["must be one grey", "experiment=image/zero123"]),
        (["prompt=a red robot", f"image={bear}"], ["energy=mvs takes no picture", "experiment=image/zero123"]),
        ([*zero, "energy=cls", "models.classifier.source=nowhere", f"image={bear}"], ["energy=cls takes no picture"]),
        ([*zero, "energy=random", f"image={bear}"], ["energy=random takes no picture", "energy=i2i"]),
        ([*zero, f"image={bear}", "image_camera.distance=0"], ["image_camera.distance=0"]),
    ):
        assert launcher.run(tmp_path, tiny_run(*more)) == 2, more
        said = (tmp_path / "stderr").read_text()
        assert said.startswith("error: ") and said.count("\n") == 1, said
        assert all(text in said for text in says), said


def test_a_height_that_the_model_does_not_know_is_a_warning(launcher, tiny_run, bear, tmp_path):
    words = tiny_run("experiment=image/zero123", f"image={bear}", "image_camera.elevation_deg=70")
    rows_of(launcher, tmp_path, words)
    assert "knows pictures taken from 0 to 30 degrees" in (tmp_path / "stderr").read_text()


def test_a_mesh_after_the_picture_s_first_stage(launcher, tiny_run, bear, tmp_path):
    shared = [f"image={bear}", "prompt=a red robot", "schedule.reference_resolution=8"]
    first, _ = rows_of(launcher, tmp_path, tiny_run("experiment=image/magic123", *shared))
    words = ["experiment=image/magic123_refine", f"init_from={first}", "scene.resolution=12", "scene.threshold=0.5"]
    run, rows = rows_of(launcher, tmp_path, tiny_run(*words, *shared))
    assert {"loss/jsd", "loss/zero123", "loss/rgb", "loss/mask"} <= rows[-1].keys()
    assert run.parents[1].name == "magic123_refine" and run.parent.name == first.parent.name


def test_the_first_stage_is_of_the_same_picture(bear):
    from jointdreamer.cli.main import composed
    from jointdreamer.cli.stages import start_of

    words = ["experiment=image/magic123_refine", f"image={bear}", "prompt=a red robot", "image_camera.distance=3"]
    first = start_of(composed("config", words, "toybox") | {"name": "image/magic123_refine"})
    assert first is not None and first.config is not None
    assert first.config["image"] == str(bear) and first.config["image_camera"]["distance"] == 3
    assert first.path.parent.name.startswith("a_red_robot_bear-") and len(first.config["image_sha256"]) == 16


def test_the_height_is_of_no_account_to_a_model_that_is_not_asked(bear, caplog):
    from jointdreamer.cli.main import composed
    from jointdreamer.cli.training import reference_of

    words = [f"image={bear}", "prompt=a red robot", "image_camera.elevation_deg=85"]
    for more, warned in (
        (["experiment=image/imagedream"], False),
        (["experiment=image/imagedream", "distillation=jsd", "energy=imagedream"], False),
        (["experiment=image/imagedream", "distillation=jsd", "energy=i2i"], True),
        (["experiment=image/zero123"], True),
    ):
        caplog.clear()
        assert reference_of(composed("config", [*more, *words], "sd21")) is not None
        assert ("knows pictures taken from" in caplog.text) == warned, more


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["energy=imagedream", "prompt=a robot"], "energy=imagedream wants a picture: give one, image=FILE"),
        (["experiment=image/zero123", "prompt=a robot"], "terms.reference wants a picture: give one, image=FILE"),
        (["distillation=imagedream", "prompt=a robot"], "terms.imagedream wants a picture: give one, image=FILE"),
        (["energy=none", "prompt=a robot", "image=a.png"], "image=a.png: no term and no energy of this run looks at"),
        (["distillation=mvdream", "prompt=a robot", "image=a.png"], "no term and no energy of this run looks at"),
        (["distillation=vsd", "prompt=a robot", "image=a.png"], "no term and no energy of this run looks at"),
        (["energy=i2i", "prompt=a robot", "image=a.png"], "must be one grey"),
        (["experiment=image/jsd", "image=a.png"], "no prompt, and distillation.terms.jsd reads one"),
    ],
)
def test_a_picture_that_is_missing_or_that_nothing_reads(words, says):
    from jointdreamer.cli.main import composed
    from jointdreamer.cli.training import check_image
    from jointdreamer.errors import UserError

    with pytest.raises(UserError, match=says):
        check_image(composed("config", words, "sd21"))


def test_the_published_constants_of_sd21(bear):
    from jointdreamer.cli.main import composed

    def of(method: str, models: str = "sd21"):
        return composed("config", [f"experiment=image/{method}", f"image={bear}", "prompt=a red robot"], models)

    for method in ("magic123", "magic123_refine"):
        assert of(method)["distillation"]["terms"]["reference"] == {"kind": "reference", "mask_loss": "bce"}
        assert "mask_loss" not in of(method, "toybox")["distillation"]["terms"]["reference"]
    for method in ("magic123", "imagedream"):
        rates, scale = of(method)["schedule"]["lr"], of(method)["field"]["encoding_lr"]
        assert (rates["geometry"] * scale, rates["geometry"], rates["appearance"]) == pytest.approx(
            (0.01, 0.001, 0.001)
        )
    assert of("jsd")["optimizer"] == {"betas": [0.9, 0.99], "eps": 1e-15, "weight_decay": 0.01}
