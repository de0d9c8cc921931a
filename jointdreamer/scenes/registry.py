"""Scenes by name."""

from collections.abc import Mapping
from typing import Any

import torch

from jointdreamer.arguments import build_by_name, check_arguments, function_of, member_of, parameters_of
from jointdreamer.scenes.base import Scene

SCENES = {
    "nerf": "jointdreamer.scenes.nerf.scene:NeRF",
    "dmtet": "jointdreamer.scenes.mesh.scene:DMTet",
}  # short name -> where it lives; imported only when chosen


def check_scene(groups: Mapping[str, Any], name: str, **options: Any) -> None:
    """Refuse what `build_scene` would refuse, without building anything. Raises UserError, one line."""
    function = function_of(name, SCENES, Scene, "scene")
    check_arguments(function, _groups_of(name, groups), "", whole=False)
    check_arguments(function, options, "scene", whole=False)


def scene_bytes(name: str, **options: Any) -> float:
    """The most memory that `build_scene` takes for a scene itself; 0 for one that says nothing."""
    member = member_of(name, SCENES, Scene, "scene")
    return member.bytes_to_build(**options) if isinstance(member, type) else 0.0


def _groups_of(name: str, groups: Mapping[str, Any]) -> dict[str, Any]:
    wanted = parameters_of(name, SCENES, Scene, "scene")
    return {key: groups[key] for key in ("field", "background", "renderer") if key in wanted and key in groups}


def build_scene(name: str, groups: Mapping[str, Any], device: torch.device | str = "cpu", **options: Any) -> Scene:
    """Build a scene from its short name, or from your own "module:Class".

    groups: the config's groups; those that the scene's builder names (field, background, renderer) are given to it
    device: where it will be; one that takes it may compile for it, and nothing is moved
    options: what `scene` holds beside its name

    Raises UserError for a name, module, class or option that does not exist.
    """
    shared = _groups_of(name, groups)
    if "device" in parameters_of(name, SCENES, Scene, "scene"):
        shared["device"] = device
    return build_by_name(name, SCENES, Scene, "scene", {**shared, **options})
