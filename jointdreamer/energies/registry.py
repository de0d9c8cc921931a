"""Energies by name."""

import inspect
from importlib import import_module

import torch

from jointdreamer.arguments import check_arguments
from jointdreamer.energies.base import Energy
from jointdreamer.errors import UserError

ENERGIES = {  # short name -> where it lives; imported only when chosen
    "none": "jointdreamer.energies.none:NoEnergy",
    "i2i": "jointdreamer.energies.image_to_image:ImageToImageEnergy",
    "mvs": "jointdreamer.energies.multiview:MultiViewEnergy",
    "random": "jointdreamer.energies.random:RandomEnergy",
    "cls": "jointdreamer.energies.classifier:ClassifierEnergy",
}


def energy_class(name: str) -> type[Energy]:
    """The class behind a short name, or your own "module:Class". Raises UserError where there is none."""
    module, _, cls = ENERGIES.get(name, name).partition(":")
    if not cls:
        raise UserError(f"unknown energy {name!r}: choose one of {', '.join(ENERGIES)}, or 'your_module:YourClass'")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there and misses something of its own
        raise UserError(f"energy {name!r}: no module {module!r}; is its folder on PYTHONPATH?") from error
    kind = getattr(found, cls, None)
    if not (inspect.isclass(kind) and issubclass(kind, Energy)):
        raise UserError(f"energy {name!r}: module {module!r} has no class {cls!r} that derives from Energy")
    return kind


def build_energy(name: str, device: torch.device | str = "cpu", **options) -> Energy:
    """Build an energy from its short name, or from your own "module:Class", on a device.

    A class that takes `device` is given it (it may choose its precision by it); any other is moved there.

    Raises UserError for a name, module, class or option that does not exist.
    """
    kind = energy_class(name)
    if "device" in inspect.signature(kind).parameters:
        options["device"] = device
    check_arguments(kind, options, "energy")
    return kind(**options).to(device)
