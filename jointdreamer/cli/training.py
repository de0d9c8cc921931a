"""The config of train.py: what each value may be, and which function takes each group."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from jointdreamer.arguments import Range, Takes
from jointdreamer.cameras import Rig
from jointdreamer.cli.objective import Objective, check_objective
from jointdreamer.cli.settings import Count, RunConfig, Steps, check, device_of, orbit
from jointdreamer.distillation.registry import asks_image, asks_text, check_terms, takes_energy
from jointdreamer.energies.registry import ROLES, WITHOUT_IMAGE, build_energy, check_energy
from jointdreamer.errors import UserError
from jointdreamer.machine import free_bytes
from jointdreamer.optim import build_optimizer
from jointdreamer.priors.prompts import Prompts
from jointdreamer.priors.registry import check_prior, with_shared
from jointdreamer.priors.t5 import check_t5
from jointdreamer.ranks import Ranks
from jointdreamer.reference import ImageCamera, Reference, read_reference, warn_of_elevation
from jointdreamer.runs.memory import plan_memory
from jointdreamer.runs.same_config import differing_keys
from jointdreamer.runs.tensorboard_log import check_tensorboard
from jointdreamer.scenes.registry import check_scene, scene_bytes
from jointdreamer.viewer.server import ViewerSettings, check_viewer


@dataclass(frozen=True)
class Every:
    """Steps between two rows, pictures and checkpoints; 0 is never."""

    log: Count
    view: Steps
    checkpoint: Steps


@dataclass(frozen=True)
class Output:
    """What is made at the end, and the camera that sees it."""

    views: Annotated[int, Range(0, 10_000)]  # of the turntable; 0 for none
    resolution: Annotated[int, Range(8, 4096)]
    fps: Annotated[int, Range(1, 240)]
    mesh_resolution: Annotated[int, Range(8, 1024)]
    texture: Literal[0] | Annotated[int, Range(16, 8192)]  # of the mesh; 0: colours at its vertices
    elevation_deg: Annotated[float, Range(-90, 90)]
    distance: Annotated[float, Range(0.1, 1000)]
    fovy_deg: Annotated[float, Range(1, 179)]

    @property
    def orbit(self) -> dict[str, float]:
        """The camera, as `orbit_cameras` takes it."""
        return orbit(vars(self))


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """The config of train.py, less what scene, terms and priors take."""

    prompt: str
    negative_prompt: str
    init_from: str | None
    every: Annotated[dict, Takes(Every)]
    output: Annotated[dict, Takes(Output)]
    cameras: Annotated[dict, Takes(Rig)]
    optimizer: Annotated[dict, Takes(build_optimizer)]
    prompts: Annotated[dict, Takes(Prompts)]
    memory: Annotated[dict, Takes(plan_memory)]
    energy: Annotated[dict, Takes(build_energy)]
    viewer: Annotated[dict, Takes(ViewerSettings)]
    objective: Objective | None
    schedule: dict
    image_camera: Annotated[dict, Takes(ImageCamera)]
    image_fill: Literal["auto"] | Annotated[float, Range(0.05, 1)] | None
    image: str | None
    mask: str | None


def check_image(cfg: dict[str, Any]) -> None:
    """Refuse a given picture that nothing is told of, or that cannot be put before the background; and a picture, or a
    prompt, that is missing."""
    terms, models, energy = cfg["distillation"]["terms"], cfg["models"], cfg["energy"]["name"]
    told = [f"distillation.terms.{name}" for name in asks_image(terms, models)]
    between = energy if takes_energy(terms) else "none"
    if between == "imagedream":
        told.append("energy=imagedream")
    if cfg["image"] is None and told:
        raise UserError(f"{told[0]} wants a picture: give one, image=FILE")
    if not cfg["prompt"].strip() and (asking := asks_text(terms, models)):
        raise UserError(
            f"no prompt, and distillation.terms.{asking[0]} reads one: say what the image shows, prompt=..."
        )
    if cfg["image"] is None:
        return
    if between in WITHOUT_IMAGE:  # one of your own says it itself, once it is built
        raise UserError(
            f"image={cfg['image']}: energy={between} takes no picture; energy=i2i does, energy=none leaves it to the "
            "terms, and experiment=image/zero123 and its siblings choose all of it"
        )
    if not told and between == "none":
        raise UserError(
            f"image={cfg['image']}: no term and no energy of this run looks at a picture; take energy=i2i, or "
            "experiment=image/zero123 or one of its siblings, or leave image out"
        )
    ground_of(cfg["background"])


def ground_of(background: dict[str, Any]) -> float:
    """The grey of a plain background in training, before which a given picture is put too. Raises UserError."""
    low, high = background["random_grey_range"] or (0, 1)
    if background["random_probability"] != 1 or low != high:
        raise UserError(
            "image=FILE is put before the background of the run, which must be one grey: experiment=image/zero123 and "
            "its siblings choose it, or say background.random_probability=1 background.random_grey_range=[1,1]"
        )
    return float(low)


def reference_of(cfg: dict[str, Any]) -> Reference | None:
    """The given image of a config of train.py, its files read now; None for none. Raises UserError, one line."""
    if cfg["image"] is None:
        return None
    known, terms = cfg["models"].get("novel_view") or {}, cfg["distillation"]["terms"]
    fill = known.get("fill") if cfg["image_fill"] == "auto" else cfg["image_fill"]
    camera = ImageCamera(**cfg["image_camera"])
    asked = [one.get("prior") for one in terms.values()]
    asked += [ROLES.get(cfg["energy"]["name"])] if takes_energy(terms) else []
    if "novel_view" in asked:
        warn_of_elevation(camera, known.get("known_elevation_deg"))
    return read_reference(cfg["image"], cfg["mask"], camera, fill)


def check_training(cfg: dict[str, Any]) -> None:
    """`check` of train.py's config, with what its scene, terms, energy and priors take. Raises UserError, one line."""
    check(cfg, TrainConfig)
    check_viewer(ViewerSettings(**cfg["viewer"]))
    check_objective(cfg)
    check_tensorboard(cfg["logger"])
    check_scene(cfg, **cfg["scene"])
    need, free = scene_bytes(**cfg["scene"]), free_bytes(torch.device("cpu"))
    if need > free:
        raise UserError(
            f"scene.resolution={cfg['scene'].get('resolution')} needs about {need / 1e9:.1f} GB and there are "
            f"{free / 1e9:.1f} GB: wanted a lower one"
        )
    check_energy(cfg["models"], **cfg["energy"])
    check_terms(**cfg["distillation"])
    check_image(cfg)
    check_prior("text_to_image", cfg["models"])
    check_t5(with_shared(cfg["models"], cfg["models"]["text_to_image"]), free, device_of(cfg))


def check_ranks(ranks: Ranks, cfg: dict[str, Any]) -> None:
    """Raise UserError, one line, for ranks with other settings or versions, and rigs that they cannot share evenly."""
    ranks.rigs(cfg["cameras"]["n_rigs"])
    if ranks.count == 1:
        return
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    versions = {"torch": torch.__version__, "the code": code.hexdigest()[:12]}
    first, *others = ranks.gathered((cfg, versions))
    for number, (settings, there) in enumerate(others, 1):
        if differing := [*differing_keys(first[1], there).values(), *differing_keys(first[0], settings).values()]:
            said = differing[0].replace(" there, ", " on rank 0, ").removesuffix(" here")
            raise UserError(f"{said} on rank {number}: wanted the same settings and versions on all ranks")
