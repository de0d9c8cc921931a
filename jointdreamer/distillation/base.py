"""What a term is: one thing that teaches the scene. A step adds up the terms' losses."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from jointdreamer.cameras import Cameras, Rig
from jointdreamer.errors import UserError
from jointdreamer.scenes.base import Render, Scene


class Term(nn.Module, ABC):
    """One thing that teaches the scene: a score distillation, a reference picture, ..."""

    def __init__(self) -> None:  # nn.Module's own takes anything: an option of another term would pass unseen
        super().__init__()
        self.chunk: int | None = None  # images in an autoencoder at a time, all by default
        self.metrics: dict[str, Tensor] = {}  # of the last step, for the log: scalars by name

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What `forward` returns. Raises UserError, one line, if that is not scalars by name."""
        losses, name = super().__call__(*args, **kwargs), type(self).__name__
        if not isinstance(losses, dict):
            raise UserError(f"term {name} must return its losses by name, a dict, got {type(losses).__name__}")
        for key, value in losses.items():
            if not isinstance(value, Tensor) or value.ndim:
                came = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"term {name}: loss {key!r} must be a scalar tensor, got {came}")
        return losses

    @abstractmethod
    def forward(
        self,
        scene: Scene,
        render: Render,
        cameras: Cameras,
        now: SimpleNamespace,  # the plan at this step
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Losses by their name in `schedule.loss`, not multiplied by its weights; all draws are the generator's."""

    def check(self, rig: Rig) -> None:
        """Raise UserError, one line, for a rig that this term cannot use. Asked before training."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of its own that are trained, by role, as `Scene.parameter_groups`."""
        return {}

    def describe(self) -> dict[str, str]:
        """What it runs on, for the log: {"networks": "bfloat16"}."""
        return {}

    def sources(self) -> list[Path]:
        """Files and folders of the weights it read, for the record of the run."""
        return []

    def pictures(self) -> dict[str, Tensor]:
        """What it saw and wanted at the last step: rows of pictures (V, 3, H, W) by name. Draws no random number."""
        return {}


class TrainedBeside:
    """What terms train beside the scene, as a checkpoint holds it: their parameters by role, and nothing frozen."""

    def __init__(self, terms: Sequence[Term]):
        found = merged_groups(term.parameter_groups() for term in terms)
        self.groups = {role: group for role, group in found.items() if group}

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {role: [parameter.detach() for parameter in group] for role, group in self.groups.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Raises UserError, one line, for other roles, or other shapes, e.g. a LoRA of another rank."""
        if state.keys() != self.groups.keys():
            there, here = (", ".join(sorted(of)) or "nothing" for of in (state, self.groups))
            raise UserError(
                f"the checkpoint holds {there} beside the scene, this run trains {here}: wanted the same terms"
            )
        shapes = [{role: [tuple(p.shape) for p in group] for role, group in of.items()} for of in (state, self.groups)]
        if shapes[0] != shapes[1]:
            role = next(role for role in self.groups if shapes[0][role] != shapes[1][role])
            there, here = (of[role][:1] for of in shapes)
            raise UserError(f"the checkpoint's {role!r} has parameters of other shapes: {there} there, {here} here")
        for role, group in self.groups.items():
            for parameter, saved in zip(group, state[role], strict=True):
                parameter.copy_(saved)


def merged_groups(groups: Iterable[Mapping[str, list[nn.Parameter]]]) -> dict[str, list[nn.Parameter]]:
    """Parameters by role, of a scene and its terms together. Raises UserError, one line, for a role of two of them."""
    merged: dict[str, list[nn.Parameter]] = {}
    for group in groups:
        if twice := sorted(merged.keys() & group):
            raise UserError(
                f"two of the scene and its terms train parameters of the role {twice[0]!r}, which has one rate, "
                f"schedule.lr.{twice[0]}, and one place in a checkpoint: wanted one of them, as of distillation.terms"
            )
        merged |= group
    return merged


def metrics_of(terms: Sequence[Term]) -> dict[str, Tensor]:
    """What the terms report of the last step; the first one's word counts where two have a name."""
    return {name: value for term in reversed(terms) for name, value in term.metrics.items()}


def pictures_of(terms: Sequence[Term]) -> dict[str, Tensor]:
    """The terms' rows of pictures of the last step, as `metrics_of`."""
    return {name: rows for term in reversed(terms) for name, rows in term.pictures().items()}


def weighted_sum(losses: dict[str, Tensor], weights: SimpleNamespace) -> Tensor:
    """The loss of a step: each loss times its weight in `schedule.loss`. Raises UserError for one without a weight."""
    if missing := [name for name in losses if not hasattr(weights, name)]:
        raise UserError(f"schedule.loss.{missing[0]} is missing: the weight of a loss that a term returns")
    total = torch.zeros(())
    for name, loss in losses.items():
        total = total.to(loss.device) + getattr(weights, name) * loss
    return total
