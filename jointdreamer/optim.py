"""AdamW whose learning rates come from the plan, every step."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Annotated

import torch
from torch import nn

from jointdreamer.arguments import Positive, Range
from jointdreamer.errors import UserError


class ScheduledAdamW(torch.optim.AdamW):
    """AdamW over parameter groups named by role; `step(rates)` writes each group's rate before it steps.

    A group "role:part" has its role's rate times the group's `lr_scale`. Loading a state dict restores the rates that
    were saved with it; because every step writes them anew, a resumed run still follows its schedule. (In the official
    implementation a resume keeps the old rates, and Geometry Fading never happens.)
    """

    def step(self, rates: SimpleNamespace):  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update with `rates.<role>`. Raises UserError for a role without a rate."""
        roles = [group["name"].partition(":")[0] for group in self.param_groups]
        wanted = vars(rates)
        if missing := [role for role in roles if role not in wanted]:
            raise UserError(f"schedule.lr.{missing[0]} is missing: the rate of parameters with that role")
        for role, group in zip(roles, self.param_groups, strict=True):
            group["lr"] = wanted[role] * group["lr_scale"]
        super().step()


def build_optimizer(
    groups: Mapping[str, Iterable[nn.Parameter]],
    lr_scale: Mapping[str, float] | None = None,
    betas: tuple[Annotated[float, Range(0, below=1)], Annotated[float, Range(0, below=1)]] = (0.9, 0.99),
    eps: Annotated[Positive, Range(high=1)] = 1e-15,
    weight_decay: Annotated[float, Range(0, 100)] = 0.01,
) -> ScheduledAdamW:
    """An optimiser with one group per name, e.g. {"geometry": [...]}; the rates are given to `step`."""
    scale = lr_scale or {}
    listed = [
        {"params": list(params), "name": name, "lr_scale": scale.get(name, 1.0)} for name, params in groups.items()
    ]
    # On a CPU one pass over each parameter, a quarter of the time; elsewhere torch chooses by itself
    fused = all(p.is_cpu for group in listed for p in group["params"]) or None
    return ScheduledAdamW(
        listed, lr=0.0, betas=(float(betas[0]), float(betas[1])), eps=eps, weight_decay=weight_decay, fused=fused
    )
