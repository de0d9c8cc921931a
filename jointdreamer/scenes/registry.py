"""Scenes by name."""

from collections.abc import Mapping
from typing import Any

from jointdreamer.arguments import build_by_name, parameters_of
from jointdreamer.scenes.base import Scene

SCENES = {"nerf": "jointdreamer.scenes.nerf.scene:NeRF"}  # short name -> where it lives; imported only when chosen


def build_scene(name: str, groups: Mapping[str, Any], **options: Any) -> Scene:
    """Build a scene from its short name, or from your own "module:Class", on the CPU.

    groups: the config's groups; those that the scene's builder names (field, background, renderer) are given to it
    options: what `scene` holds beside its name

    Raises UserError for a name, module, class or option that does not exist.
    """
    wanted = parameters_of(name, SCENES, Scene, "scene")
    shared = {key: groups[key] for key in ("field", "background", "renderer") if key in wanted and key in groups}
    return build_by_name(name, SCENES, Scene, "scene", {**shared, **options})
