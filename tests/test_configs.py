"""The real conf/: everything composes, and says what the code that reads it can take."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from jointdreamer.arguments import member_of
from jointdreamer.cameras import Rig
from jointdreamer.distillation.registry import loss_names
from jointdreamer.energies.registry import ENERGIES
from jointdreamer.project import CONF
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.base import Scene
from jointdreamer.scenes.nerf.volume import VolumeRenderer
from jointdreamer.scenes.registry import SCENES
from jointdreamer.schedules import Plan
from jointdreamer.toybox.table import PROMPT_SEED, draw_prompts


@cache
def composed(*overrides: str) -> Any:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        # `name` is filled by Hydra's runtime, which `compose` does not have
        cfg = compose("config", [*overrides, "name=test"], return_hydra_config=False)
    return OmegaConf.to_container(cfg, resolve=True)


def config(*overrides: str) -> Any:
    return deepcopy(composed(*overrides))


def names(group):
    return sorted(path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml"))


OWN_SCHEDULES = [(models, None) for models in names("models")]  # schedule: ${models}
SCHEDULES = [(models, schedule) for models in ("sd21", "toybox") for schedule in names("schedule")]


@pytest.mark.parametrize(("models", "schedule"), [*OWN_SCHEDULES, *SCHEDULES])
def test_every_schedule_parses_and_every_model_has_one(models, schedule):
    cfg = config(f"models={models}", *([f"schedule={schedule}"] if schedule else []))
    assert cfg["models"]["name"] == models
    plan = Plan(cfg["schedule"]).check()
    assert set(vars(plan.at(0).lr)) == {"geometry", "appearance", "background"}
    Rig(**cfg["cameras"])
    SphericalBackground(**cfg["background"])
    VolumeRenderer(**cfg["renderer"])


def test_the_memory_presets_are_their_budgets():
    assert {name: config(f"memory={name}")["memory"]["budget_gb"] for name in names("memory")} == {
        "auto": None, "8gb": 8, "16gb": 16
    }  # fmt: skip


@pytest.mark.parametrize("models", ["sd21", "toybox"])  # the paper's tables are Stable Diffusion 2.1's
@pytest.mark.parametrize("experiment", names("experiment"))
def test_every_experiment_composes(experiment, models):
    cfg = config(f"experiment={experiment}", f"models={models}")
    known = member_of(cfg["scene"]["name"], SCENES, Scene, "scene").regularizer_names
    Plan(cfg["schedule"]).check([*loss_names(cfg["distillation"]["terms"]), *known])
    assert cfg["init_from"] in (None, *names("experiment"))
    second = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()[1]
    assert second.startswith("# python ") and f"experiment={experiment}" in second


def test_an_experiment_s_name_is_its_own():
    """No two experiments share a folder, and none is another's run under a second name."""
    for experiment in names("experiment"):
        text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
        assert f"\nname: {experiment}" in text and "- /experiment/" not in text, experiment


def test_the_tables_protocol():
    """Tables 1 and 3: 5K iterations of 64x64, four views; Table 2: the full schedule, less what a row leaves out."""
    for name in ("table3/none", "table1/mvdream", "table3/cls", "fig10/sum"):
        cfg = config(f"experiment={name}", "models=sd21")
        plan = Plan(cfg["schedule"])
        assert (plan.steps, plan.max("resolution"), plan.at(4999).guidance_scale) == (5000, 64, 31)
        assert plan.at(4999).lr.geometry == 1e-2 and cfg["cameras"]["n_views"] * cfg["cameras"]["n_rigs"] == 4
    rows = {name: Plan(config(f"experiment={name}", "models=sd21")["schedule"]) for name in names("experiment")
            if name.startswith(("table2/", "fig7/"))}  # fmt: skip
    last = {name: (plan.at(5500).guidance_scale, plan.at(5500).lr.geometry, plan.at(5500).loss.orient)
            for name, plan in rows.items()}  # fmt: skip
    plain, switched, faded = (31, 1e-2, 1000), (51, 1e-2, 1000), (31, 1e-6, 0)
    assert last["table2/sds"] == last["table2/jsd"] == plain
    assert last["table2/jsd_cfg"] == switched
    assert last["fig7/fading"] == faded and last["table2/jointdreamer"] == (51, 1e-6, 0)
    for plan in rows.values():  # and nothing else is left out
        assert (plan.steps, plan.max("resolution"), plan.at(5500).loss.opaque) == (6000, 512, 1)


def test_the_baselines_take_no_energy():
    mvdream, weighted = (config(f"distillation={name}", "models=sd21") for name in ("mvdream", "sum"))
    assert mvdream["energy"] == weighted["energy"] == {"name": "none"}
    alone = {"prior": "multi_view", "weighting": "x0"}
    assert mvdream["distillation"]["terms"] == {"mvdream": alone}
    both = {
        "jsd": {"prior": "text_to_image", "weighting": "sds"},
        "mvdream": alone | {"timesteps": "jsd", "x0_limit": None},
    }
    assert weighted["distillation"]["terms"] == both
    assert mvdream["schedule"]["loss"]["jsd"] == 0 and mvdream["schedule"]["loss"]["mvdream"] == 1
    assert weighted["schedule"]["loss"]["jsd"] == weighted["schedule"]["loss"]["mvdream"] == 1
    models = mvdream["models"]["multi_view"]
    assert (models["guidance_scale"], models["rescale"]) == (50.0, 0.5)  # MVDream's own distillation


def test_prolificdreamer_s_rates():
    """threestudio's: NeRF and texture, .01 for the encoding and .001 for the networks; geometry, .005 for all."""
    rates = {}
    for stage in ("nerf", "geometry", "texture"):
        cfg = config(f"experiment=prolificdreamer/{stage}", "models=sd21")
        lr, factor = Plan(cfg["schedule"]).at(0).lr, cfg["field"]["encoding_lr"]
        role = lr.geometry if stage == "nerf" else lr.appearance  # whose part the encoding is there
        rates[stage] = (pytest.approx(role * factor), lr.geometry, lr.appearance, lr.background)
    assert rates == {
        "nerf": (1e-2, 1e-3, 1e-3, 1e-3), "geometry": (5e-3,) * 4, "texture": (1e-2, 0, 1e-3, 1e-3)
    }  # fmt: skip
    others = ("experiment=table1/prolificdreamer", "schedule=jointdreamer")
    assert all(config(one, "models=sd21")["field"]["encoding_lr"] == 1 for one in others)


def test_nfsd_s_negative_prompt_is_its_paper_s_where_the_models_know_the_words():
    found = config("experiment=nfsd", "models=sd21")
    assert found["negative_prompt"].startswith("unrealistic, blurry, low quality, out of focus, ugly")
    assert found["negative_prompt"].endswith("low-resolution, gloomy") and found["schedule"]["guidance_scale"] == 6.5
    assert config("experiment=nfsd", "models=toybox")["negative_prompt"] == ""
    assert config("experiment=nfsd", "models=sd21", "negative_prompt=mine")["negative_prompt"] == "mine"
    assert config("models=sd21")["negative_prompt"].startswith("shadow, oversaturated")


def test_the_noise_levels_of_sdi_pfd_and_ism():
    sdi, pfd = (Plan(config(f"distillation={name}", "models=sd21")["schedule"]) for name in ("sdi", "pfd"))
    for step, t in ((0, 0.98), (sdi.steps // 2, 0.615)):
        assert (sdi.at(step).t_min, sdi.at(step).t_max) == pytest.approx((t, t), abs=1e-3)
    for step, t in ((0, 0.98), (pfd.steps // 2 - 1, 0.98), (pfd.steps // 2, 0.70), (pfd.steps - 1, 0.70)):
        assert (pfd.at(step).t_min, pfd.at(step).t_max) == (0.02, t)
    ism = Plan(config("experiment=ism", "models=sd21")["schedule"])
    assert [ism.at(s).t_max for s in (0, 750, 1500, 4999)] == pytest.approx([0.98, 0.74, 0.5, 0.5])


def test_threestudio_s_sdi():
    cfg = config("experiment=sdi", "models=sd21")
    plan, (term,) = Plan(cfg["schedule"]), cfg["distillation"]["terms"].values()
    assert (plan.steps, plan.at(0).resolution, plan.at(0).guidance_scale) == (10000, 512, 7.5)
    assert [plan.at(step).shading for step in (999, 1000)] == [False, True]
    assert vars(plan.at(0).lr) == {"geometry": 1e-2, "appearance": 1e-2, "background": 1e-3}
    assert cfg["optimizer"]["weight_decay"] == 0  # Adam
    assert term["target"]["name"] == "perp_neg" and term["baseline"]["name"] == "inverted"


def test_the_energies_of_the_registry_and_of_conf_are_the_same():
    assert set(names("energy")) == set(ENERGIES)
    assert all(config(f"energy={name}")["energy"]["name"] == name for name in ENERGIES)


def test_every_yaml_of_a_choice_opens_with_a_comment():
    for path in CONF.rglob("*.yaml"):
        assert path.read_text().startswith("#"), path


def test_appendix_a1():
    """The paper's numbers, typed from the paper (and docs/conventions.md, Stages), not from the YAML."""
    plan = Plan(config("models=sd21", "schedule=jointdreamer")["schedule"])
    assert plan.steps == 6000
    assert [plan.at(s).resolution for s in (0, 2999, 3000, 4999, 5000)] == [64, 64, 256, 256, 512]
    assert [plan.at(s).guidance_scale for s in (0, 4999, 5000)] == [
        31,
        31,
        51,
    ]  # the usual s' = 1 + s of the paper's 30, 50
    assert [plan.at(s).energy_weight for s in (599, 600, 5999)] == [0, 1.25, 1.25]
    assert (plan.at(0).t_min, plan.at(0).t_max) == (0.98, 0.98)
    assert (plan.at(1500).t_min, plan.at(1500).t_max) == pytest.approx((0.5, 0.74))
    assert (plan.at(5999).t_min, plan.at(5999).t_max) == (0.02, 0.5)
    assert [plan.at(s).lr.geometry for s in (0, 4999, 5000)] == [1e-2, 1e-2, 1e-6]
    assert [plan.at(s).loss.orient for s in (0, 1500, 4999, 5000)] == [10, 505, 1000, 0]


def test_the_toybox_rig_is_the_world_s():
    from jointdreamer.toybox.data import RIG

    rig = Rig(**config("models=toybox")["cameras"])
    for key in ("elevation_deg", "fovy_deg", "relative_distance"):
        assert tuple(getattr(rig, key)) == tuple(getattr(RIG, key)), key


def test_the_released_opacity_mask_and_no_clamps_are_the_default():
    cfg = config("models=sd21")
    released = {
        "terms": {"jsd": {"prior": "text_to_image", "weighting": "sds"}},
        "mask": "input",
        "energy_x0": "uncond",
        "mask_floor": 0.0,
        "energy_limit": None,
        "x0_limit": None,
    }
    assert cfg["distillation"] == released
    assert cfg["models"]["text_to_image"]["x0_limit"] is None and cfg["models"]["multi_view"]["x0_limit"] is None


def test_prompt_files_have_sixteen_prompts_and_tuning_shares_none():
    root = Path(__file__).parents[1] / "prompts"
    files = ((root / f"toybox{name}.txt").read_text().splitlines() for name in ("16", "153", "_tuning"))
    measured, captions, tuning = files
    assert len(measured) == len(set(measured)) == 16
    assert captions == draw_prompts(153, PROMPT_SEED) and captions[:16] == measured
    assert not set(measured) & set(tuning)


def test_the_second_stages_of_stable_diffusion():
    """Typed from threestudio's and the official configs; the toybox's prior knows no normal maps."""
    found = {name: config(f"experiment={name}", "models=sd21") for name in names("experiment")}
    meshes = {name: (cfg["scene"]["resolution"], cfg["scene"]["distilled"], cfg["scene"]["threshold"])
              for name, cfg in found.items() if cfg["scene"]["name"] == "dmtet"}  # fmt: skip
    assert meshes == {
        "jointdreamer_dmtet": (128, "rgb", 25.0),
        "magic3d/refine": (128, "rgb", None),
        "prolificdreamer/geometry": (128, "normal", "auto"),
        "prolificdreamer/texture": (128, "rgb", "auto"),
        "image/magic123_refine": (128, "rgb", None),
    }
    last, first = found["jointdreamer_dmtet"], found["table2/jointdreamer"]
    assert last["schedule"]["energy_weight"] == 5 / (last["cameras"]["n_rigs"] * last["cameras"]["n_views"])
    assert [cfg["models"]["text_to_image"]["cfg_rescale"] for cfg in (first, last)] == [0, 0.7]
    assert [cfg["background"]["eval_color"] for cfg in (first, last)] == [[1.0] * 3, [0.66] * 3]
    assert [found[f"image/{name}"]["field"]["encoding_lr"] for name in ("magic123", "magic123_refine")] == [10, 1]
    assert config("experiment=prolificdreamer/geometry", "models=toybox")["scene"]["distilled"] == "rgb"


def test_adam_where_the_authors_take_it():
    found = {name: config(f"experiment={name}", "models=sd21")["optimizer"] for name in names("experiment")}
    plain = ["dreamfusion/if", "dreamfusion/sd", "dreamtime", "hifa", "perp_neg", "magic3d/coarse", "magic3d/refine"]
    plain += ["jointdreamer_dmtet", "prolificdreamer/geometry", "sdi"]
    images = [f"image/{name}" for name in ("magic123", "magic123_refine", "stable_zero123", "zero123")]
    for name, optimizer in found.items():
        eps, decay = 1e-8 if name in images else 1e-15, 0 if name in (*images, *plain) else 0.01
        assert optimizer == {"betas": [0.9, 0.99], "eps": eps, "weight_decay": decay}, name
