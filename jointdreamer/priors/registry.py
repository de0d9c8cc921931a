"""Priors by their role among a config's models."""

from collections.abc import Mapping
from typing import Any

import torch

from jointdreamer.arguments import build_by_name, parameters_of
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Prior

PRIORS = {  # kind -> where it lives; imported only when chosen
    "latent": "jointdreamer.priors.latent:LatentDiffusion",
    "multi_view": "jointdreamer.priors.multi_view:MultiViewDiffusion",
}
ROLES = {
    "text_to_image": "latent",
    "multi_view": "multi_view",
}  # role -> its kind where `models.ROLE.kind` is not given


def build_prior(role: str, models: Mapping[str, Any], device: torch.device | str) -> Prior:
    """The prior of that role from the config's group `models`; `models.ROLE.kind` may be your own "module:Class".

    Raises UserError for another role, or options that it does not take.
    """
    if not isinstance(models.get(role), Mapping):
        raise UserError(f"unknown prior {role!r}: choose one of {', '.join(ROLES)}")
    options = dict(models[role])
    kind = options.pop("kind", None) or ROLES.get(role, role)
    family = f"models.{role}"
    parameters = parameters_of(kind, PRIORS, Prior, family)
    shared = {"device": device, "text": models.get("text_to_image", {}).get("source")}
    options |= {key: value for key, value in shared.items() if key in parameters}
    return build_by_name(kind, PRIORS, Prior, family, options).to(device)
