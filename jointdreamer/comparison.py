"""Whether two configs compute the same parameters: what a run may be continued with, or shown again.

A config also says where a run lies, on what it is computed and what is shown of it, names weights by where they lie,
and holds settings of parts that the run never reads. None of that computes the parameters. Two schedules are the same
if they are the same at the steps that are done.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jointdreamer.cameras import Rig
from jointdreamer.distillation.joint import JointScoreDistillation
from jointdreamer.distillation.registry import PARTS
from jointdreamer.energies.registry import ROLES, energy_function
from jointdreamer.errors import UserError
from jointdreamer.optim import build_optimizer
from jointdreamer.priors.coordinates import CoordinateDiffusion
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.multi_view import MultiViewDiffusion
from jointdreamer.priors.prompts import encode_prompt
from jointdreamer.runs.same_config import MAY_DIFFER, Comparison, differing_keys, flat, same
from jointdreamer.runs.versions import current_config
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.nerf.encoding import HashEncoding
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.volume import VolumeRenderer
from jointdreamer.schedules import Plan
from jointdreamer.weights.find import local_path

# The last word of a key: how something is computed, not what.
HOW = ("backend", "compile", "low_memory", "workers")
# The last word of a key that names weights by where they lie: their content counts, as far as it is compared.
PLACES, COMPARED = ("source", "file", "vae", "decoder", "start_from", "init_from"), ("source", "file")
# Priors that are told a text by the text encoder of `models`, which need not be the text-to-image model's
OTHER_TEXT = {"multi_view", "coordinates"}
# Whose signature says what a setting means that a config does not have.
TAKERS = {
    "cameras": (Rig,),
    "field": (HashGridField,),
    "field.encoding": (HashEncoding,),
    "background": (SphericalBackground,),
    "renderer": (VolumeRenderer,),
    "optimizer": (build_optimizer,),
    "prompts": (encode_prompt,),
    "distillation": (JointScoreDistillation,),
    "models.text_to_image": (LatentDiffusion.build,),
    "models.multi_view": (MultiViewDiffusion.build,),
    "models.coordinates": (CoordinateDiffusion.build,),
}
# What the scripts did before they read these.
BEFORE = {
    "image_sha256": None,
    "precision": "no",
    "negative_prompt": "",
    "distillation.energy_limit": None,
    "distillation.x0_limit": None,
    "start_from": None,
    "init_from": None,
    "estimates.share": 0,
    "estimates.guided": 0,
    "training.derivative_weight": 0,
    "training.step_weight": 0,
    "training.direction_weight": 0,
    "training.ascent": 0,
}
# What the energies alone read: nothing where there is none.
OF_ENERGIES = ("distillation.mask", "distillation.mask_floor", "distillation.energy_x0", "distillation.energy_limit")
OF_ENERGIES += ("schedule.energy_weight",)


def compare(there: dict[str, Any], here: dict[str, Any], done: int) -> Comparison:
    """Two configs of train.py, of which `done` steps were done as `there` says.

    A setting that one of them does not have means what was done before there was such a setting: the default of the
    function that takes it.
    Raises UserError for fewer steps than are done.
    """
    equal = same(there, here)
    there, here = current_config(there), current_config(here)
    plan = Plan(here["schedule"])
    if plan.steps < done:
        raise UserError(
            f"{done} steps are done, and schedule.steps={plan.steps} asks for fewer: ask for {done} or more, or give "
            "name=... for a shorter run of its own"
        )
    used = list(_read_by_training(here, plan))
    differing, elsewhere = _differing(there, here, used)
    specs, other_spec = _without_steps(there, here)
    try:
        changed = Plan({**specs[0], "steps": _steps(there)}).differing(Plan({**specs[1], "steps": plan.steps}), done)
    except UserError:  # a schedule that this version cannot read
        changed = list(other_spec)
    changed = [name for name in changed if _is_used(name, used)]
    remarks = []
    if changed and not any(key == name or key.startswith(f"{name}.") for name in changed for key in other_spec):
        remarks.append(
            f"{', '.join(changed)}: knots at shares of the run move with schedule.steps, now {plan.steps}; the {done} "
            "steps that are done saw them where they were"
        )
    else:
        differing |= {name: other_spec.get(name) or f"{name} differs before step {done}" for name in changed}
    outputs = bool(differing_keys(there.get("output"), here.get("output"), shared=True))
    return Comparison(tuple(differing.values()), tuple(elsewhere), tuple(remarks), outputs, equal)


def compare_classifiers(there: dict[str, Any], here: dict[str, Any], done: int) -> Comparison:
    """Two configs of train_classifier.py."""
    reads = [key for key in here if key not in (*MAY_DIFFER, "models")]
    if here["start_from"] is None:
        reads.append("models.classifier_backbone")
    if here["estimates"]["share"] or here["estimates"]["guided"]:
        reads.append("models.text_to_image")
    differing, elsewhere = _differing(there, here, reads)
    return Comparison(tuple(differing.values()), tuple(elsewhere), equal=same(there, here))


def _read_by_training(config: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    """What of a config computes the parameters: keys, groups by their names; with a minus, what is not read."""
    of_image = ("image", "mask", "image_camera", "image_fill")
    yield from (key for key in config if key not in (*MAY_DIFFER, *of_image, "models", "negative_prompt"))
    if config.get("image") is not None:  # whose content is `image_sha256`, wherever it lies
        yield from ("image_camera", "image_fill")
    if config["energy"]["name"] == "none":
        yield from (f"-{key}" for key in OF_ENERGIES)
    if config["energy"]["name"] in ROLES:
        yield f"models.{ROLES[config['energy']['name']]}"
    terms = config["distillation"]["terms"]
    if config["energy"]["name"] == "mvs" or any(OTHER_TEXT & {*_roles(term)} for term in terms.values()):
        yield "models.text_encoder"
    yield "models.dtype"
    if plan.max("negative_prompt", False):
        yield "negative_prompt"
    yield "models.text_to_image.source"  # the text encoder's
    for name, term in terms.items():
        if plan.max(f"loss.{name}", 0):
            yield from (f"models.{role}" for role in _roles(term))


def _roles(term: Any) -> list[Any]:
    """The roles of the priors that a term asks, its own and those of its parts."""
    asked = [term, *(term.get(part) for part in PARTS)] if isinstance(term, Mapping) else []
    return [one["prior"] for one in asked if isinstance(one, Mapping) and one.get("prior")]


def _is_used(key: str, used: list[str]) -> bool:
    parts = key.split(".")
    starts = {".".join(parts[: n + 1]) for n in range(len(parts))}
    return not starts.isdisjoint(used) and f"-{key}" not in used


def _differing(there: dict[str, Any], here: dict[str, Any], used: list[str]) -> tuple[dict[str, str], list[str]]:
    """What differs of the keys that are used, schedules aside, in words by key; and of weights, in words."""
    one, two = (_settings(config, used) for config in (there, here))
    defaults = _all_defaults(here) if one.keys() != two.keys() else {}
    for key in one.keys() ^ two.keys():
        if key in defaults:
            one.setdefault(key, defaults[key])
            two.setdefault(key, defaults[key])
    found = differing_keys(one, two)
    found = {key: said for key, said in found.items() if not _is_same_place(key, one.get(key), two.get(key))}
    elsewhere = [key for key in found if key.rpartition(".")[2] in COMPARED]
    return {key: said for key, said in found.items() if key not in elsewhere}, [found[key] for key in elsewhere]


def _settings(config: dict[str, Any], used: list[str]) -> dict[str, Any]:
    flattened = flat({key: value for key, value in config.items() if key != "schedule"})
    return {key: value for key, value in flattened.items() if _is_used(key, used) and key.rpartition(".")[2] not in HOW}


def _is_same_place(key: str, one: Any, two: Any) -> bool:
    if key.rpartition(".")[2] not in PLACES or not isinstance(one, str) or not isinstance(two, str):
        return False
    first, second = local_path(one), local_path(two)
    return first is not None and second is not None and Path(first).resolve() == Path(second).resolve()


def _defaults(*takers: Callable) -> dict[str, Any]:
    parameters = {key: one for taker in takers for key, one in inspect.signature(taker).parameters.items()}
    return {key: one.default for key, one in parameters.items() if one.default is not one.empty}


def _all_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"{group}.{key}": value for group in TAKERS for key, value in _defaults(*TAKERS[group]).items()}
    if "energy" in config:
        name = config["energy"]["name"]
        group = f"models.{ROLES[name]}" if name in ROLES else "energy"
        found |= {f"{group}.{key}": value for key, value in _defaults(energy_function(name)).items()}
    return {**found, **BEFORE}


def _steps(config: Mapping[str, Any]) -> Any:
    schedule = config.get("schedule")
    return schedule.get("steps") if isinstance(schedule, dict) else None


def _without_steps(there: dict[str, Any], here: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Both schedules without `steps`, a loss that one does not have at weight 0; and what differs in their words."""
    specs = []
    for config in (there, here):
        spec = config.get("schedule")
        specs.append({key: value for key, value in spec.items() if key != "steps"} if isinstance(spec, dict) else {})
    losses = {key for spec in specs if isinstance(spec.get("loss"), dict) for key in spec["loss"]}
    for spec in specs:
        if isinstance(spec.get("loss"), dict):
            spec["loss"] = {**dict.fromkeys(sorted(losses), 0), **spec["loss"]}
    return specs, differing_keys({"schedule": specs[0]}, {"schedule": specs[1]})
