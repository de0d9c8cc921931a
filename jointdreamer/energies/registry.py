"""Energies by name."""

from collections.abc import Callable
from typing import Any

import torch

from jointdreamer.arguments import build_by_name, function_of, parameters_of
from jointdreamer.energies.base import Energy

ENERGIES = {  # short name -> where it lives; imported only when chosen
    "none": "jointdreamer.energies.none:NoEnergy",
    "i2i": "jointdreamer.energies.reconstruction:i2i",
    "mvs": "jointdreamer.energies.reconstruction:mvs",
    "random": "jointdreamer.energies.random:RandomEnergy",
    "cls": "jointdreamer.energies.classifier:ClassifierEnergy",
}


def energy_function(name: str) -> Callable[..., Any]:
    """What builds the energy of a short name, or of your own "module:Class". Raises UserError where there is none."""
    return function_of(name, ENERGIES, Energy, "energy")


def build_energy(name: str, device: torch.device | str = "cpu", **options: Any) -> Energy:
    """Build an energy from its short name, or from your own "module:Class", on a device.

    One that takes `device` is given it (it may choose its precision by it); any other is moved there.

    Raises UserError for a name, module, class or option that does not exist.
    """
    if "device" in parameters_of(name, ENERGIES, Energy, "energy"):
        options["device"] = device
    return build_by_name(name, ENERGIES, Energy, "energy", options).to(device)
