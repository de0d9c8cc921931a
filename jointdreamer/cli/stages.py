"""What a run starts from: `init_from`, another run, an experiment that is made first, or a mesh file."""

import logging
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jointdreamer.cli.command_line import choices_of
from jointdreamer.cli.job import with_prompt
from jointdreamer.cli.main import resolved
from jointdreamer.cli.words import quoted
from jointdreamer.comparison import HOW
from jointdreamer.errors import UserError, one_line
from jointdreamer.formats.surface import linear_to_srgb
from jointdreamer.project import CONF
from jointdreamer.runs.folder import folder_for
from jointdreamer.runs.pictures import load_scene
from jointdreamer.runs.records import read_result, wait_for_others
from jointdreamer.runs.same_config import differing_keys
from jointdreamer.scenes.base import Scene

log = logging.getLogger(__name__)

# What both stages of an object have
SHARED = ("prompt", "negative_prompt", "prompts", "seed", "out_dir", "device", "precision", "models", "field")
SHARED += ("background", "renderer", "memory", "logger", "viewer", "every", "output")
SHARED += ("image", "mask", "image_camera", "image_fill", "image_sha256")
# What of these each stage has for itself, as its own experiment says
OWN = (("models", "text_to_image", "cfg_rescale"), ("field", "encoding_lr"), ("background", "eval_color"))
GRID = ("resolution", "max_offset")  # of a mesh, whose levels and offsets mean nothing on another one
SAMPLES = 200_000  # of a mesh: a hundredth of its size apart
MESHES = (".glb", ".gltf", ".obj", ".ply")


@dataclass(frozen=True)
class Start:
    """Where a run's object comes from."""

    path: Path  # a run folder, or a mesh file
    second: Mapping[str, Any]  # the config of the run that starts here
    config: dict[str, Any] | None = None  # of the run that is to be made, or resumed, first

    def wait(self) -> None:
        """Until no other process makes it: jobs of a sweep, or rows of a table, may share their first stage."""
        wait_for_others(self.path, lambda said: print(one_line(said), file=sys.stderr))

    @property
    def is_mesh(self) -> bool:
        return self.path.suffix.lower() in MESHES

    def give(self, scene: Scene) -> None:
        """Let `scene` start from it. Raises UserError, one line, for what is not finished, or does not fit."""
        if self.is_mesh:
            scene.start_from_mesh(*surface_of(self.path))
            return
        if read_result(self.path) is None:
            raise UserError(f"init_from={self.path}: that run is not finished; give its command again first")
        first, config = load_scene(self.path)
        other = differing_keys(config.get("field"), self.second["field"])
        if differing := [said for key, said in other.items() if key.rpartition(".")[2] not in (*HOW, "encoding_lr")]:
            raise UserError(
                f"init_from={self.path}: field.{differing[0]}: wanted the same field, give it as it is there"
            )
        if (prompt := self.second["prompt"]) != config["prompt"]:
            log.warning("init_from=%s was made for %r, this is %r", self.path, config["prompt"], prompt)
        scene.start_from(first.to(next(scene.parameters()).device))


def surface_of(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mesh file as `Scene.start_from_mesh` takes it. Raises UserError, one line."""
    # many formats: only where one is asked for
    from jointdreamer.data.meshes import BadMesh, load_mesh
    from jointdreamer.scenes.mesh.inside import samples

    try:
        mesh = load_mesh(path)
    except BadMesh as error:
        raise UserError(f"init_from={path}: {error}") from error
    if mesh.notes:
        raise UserError(f"init_from={path}: {mesh.notes[0]}; wanted a mesh that can be read whole")
    corners = np.stack([-mesh.corners[..., 1], mesh.corners[..., 0], mesh.corners[..., 2]], -1)  # front -y -> +x
    face, weight = samples(corners, SAMPLES)
    color, _ = mesh.color_at(face, weight)
    return corners, (corners[face] * weight[..., None]).sum(1), linear_to_srgb(color).clip(0, 1)


def start_of(cfg: Mapping[str, Any]) -> Start | None:
    """What `init_from` of train.py's config names; None for nothing.

    Raises UserError if that is not there, and for a mesh on another grid, before it is made.
    """
    if cfg["init_from"] is None:
        return None
    given, experiments = str(cfg["init_from"]), choices_of("experiment", [CONF])
    path = Path(given).expanduser()
    if (path / "config.yaml").is_file() or (path.is_file() and path.suffix.lower() in MESHES):
        return Start(path, cfg)
    if given not in experiments:
        raise UserError(
            f"init_from={given}: no run folder, no mesh ({', '.join(MESHES)}) and no experiment; there are "
            f"{', '.join(experiments)}"
        )
    first = resolved("config", [f"experiment={given}", f"models={quoted(cfg['models']['name'])}"])
    check_grid(given, first["scene"], cfg["scene"])
    first = with_prompt(with_shared(first, cfg))
    path = folder_for(first)
    if first["name"] == cfg["name"]:
        raise UserError(f"init_from={given} is this very run: give name=... for a folder of its own")
    return Start(path, cfg, first)


def with_shared(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a first stage with what the second one has in common with it."""
    config = {**first, **{key: deepcopy(second[key]) for key in SHARED}}
    for *path, key in OWN:
        there, here = first, config
        for part in path:
            there, here = there.get(part, {}), here.get(part, {})
        if key in there:
            here[key] = there[key]
    return config


def check_grid(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Raise UserError, one line, for a stage on another grid than the mesh that the experiment `name` makes first."""
    if first["name"] != second["name"]:
        return
    for key in GRID:
        if first.get(key) != second.get(key):
            raise UserError(
                f"scene.{key}={second.get(key)}, and init_from={name} makes a mesh of {first.get(key)}: give the same, "
                f"or make that stage by its own command, with scene.{key}={second.get(key)}, and give its folder"
            )
