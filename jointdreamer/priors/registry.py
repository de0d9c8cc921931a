"""Priors by their role among a config's models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jointdreamer.arguments import build_by_name, check_arguments, function_of, member_of, parameters_of
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Prior

PRIORS = {  # kind -> where it lives; imported only when chosen
    "latent": "jointdreamer.priors.latent:LatentDiffusion",
    "sdxl": "jointdreamer.priors.sdxl:SDXL",
    "flow": "jointdreamer.priors.flow:RectifiedFlow",
    "pixel": "jointdreamer.priors.pixel:PixelDiffusion",
    "multi_view": "jointdreamer.priors.multi_view:MultiViewDiffusion",
    "imagedream": "jointdreamer.priors.imagedream:ImageDream",
    "coordinates": "jointdreamer.priors.coordinates:CoordinateDiffusion",
    "zero123": "jointdreamer.priors.zero123:Zero123",
    "stable_zero123": "jointdreamer.priors.zero123:StableZero123",
    "wonder3d": "jointdreamer.priors.wonder3d:Wonder3D",
}
NOVEL_VIEW = ("zero123", "stable_zero123", "wonder3d")  # kinds of novel-view models: their prompt is an image
ROLES = {
    "text_to_image": "latent",
    "multi_view": "multi_view",
    "novel_view": "zero123",
    "imagedream": "imagedream",
    "coordinates": "coordinates",
}  # role -> its kind where no models.ROLE.kind is given


def check_prior(role: str, models: Mapping[str, Any]) -> None:
    """Refuse what `build_prior` would refuse, without reading any weights. Raises UserError, one line."""
    kind, options = _chosen(role, models)
    check_arguments(function_of(kind, PRIORS, Prior, f"models.{role}"), options, f"models.{role}", whole=False)


def _chosen(role: str, models: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Kind and options of a role's prior."""
    if not isinstance(models.get(role), Mapping):
        raise UserError(f"unknown prior {role!r}: choose one of {', '.join(ROLES)}")
    options = dict(models[role])
    kind = options.pop("kind", None) or ROLES.get(role, role)
    if kind in NOVEL_VIEW:  # the role's other settings are those of the energy over it
        wanted = parameters_of(kind, PRIORS, Prior, f"models.{role}")
        options = {key: value for key, value in options.items() if key in wanted}
    return kind, options


def with_shared(models: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one model, with those that the config says once for all of them."""
    return {**{key: models[key] for key in ("dtype", "compile") if key in models}, **options}


def build_prior(role: str, models: Mapping[str, Any], device: torch.device | str) -> Prior:
    """The prior of that role from the config's group `models`; `models.ROLE.kind` may be your own "module:Class".

    Raises UserError for another role, or options that it does not take.
    """
    kind, own = _chosen(role, models)
    wanted = parameters_of(kind, PRIORS, Prior, f"models.{role}")
    options = with_shared(models, own) | {"device": device, "text": text_of_multi_view(models)}
    options = {key: value for key, value in options.items() if key in wanted or key in own}
    return build_by_name(kind, PRIORS, Prior, f"models.{role}", options).to(device)


def text_of_multi_view(models: Mapping[str, Any]) -> Any:
    """The source of the multi-view model's text encoder: its own role's, or else the text-to-image model's."""
    return (models.get("text_encoder") or models.get("text_to_image") or {}).get("source")


def novel_view_class(kind: str) -> Any:
    """The class of a kind of novel-view model. Raises UserError for another kind."""
    if kind not in NOVEL_VIEW:
        raise UserError(f"unknown kind of novel-view model {kind!r}: choose one of {', '.join(NOVEL_VIEW)}")
    return member_of(kind, PRIORS, Prior, "models.novel_view")


def load_novel_view(kind: str, path: str | Path, *args: Any, **options: Any) -> Any:
    """A novel-view model of this kind, see `NovelView.load`, frozen, on the CPU. Raises UserError for another kind."""
    return novel_view_class(kind).load(path, *args, **options)
