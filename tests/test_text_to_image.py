"""models=sdxl, sd35 and if in small: three steps of train.py on folders of the real layouts, random networks."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jointdreamer.priors.registry import build_prior

IMAGE = "models.text_to_image.image_size=16"


@pytest.fixture
def words(tiny_text_to_image, tiny_run, tiny_sd_folder, tiny_mv_folder):
    """words("sdxl", ...) -> the command line of three steps, which resume and log at each."""

    def command(models: str, *more: str) -> list[str]:
        return tiny_run(
            "prompt=a red robot",
            f"models={models}",
            "device=cpu",
            f"models.text_to_image.source={tiny_text_to_image(models)}",
            f"models.text_encoder.source={tiny_sd_folder()}",
            f"models.multi_view.source={tiny_mv_folder()}",
            "models.multi_view.file=null",
            "models.multi_view.vae=null",
            "models.novel_view.kind=zero123",
            "schedule.steps=3",
            "field.encoding.log2_table_size=8",
            "output.views=0",
            "output.texture=0",
            *more,
        )

    return command


def rows(out: Path) -> list[dict]:
    (metrics,) = out.rglob("metrics.jsonl")
    return [json.loads(line) for line in metrics.read_text().splitlines()]


@pytest.mark.parametrize("models", ["sdxl", "sd35", "if"])
def test_three_steps_with_an_energy_of_another_latent_space(launcher, words, tmp_path, models):
    assert launcher.run(tmp_path, words(models, "energy=mvs")) == 0, (tmp_path / "stderr").read_text()
    found = rows(tmp_path)
    assert len(found) == 3 and all(row["coherence"] != 0 and row["loss/jsd"] > 0 for row in found)
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["models"] == models
    assert f"models={models} on a CPU" in (result.parent / "train.log").read_text()
    assert (result.parent / "mesh" / "mesh.glb").stat().st_size > 0


@pytest.mark.parametrize(
    ("models", "more"),
    [
        ("sdxl", ["distillation=vsd"]),
        ("sd35", ["distillation=vsd", "models.text_to_image.text_encoders=2"]),
        ("sdxl", ["distillation=csd"]),
        ("sd35", ["energy=i2i", "models.text_to_image.text_encoders=2"]),
        ("sdxl", ["distillation=mvdream"]),
        ("sd35", ["energy=cls", "models.text_to_image.text_encoders=2"]),
    ],
)
def test_other_methods(launcher, words, tmp_path, tiny_classifier_folder, models, more):
    more = [*more, f"models.classifier.source={tiny_classifier_folder}", "models.classifier.image_size=16"]
    assert launcher.run(tmp_path, words(models, *more)) == 0, (tmp_path / "stderr").read_text()
    assert len(rows(tmp_path)) == 3


@pytest.mark.parametrize(("prior", "shape"), [("flow", [16, 16, 16]), ("pixel", [3, 32, 32])])
def test_the_toybox_s_own_with_its_energy(launcher, tmp_path, prior, shape):
    """The shipped weights; the multi-view model's latents are not the pixel model's."""
    line = [f"prior=toybox_{prior}", "prompt=a green bear", "device=cpu", "energy=mvs", "schedule.steps=3"]
    line += ["schedule.energy_weight=1", "schedule.resolution=12", "field.encoding.log2_table_size=8"]
    line += ["every.log=1", "every.view=0", "output.views=0", "output.texture=0", "output.mesh_resolution=16"]
    assert launcher.run(tmp_path, line) == 0, (tmp_path / "stderr").read_text()
    assert len(rows(tmp_path)) == 3 and all(row["coherence"] != 0 for row in rows(tmp_path))
    (config,) = tmp_path.rglob("config.yaml")
    models = yaml.safe_load(config.read_text())["models"]
    assert models["text_to_image"]["kind"] == prior
    latent_shape: Any = build_prior("text_to_image", models, "cpu").latent_shape
    assert list(latent_shape) == shape


@pytest.mark.gpu
@pytest.mark.parametrize("models", ["sdxl", "sd35", "if"])
@pytest.mark.parametrize("energy", ["none", "mvs"])
def test_on_cuda(run_on_cuda, words, models, energy):
    """In half precision, from the first step to the mesh; T5 on the CPU."""
    found = rows(run_on_cuda(words(models, f"energy={energy}")))
    assert len(found) == 3 and all((row["coherence"] != 0) == (energy == "mvs") for row in found)


@pytest.mark.gpu
@pytest.mark.parametrize("models", ["sdxl", "sd35", "if"])
def test_a_lora_on_cuda(run_on_cuda, words, models):
    assert len(rows(run_on_cuda(words(models, "distillation=vsd")))) == 3


@pytest.mark.parametrize(
    ("models", "more", "says"),
    [
        ("sdxl", ["models.text_to_image.crop=[0]"], "models.text_to_image.crop=[0]: wanted"),
        ("sdxl", ["+models.text_to_image.text_encoders=2"], "unknown key 'models.text_to_image.text_encoders'"),
        ("sd35", ["models.text_to_image.text_encoders=4"], "text_encoders=4: wanted one of 1, 2, 3"),
        ("sd35", ["models.text_to_image.image_size=18"], "image_size=18: the transformer reads patches of 4 pixels"),
        ("sdxl", ["models.text_to_image.kind=pixel"], "unknown key 'models.text_to_image.vae'"),
        ("sdxl", ["energy=mvs", "~models.text_encoder"], "embeddings of width 16, the text encoder gives 40"),
    ],
)
def test_mistakes_are_one_line(launcher, words, tmp_path, models, more, says):
    status, said = launcher.run(tmp_path, words(models, *more)), (tmp_path / "stderr").read_text()
    assert status == 2 and said.splitlines()[-1].startswith("error: ") and "Traceback" not in said, said
    assert says in said.splitlines()[-1], said


def test_gated_weights_without_a_token_are_one_line(launcher, words, tmp_path):
    environment = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "", "HF_HOME": str(tmp_path)}
    for models in ("sd35", "if"):
        line = [word for word in words(models) if not word.startswith("models.text_to_image.source=")]
        assert launcher.run(tmp_path, line, **environment) == 2
        said = (tmp_path / "stderr").read_text().splitlines()
        assert said[-1].startswith("error: text-to-image model (")
        assert "gated: accept its licence on https://huggingface.co/" in said[-1] and "hf auth login" in said[-1]
        assert f"prefetch text_to_image models={models}`" in said[-1]


def test_the_official_constants():
    """Typed from RFDS's and threestudio's configs (and the models' own), not from the YAML."""
    from jointdreamer.schedules import Plan
    from tests.test_configs import config

    sd35, pixel = config("models=sd35"), config("models=if")
    plan = Plan(sd35["schedule"])
    assert (plan.steps, plan.at(0).guidance_scale, plan.at(0).loss.sparsity) == (15000, 100, 0.2)
    assert sd35["negative_prompt"] == "unrealistic, blurry, low quality, oversaturation."
    t_max = plan.at(0).t_max
    assert 3 * t_max / (1 + 2 * t_max) == pytest.approx(0.875)
    assert (plan.at(0).lr.geometry, plan.at(0).lr.appearance) == (1e-3, 1e-3)  # of the networks
    assert sd35["field"]["encoding_lr"] * plan.at(0).lr.geometry == pytest.approx(1e-2)
    plan = Plan(pixel["schedule"])
    assert (plan.steps, plan.at(0).guidance_scale, plan.at(0).t_min, plan.at(0).t_max) == (10000, 21, 0.02, 0.98)
    assert [plan.at(step).shading for step in (2000, 2001)] == [False, True]
    assert (plan.at(0).lr.geometry, plan.at(0).lr.appearance, plan.at(0).lr.background) == (1e-2, 1e-2, 1e-3)
    assert plan.max("resolution") == pixel["models"]["text_to_image"]["image_size"] == 64
    assert config("models=sdxl")["models"]["text_to_image"]["image_size"] == 1024


def test_where_the_text_of_mvdream_comes_from_is_part_of_a_run_with_mvs():
    from jointdreamer.comparison import compare
    from tests.test_configs import config

    for energy, differs in (("mvs", True), ("none", False)):
        one, two = (config("models=sdxl", f"energy={energy}") for _ in range(2))
        two["models"]["text_encoder"]["source"] = "elsewhere"
        assert bool(compare(one, two, 0).elsewhere) == differs
    assert yaml.safe_load(Path("conf/models/sdxl.yaml").read_text())["models"]["text_encoder"]["source"]
