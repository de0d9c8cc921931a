"""Priors by their role among a config's models."""

from collections.abc import Mapping
from typing import Any

import torch

from jointdreamer.arguments import check_arguments
from jointdreamer.errors import UserError
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.multi_view import MultiViewGuidance

PRIORS = ("text_to_image", "multi_view")


def build_guidance(role: str, models: Mapping[str, Any], device: torch.device | str) -> Any:
    """The prior of that role, a LatentDiffusion or a MultiViewGuidance, from the config's group `models`.

    Raises UserError for another role, or options that it does not take.
    """
    if role == "text_to_image":
        return LatentDiffusion(**models[role], device=device)
    if role != "multi_view":
        raise UserError(f"unknown prior {role!r}: choose one of {', '.join(PRIORS)}")
    options = {**(models.get(role) or {}), "text": models["text_to_image"]["source"]}
    check_arguments(MultiViewGuidance, options, f"models.{role}")
    return MultiViewGuidance(**options, device=device)
