"""train.py's own loop beside tests/reference_step.py: the gradients, the parameters and the numbers of whole steps.

A run of three steps leaves a checkpoint after each. From one of them, random numbers included, the reference does the
next step, and must end where the run's next checkpoint is. All that is known of the package is on the command line and
in the files of the run folder. Each case has every limit, mask and rescaling that it names at work: `active` says so.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference_step import F64, Reference, Settings, State, Step

STEPS = 3
# The loop computes in float32, the reference in float64: gradients were found to differ by at most 1e-5 of their norm
# (guidance multiplies rounding by its scale, x0 by sigma_t / alpha_t), and AdamW's updates, which divide each number by
# its own size, by 1e-4. Whatever a case names as at work changes its numbers by a hundred times the tolerance or more.
GRADIENTS, UPDATES, NUMBERS, AT_WORK = 1e-4, 1e-3, 1e-5, 1e-2
ENCODING = {"n_levels": 3, "n_features": 2, "log2_table_size": 9, "base_resolution": 4, "growth": 1.7}
SCHEDULE: dict[str, Any] = {
    "resolution": 12,
    "t_min": [[0, 0.2], [4, 0.6, "linear"]],
    "t_max": [[0, 0.5], [4, 0.9, "linear"]],
    "guidance_scale": [[0, 6], [4, 18, "linear"]],
    "energy_weight": [[0, 2], [4, 8, "linear"]],
    "negative_prompt": [[0, False], [2, True]],
    "shading": False,
    "lr": {"geometry": [[0, 0.01], [4, 0.005, "linear"]], "appearance": 0.02, "background": 0.001},
    "loss": {"jsd": 1, "orient": 0, "sparsity": 0.3, "opaque": 0.3, "z_variance": 0},
}
NORMALS = {"orient": 10, "sparsity": 0.5, "opaque": 0.5, "z_variance": 2}


# A limit behind a stricter one would be at work and yet change nothing: no case has two of one quantity.


def case(name: str, active: str = "", **changes: Any) -> Any:
    """active: the limits and masks that must be at work; `loss` and `schedule` change the schedule."""
    loss = {**SCHEDULE["loss"], **changes.pop("loss", {})}
    if changes.get("prior") == "multi_view":
        loss["mvdream"] = loss.pop("jsd")
    schedule = {**SCHEDULE, **changes.pop("schedule", {}), "loss": loss}
    return pytest.param(changes | {"schedule": schedule}, active.split(), id=name)


CASES = [
    case(
        "none",
        "diffuse cfg cfg_rescale x0_rescale text_to_image.x0_limit",
        seed=1,
        schedule={"t_min": 0.02, "t_max": 0.98, "shading": True},
        loss=NORMALS,
        text_to_image={"cfg_rescale": 0.4, "x0_rescale": 0.7, "x0_limit": 1.0},
        update_every=1,
        random_probability=0.0,
    ),
    case(
        "mvs",
        "cfg x0_rescale multi_view.cfg multi_view.rescale multi_view.x0_limit mask mask_floor energy energy_limit "
        "x0_limit",
        energy="mvs",
        mask="gradient",
        mask_floor=0.2,
        energy_limit=2.0,
        x0_limit=1.0,
        text_to_image={"x0_rescale": 0.7},
        multi_view={"vae": "shared", "x0_limit": 1.0},
    ),
    case(
        "mvs-as-released",
        "cfg multi_view.cfg multi_view.rescale mask energy",
        energy="mvs",
        mask="input",
        weighting="fantasia3d",
        n_rigs=2,
        random_grey_range=None,
    ),
    case(
        "mvs-without-mask", "cfg energy energy_limit", energy="mvs", mask="none", weighting="uniform", energy_limit=0.5
    ),
    case(
        "random",
        "cfg mask energy energy_limit x0_limit",
        energy="random",
        energy_limit=1.0,
        x0_limit=1.0,
        energy_scale=3.0,
    ),
    case("cls", "cfg mask energy energy_limit", energy="cls", energy_limit=3.0),
    case(
        "cls-given",
        "cfg mask energy energy_limit",
        seed=3,  # of 0, float32 on a CPU with AVX-512 moves the coherence by twice NUMBERS (LAB.md)
        energy="cls",
        energy_x0="guided",
        energy_limit=3.0,
        classifier={"pairs": "given", "anchor": "front", "scale": 4.0},
    ),
    case(
        "cls-ascent",
        "cfg mask energy energy_limit",
        energy="cls",
        energy_x0="guided",
        energy_limit=1.0,
        first_azimuth_deg=(-15, 15),
        classifier={"pairs": "all", "anchor": "front", "ascent": 2, "ascent_step": 2.0},
    ),
    case(
        "i2i",
        "cfg mask energy energy_limit novel_view.x0_limit",
        energy="i2i",
        energy_x0="guided",
        energy_limit=1.0,
        first_azimuth_deg=(-10, 10),
        novel_view={"reference": 0, "reference_image": "estimate", "x0_limit": 0.5},
    ),
    case(
        "i2i-as-printed",
        "novel_view.cfg mask energy",
        energy="i2i",
        mask="input",
        novel_view={"guidance_scale": 3.0, "white": True},
    ),
    case(
        "mvdream",
        "multi_view.cfg multi_view.rescale multi_view.x0_limit",
        prior="multi_view",
        weighting="x0",
        multi_view={"x0_limit": 0.8},
    ),
    case(
        "sum",
        "cfg multi_view.cfg multi_view.rescale multi_view.x0_limit",
        loss={"mvdream": 0.5},
        multi_view={"x0_limit": 1.0},
    ),
]


@pytest.fixture(scope="module")
def settings(tiny_sd_folder, tiny_mv_folder, tiny_nv_folder, tiny_classifier_folder) -> Callable[..., Settings]:
    """settings(energy="mvs", multi_view={"x0_limit": 1}) -> a run with tiny random networks."""
    sd, mv = tiny_sd_folder("epsilon"), tiny_mv_folder("v_prediction")
    options: dict[str, dict[str, Any]] = {
        "text_to_image": {"source": str(sd), "cfg_rescale": 0.0, "x0_rescale": 0.0, "x0_limit": None},
        "multi_view": {"source": str(mv), "vae": str(sd), "guidance_scale": 20.0, "rescale": 0.5, "x0_limit": None},
        "novel_view": {"source": str(tiny_nv_folder), "vae": str(sd), "guidance_scale": 1.0, "white": False,
                       "reference": None, "reference_image": "render", "x0_limit": None},
        "classifier": {"source": str(tiny_classifier_folder), "pairs": "neighbours", "anchor": None, "ascent": 0,
                       "ascent_step": 6.0, "scale": 1.0},
    }  # fmt: skip

    def make(**changes: Any) -> Settings:
        changed = {name: {**own, **changes.pop(name, {})} for name, own in options.items()}
        prompts = {"prompt": "a red robot", "negative_prompt": "a back hat"}
        return Settings(**{"encoding": ENCODING, "encoding_lr": 1.5, "n_samples": 24, **prompts, **changed, **changes})

    return make


def words(s: Settings) -> list[str]:
    """The command line of this run."""
    distillation = {"multi_view": "mvdream", "text_to_image": "sum" if "mvdream" in s.schedule["loss"] else "jsd"}
    groups: dict[str, Any] = {
        "models": {
            "dtype": "float32",
            **{name: getattr(s, name) for name in ("text_to_image", "multi_view", "novel_view", "classifier")},
        },
        "schedule": {"steps": STEPS, **s.schedule, "loss": {**s.schedule["loss"], "smooth": 0}},
        "distillation": {
            name: getattr(s, name) for name in ("mask", "mask_floor", "energy_x0", "energy_limit", "x0_limit")
        },
        "field": {"encoding": s.encoding, "hidden": 16, "encoding_lr": s.encoding_lr},
        "renderer": {"n_samples": s.n_samples, "grid_resolution": s.grid_resolution, "+update_every": s.update_every},
        "background": {"random_probability": s.random_probability, "random_grey_range": s.random_grey_range},
        "cameras": {
            name: getattr(s, name)
            for name in ("n_rigs", "elevation_deg", "fovy_deg", "relative_distance", "first_azimuth_deg")
        },
        "every": {"checkpoint": 1, "view": 0, "log": 1},
        "output": {"views": 2, "resolution": 8, "mesh_resolution": 8},
    }
    for name in ("text_to_image", "multi_view", "novel_view", "classifier"):
        groups["models"][name] = {**groups["models"][name], "image_size": s.image_size}
    first = "mvdream" if s.prior == "multi_view" else "jsd"
    groups["distillation"]["terms"] = {first: {"weighting": s.weighting}}
    if s.energy == "random":
        groups["energy"] = {"scale": s.energy_scale}
    choices = [
        "models=toybox",
        f"distillation={distillation[s.prior]}",
        f"energy={s.energy}",
        "device=cpu",
        f"seed={s.seed}",
    ]
    texts = [f'prompt="{s.prompt}"', f'negative_prompt="{s.negative_prompt}"']
    return [*choices, *texts, *flat(groups)]


def flat(value: Any, name: str = "") -> list[str]:
    """Nested options as words: a.b=1."""
    if isinstance(value, dict):
        return [word for key, inner in value.items() for word in flat(inner, f"{name}.{key}" if name else key)]
    name, plus = name.replace("+", ""), "+" if "+" in name else ""
    return [f"{plus}{name}={as_word(value)}"]


def as_word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(as_word, value)) + "]"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


# What a checkpoint holds

PARAMETERS = {  # of each group of the optimiser
    "geometry:encoding": ["field.encoding.params"],
    "geometry": ["field.density_mlp.first", "field.density_mlp.last"],
    "appearance": ["field.albedo_mlp.first", "field.albedo_mlp.last"],
    "background": [f"background.mlp.{i}.weight" for i in (0, 2, 4)],
}
OF_THE_REFERENCE = dict(zip(PARAMETERS, ("encoding", "density", "albedo", "background"), strict=True))


def read_state(checkpoint: dict[str, Any]) -> State:
    """A checkpoint's scene and optimiser, float64."""
    parts = checkpoint["parts"]
    optimizer, state = parts["optimizer"], State({}, {}, {}, {}, *read_occupancy(parts))
    groups = {group["name"]: group["params"] for group in optimizer["param_groups"]}
    assert groups.keys() == PARAMETERS.keys()
    for group, names in PARAMETERS.items():
        role = OF_THE_REFERENCE[group]
        state.parameters[role] = [parts["scene"][name].to(F64) for name in names]
        moments = [optimizer["state"].get(index, {}) for index in groups[group]]
        zeros = [torch.zeros_like(p) for p in state.parameters[role]]
        state.first[role] = [m.get("exp_avg", zero).to(F64) for m, zero in zip(moments, zeros, strict=True)]
        state.second[role] = [m.get("exp_avg_sq", zero).to(F64) for m, zero in zip(moments, zeros, strict=True)]
        state.count[role] = [int(m.get("step", 0)) for m in moments]
    return state


def read_occupancy(parts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return parts["scene"]["renderer.occupancy"].to(F64), parts["scene"]["renderer.occupied"]


def error(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|."""
    return ((found - wanted).norm() / wanted.norm().clamp(min=1e-300)).item()


@pytest.fixture(scope="module")
def run(launcher, settings, tmp_path_factory) -> Callable[[dict[str, Any]], tuple[Settings, Path]]:
    """run(changes) -> the settings, and the folder of a finished run of train.py with them."""

    def go(changes: dict[str, Any]) -> tuple[Settings, Path]:
        s, folder = settings(**changes), tmp_path_factory.mktemp("run")
        assert launcher.run(folder, words(s)) == 0, (folder / "stderr").read_text()
        (result,) = folder.glob("runs/**/result.json")
        return s, result.parent

    return go


def load(run: Path, step: int) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"step_{step:06d}.pt", weights_only=True)


@pytest.mark.parametrize(("changes", "active"), CASES)
def test_the_loop_does_the_step_of_the_equations(run, changes, active):
    s, folder = run(changes)
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    start, end = load(folder, STEPS - 1), load(folder, STEPS)
    before, after = read_state(start), read_state(end)
    reference, arguments = Reference(s), (before, STEPS - 1, start["parts"]["generator"])
    made = reference.step(*arguments)
    idle = {name: made.active.get(name, 0) for name in active if made.active.get(name, 0) < AT_WORK}
    assert idle == {}, "these settings do not test what they should"

    assert made.undecided <= 4, "too much of this step hangs on rounding: take another seed"
    others = (reference.step(*arguments, sides=sides) for sides in range(1, 2**made.undecided))
    found = [faults(one, before, after, row) for one in (made, *others)]
    assert min(found, key=len) == {}


def faults(made: Step, before: State, after: State, row: dict[str, float]) -> dict[str, Any]:
    """What the run's state after the step and its row of metrics do not share with the reference's, in tolerances."""
    wrong: dict[str, Any] = {}
    for role, gradients in made.gradients.items():
        for i, gradient in enumerate(gradients):
            old, new = before.parameters[role][i], after.parameters[role][i]
            if gradient is None:
                wrong[f"{role} {i}"] = 0.0 if torch.equal(old, new) else "moved without a gradient"
                continue
            found = (after.first[role][i] - 0.9 * before.first[role][i]) / 0.1  # what AdamW averaged in
            wrong[f"gradient of {role} {i}"] = error(found, gradient) / GRADIENTS
            wrong[f"update of {role} {i}"] = error(new - old, made.state.parameters[role][i] - old) / UPDATES
    wrong["occupancy"] = error(after.occupancy, made.state.occupancy) / NUMBERS
    wrong["occupied"] = float((after.occupied != made.state.occupied).sum())
    numbers = {f"loss/{name}": value for name, value in made.losses.items()}
    numbers |= {name: getattr(made, name) for name in ("loss", "coherence", "opacity")}
    for name, value in numbers.items():
        wrong[name] = abs(row[name] - value) / (NUMBERS * max(abs(value), 1e-3))
    print(made.active, made.undecided, wrong)
    return {name: value for name, value in wrong.items() if not isinstance(value, float) or not value < 1}
