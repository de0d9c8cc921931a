"""Energies by name."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from jointdreamer.arguments import build_by_name, check_arguments, function_of, parameters_of
from jointdreamer.energies.base import Energy
from jointdreamer.priors.registry import text_of_multi_view, with_shared

ENERGIES = {  # short name -> where it lives; imported only when chosen
    "none": "jointdreamer.energies.none:NoEnergy",
    "i2i": "jointdreamer.energies.reconstruction:i2i",
    "mvs": "jointdreamer.energies.reconstruction:mvs",
    "imagedream": "jointdreamer.energies.reconstruction:imagedream",
    "random": "jointdreamer.energies.random:RandomEnergy",
    "cls": "jointdreamer.energies.classifier:ClassifierEnergy",
}
ROLES = {
    "mvs": "multi_view",
    "imagedream": "imagedream",
    "i2i": "novel_view",
    "cls": "classifier",
}  # short name -> its model among `models`
WITHOUT_IMAGE = ("mvs", "cls", "random")  # short names of those that no given image can be told


def energy_function(name: str) -> Callable[..., Any]:
    """What builds the energy of a short name, or of your own "module:Class". Raises UserError where there is none."""
    return function_of(name, ENERGIES, Energy, "energy")


def options_of_model(name: str, models: Mapping[str, Any]) -> dict[str, Any]:
    """What the config's `models` say of an energy's own model: the options of its role that it takes."""
    if (role := ROLES.get(name)) is None:
        return {}
    wanted = parameters_of(name, ENERGIES, Energy, "energy")
    options = {key: value for key, value in with_shared(models, models.get(role) or {}).items() if key in wanted}
    # a text-to-image model whose text it cannot read, or a model that is told a picture beside the text
    if "text" in wanted and ("text_encoder" in models or role == "imagedream"):
        options.setdefault("text", text_of_multi_view(models))
    return options


def check_energy(models: Mapping[str, Any], name: str, **options: Any) -> None:
    """Refuse what `build_energy` would refuse, without reading any weights. Raises UserError, one line."""
    function = energy_function(name)
    check_arguments(function, options, "energy", whole=False)
    check_arguments(function, options_of_model(name, models), f"models.{ROLES.get(name)}", whole=False)


def build_energy(
    name: str, models: Mapping[str, Any] | None = None, device: torch.device | str = "cpu", **options: Any
) -> Energy:
    """Build an energy from its short name, or from your own "module:Class", on a device.

    models: the config's group of that name; an energy of ours takes the options of its model from there
    options: its further ones; an energy that takes `device` is given it (it may choose its precision by it), any other
        is moved there

    Raises UserError for a name, module, class or option that does not exist.
    """
    options = {**options_of_model(name, models or {}), **options}
    if "device" in parameters_of(name, ENERGIES, Energy, "energy"):
        options["device"] = device
    return build_by_name(name, ENERGIES, Energy, "energy", options).to(device)
