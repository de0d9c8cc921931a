"""The config of train_classifier.py: what each value may be, and which class takes each group."""

from dataclasses import dataclass
from typing import Annotated, Any

from jointdreamer.arguments import Range, Share, Takes
from jointdreamer.classifier.augment import Augmentation
from jointdreamer.classifier.model import ClassifierSettings
from jointdreamer.cli.settings import Count, RunConfig, Seed, Steps, check
from jointdreamer.errors import UserError

KEYS = ("seed", "name", "out_dir", "device", "precision", "start_from", "export", "data", "augmentation", "estimates")
KEYS += ("classifier", "training", "validation_groups", "every", "models", "logger")


@dataclass(frozen=True)
class Data:
    """The views, and which objects are held out."""

    folder: str | None
    toys: Annotated[int, Range(0, 10**7)]
    toy_seed: Seed
    held_out_percent: Annotated[float, Range(0.01, 90)]
    min_angle_deg: Annotated[float, Range(0, 120)]
    wrong_pose_share: Share
    background: Any
    workers: Annotated[int, Range(1, 256)]


@dataclass(frozen=True)
class Optimisation:
    """Steps, batches, rates, and the weights of the losses."""

    steps: Count
    groups: Annotated[int, Range(1, 10**6)]
    objects: Annotated[int, Range(2, 10**6)]
    views: Annotated[int, Range(2, 1000)]
    lr: Annotated[float, Range(1e-12, 1)]
    warm_up: Count
    weight_decay: Annotated[float, Range(0, 10)]
    clip: Annotated[float, Range(low=1e-6)]
    direction_weight: Annotated[float, Range(low=0)]
    derivative_weight: Annotated[float, Range(low=0)]
    step_weight: Annotated[float, Range(low=0)]
    ascent: Annotated[int, Range(0, 1000)]
    ascent_step: Annotated[float, Range(low=1e-6)]

    @property
    def teaches_derivative(self) -> bool:
        return self.derivative_weight > 0 or self.step_weight > 0


@dataclass(frozen=True)
class Estimates:
    """How many batches are one-step estimates of the prior."""

    share: Share
    guided: Share
    guidance_scale: Annotated[float, Range(0, 1000)]
    t: Any


@dataclass(frozen=True)
class Every:
    """Steps between two rows, validations and checkpoints; 0 is never."""

    log: Count
    validate: Steps
    checkpoint: Steps


@dataclass(frozen=True)
class ClassifierConfig(RunConfig):
    """The config of train_classifier.py."""

    data: Annotated[dict, Takes(Data)]
    augmentation: Annotated[dict, Takes(Augmentation)]
    estimates: Annotated[dict, Takes(Estimates)]
    classifier: Annotated[dict, Takes(ClassifierSettings)]
    training: Annotated[dict, Takes(Optimisation)]
    validation_groups: Annotated[int, Range(1, 10**6)]
    every: Annotated[dict, Takes(Every)]


def check_classifier(cfg: dict[str, Any]) -> dict[str, Any]:
    """The part of the config that train_classifier.py reads, checked. Raises UserError, one line."""
    cfg = {key: cfg[key] for key in KEYS}  # `models` also brings what train.py needs
    cfg["every"] = {key: cfg["every"][key] for key in ("log", "validate", "checkpoint")}
    check(cfg, ClassifierConfig)
    interval("data.background", cfg["data"]["background"], "greys")
    interval("estimates.t", cfg["estimates"]["t"], "fractions of the timesteps")
    if cfg["data"]["folder"] is None:
        raise UserError("data.folder is empty: name the folder of views, data.folder=views_release")
    guided = cfg["estimates"]["guided"]
    if guided and not Optimisation(**cfg["training"]).teaches_derivative:
        raise UserError(
            f"estimates.guided={guided}: guided estimates are only shown to be corrected; give "
            "training.derivative_weight or training.step_weight as well"
        )
    return cfg


def interval(name: str, given: Any, what: str) -> tuple[float, float]:
    """[low, high] within [0, 1], as numbers. Raises UserError for anything else."""
    right = isinstance(given, list) and len(given) == 2 and all(isinstance(x, int | float) for x in given)
    if not right or not 0 <= given[0] <= given[1] <= 1:
        raise UserError(f"{name}={given!r}: wanted [low, high], {what} from 0 to 1")
    return float(given[0]), float(given[1])
