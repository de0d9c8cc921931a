"""What runs of earlier versions look like, read as one of this version: the only place that knows how things were."""

from collections.abc import Mapping
from typing import Any

# config key until 2026-11-29 -> what it is called now
RENAMED = {
    "schedule.lr.encoding": "schedule.lr.geometry, times field.encoding_lr",
    "schedule.lr.density": "schedule.lr.geometry",
    "schedule.lr.albedo": "schedule.lr.appearance",
    "distillation.prior": "distillation.terms.NAME.prior",
    "distillation.weighting": "distillation.terms.NAME.weighting",
}
# rows of tables that were another one's run, until 2026-11-29
RENAMED |= {
    f"experiment/{row}": f"experiment={same}"
    for row, same in {
        "table1/dreamfusion": "table3/none",
        "table1/jointdreamer": "table3/mvs",
        "fig7/neither": "table2/jsd",
        "fig7/cfg_switching": "table2/jsd_cfg",
        "fig7/both": "table2/jointdreamer",
        "fig8/sds": "table3/none",
        "fig8/jsd": "table3/mvs",
        "fig10/mvdream": "table1/mvdream",
        "fig10/jsd": "table3/mvs",
    }.items()
}
# energy -> its model among `models`, which has the options that the energy had until 2026-11-29
MODELS = {"mvs": "multi_view", "i2i": "novel_view", "cls": "classifier"}


def renamed(key: str, energy: str = "") -> str | None:
    """What a config key of an earlier version is called now; None for one that was never there.

    energy: the one that was chosen
    """
    group, _, rest = key.partition(".")
    if group == "energy" and energy in MODELS:
        return f"models.{MODELS[energy]}.{rest}"
    return RENAMED.get(key)


ENCODING = ("n_levels", "n_features", "log2_table_size", "base_resolution", "growth", "backend")  # once of the field
PARTS = ("field", "background", "renderer")  # of a NeRF, each for itself in a checkpoint until 2026-11-29
GROUPS = {"encoding": "geometry:encoding", "density": "geometry", "albedo": "appearance"}  # of its optimiser


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run of any version as this one writes it; a copy where something changes.

    2026-11-25: the encoding's settings left the field's own. 2026-11-29: `scene`, terms, learning rates by role.
    """
    config = {"scene": {"name": "nerf"}, **config}
    if isinstance(field := config.get("field"), Mapping) and "encoding" not in field:
        moved = [name for name in ENCODING if name in field]
        kept = {name: value for name, value in field.items() if name not in moved}
        config["field"] = kept | {"encoding": {name: field[name] for name in moved}}
    schedule = config["schedule"] = _copied(config.get("schedule"))
    distillation = config.get("distillation")
    if isinstance(distillation, Mapping) and "terms" not in distillation:
        config["distillation"] = _with_terms(distillation, schedule)
    config["models"], config["energy"] = _with_models(config.get("models"), config.get("energy"))
    rates = schedule.get("lr", {})
    if "density" in rates:
        encoding, density, albedo = (rates.pop(name, None) for name in ("encoding", "density", "albedo"))
        schedule["lr"] = {"geometry": density, "appearance": albedo, **rates}
        config["field"] = {**config["field"], "encoding_lr": _ratio(encoding, density)}
    return config


def _copied(schedule: Any) -> dict[str, Any]:
    if not isinstance(schedule, Mapping):
        return {}
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in schedule.items()}


def _with_terms(distillation: Mapping[str, Any], schedule: dict[str, Any]) -> dict[str, Any]:
    """One term for the prior, another for the second one of Fig. 10; `schedule` gets the weight of MVDream's."""
    kept = {key: value for key, value in distillation.items() if key not in ("prior", "weighting")}
    prior, weighting = distillation.get("prior", "text_to_image"), distillation.get("weighting", "sds")
    losses = schedule.get("loss", {})
    if prior == "multi_view":
        schedule["loss"] = {**losses, "jsd": 0, "mvdream": losses.get("jsd", 1)}
        return {"terms": {"mvdream": {"prior": prior, "weighting": weighting}}, **kept}
    terms: dict[str, Any] = {"jsd": {"prior": prior, "weighting": weighting}}
    if losses.get("mvdream"):
        terms["mvdream"] = {"prior": "multi_view", "weighting": "x0", "timesteps": "jsd", "x0_limit": None}
    return {"terms": terms, **kept}


def _with_models(models: Any, energy: Any) -> tuple[Any, Any]:
    """An energy's options where its model's are; dtype and compile once for all, unless a model has its own."""
    if not isinstance(models, Mapping) or not isinstance(energy, Mapping):
        return models, energy
    models, role = _copied(models), MODELS.get(energy.get("name", ""))
    if role is not None and isinstance(models.get(role), dict):
        models[role] |= {key: value for key, value in energy.items() if key != "name"}
        energy = {"name": energy["name"]}
    for group in models.values():
        for key in ("dtype", "compile"):
            if isinstance(group, dict) and key in models and group.get(key) == models[key]:
                del group[key]
    return models, energy


def _ratio(one: Any, other: Any) -> Any:
    """The factor between two schedules; None if there is none: a resume then says that the rates differ."""
    first, second = ([knot[:2] for knot in x] if isinstance(x, list) else [[0, x]] for x in (one, other))
    if len(first) != len(second) or any(a[0] != b[0] for a, b in zip(first, second, strict=True)):
        return None
    factors = {round(a[1] / b[1], 9) for a, b in zip(first, second, strict=True)}
    return factors.pop() if len(factors) == 1 else None


def current_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a checkpoint of any version, by the names of this one."""
    if "scene" in parts or not set(PARTS) <= parts.keys():
        return dict(parts)
    scene = {f"{part}.{key}": value for part in PARTS for key, value in parts[part].items()}
    found = {"scene": scene, **{name: value for name, value in parts.items() if name not in PARTS}}
    if "optimizer" in found:
        groups = [
            {**group, "name": GROUPS.get(group["name"], group["name"])} for group in found["optimizer"]["param_groups"]
        ]
        found["optimizer"] = {**found["optimizer"], "param_groups": groups}
    return found
