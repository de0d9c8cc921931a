"""Priors by their role among a config's models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jointdreamer.arguments import build_by_name, check_arguments, function_of, member_of, parameters_of
from jointdreamer.errors import UserError
from jointdreamer.priors.autoencoder import check_autoencoder, load_autoencoder
from jointdreamer.priors.base import Prior
from jointdreamer.weights.find import find_weights

PRIORS = {  # kind -> where it lives; imported only when chosen
    "latent": "jointdreamer.priors.latent:LatentDiffusion",
    "sdxl": "jointdreamer.priors.sdxl:SDXL",
    "flow": "jointdreamer.priors.flow:RectifiedFlow",
    "pixel": "jointdreamer.priors.pixel:PixelDiffusion",
    "multi_view": "jointdreamer.priors.multi_view:MultiViewDiffusion",
}
NOVEL_VIEW = {  # kind of novel-view model -> its class; imported only when chosen
    "zero123": "jointdreamer.priors.zero123:Zero123",
    "stable_zero123": "jointdreamer.priors.zero123:StableZero123",
    "wonder3d": "jointdreamer.priors.wonder3d:Wonder3D",
}
ROLES = {"text_to_image": "latent", "multi_view": "multi_view"}  # role -> its kind where no models.ROLE.kind is given


def check_prior(role: str, models: Mapping[str, Any]) -> None:
    """Refuse what `build_prior` would refuse, without reading any weights. Raises UserError, one line."""
    kind, options = _chosen(role, models)
    check_arguments(function_of(kind, PRIORS, Prior, f"models.{role}"), options, f"models.{role}", whole=False)


def _chosen(role: str, models: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Kind and options of a role's prior."""
    if not isinstance(models.get(role), Mapping):
        raise UserError(f"unknown prior {role!r}: choose one of {', '.join(ROLES)}")
    options = dict(models[role])
    return options.pop("kind", None) or ROLES.get(role, role), options


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


def load_novel_view(
    kind: str,
    path: str | Path,
    vae: str | Path | None = None,
    image_size: int | None = None,
    x0_limit: float | None = None,
    guidance_scale: float = 3.0,
    dtype: torch.dtype = torch.float32,
    download: bool = True,
) -> Any:
    """A novel-view model from a diffusers folder or the original checkpoint, frozen, on the CPU.

    vae: folder or hub id whose vae/ takes the place of the model's own autoencoder
    image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
    download: whether the network may be asked for the autoencoder

    Raises UserError, one line, for an unknown kind, and for weights that are missing, damaged or of another kind.
    """
    if kind not in NOVEL_VIEW:
        raise UserError(f"unknown kind of novel-view model {kind!r}: choose one of {', '.join(NOVEL_VIEW)}")
    cls = member_of(kind, NOVEL_VIEW, Prior, "models.novel_view")
    autoencoder = None
    if vae is not None:
        folder = find_weights(vae, "autoencoder of the novel-view model", needs=("vae/config.json",), download=download)
        autoencoder = load_autoencoder(folder, dtype)
    parts = cls.read(Path(path), autoencoder, dtype)
    check_autoencoder(parts.vae, parts.unet.config.out_channels, path)
    return cls(parts, image_size, x0_limit, guidance_scale).eval().requires_grad_(False)
