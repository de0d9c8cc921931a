"""AdamW whose learning rates come from the plan, every step."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from torch import nn

from jointdreamer.arguments import Positive, Range
from jointdreamer.errors import UserError
from jointdreamer.ranks import ALONE, Ranks


class ScheduledAdamW(torch.optim.AdamW):
    """AdamW over parameter groups named by role; `step(rates)` writes each group's rate before it steps.

    lr_scale: factors of the rates, by the name of a group; a group "role:part" has its role's rate times its own factor
    ranks: the processes whose gradients are averaged before each step, this one alone unless it is set

    Loading a state dict restores the rates that were saved with it; because every step writes them anew, a resumed run
    still follows its schedule. (In the official implementation a resume keeps the old rates, and Geometry Fading never
    happens.)
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr_scale: Mapping[str, float], **options: Any):
        super().__init__(groups, lr=0.0, **options)
        self.lr_scale = dict(lr_scale)
        self.ranks: Ranks = ALONE

    def check(self, rates: SimpleNamespace) -> None:
        """Raise UserError, one line, for a role without a rate."""
        for group in self.param_groups:
            role = group["name"].partition(":")[0]
            if role not in vars(rates):
                raise UserError(f"schedule.lr.{role} is missing: the rate of parameters with that role")

    def step(self, rates: SimpleNamespace):  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update with `rates.<role>` and the ranks' mean gradients. Raises UserError for a role without a rate."""
        self.check(rates)
        self.ranks.average(parameter for group in self.param_groups for parameter in group["params"])
        for group in self.param_groups:
            role = group["name"].partition(":")[0]
            group["lr"] = getattr(rates, role) * self.lr_scale.get(group["name"], 1.0)
        super().step()


def build_optimizer(
    groups: Mapping[str, Iterable[nn.Parameter]],
    lr_scale: Mapping[str, float] | None = None,
    betas: tuple[Annotated[float, Range(0, below=1)], Annotated[float, Range(0, below=1)]] = (0.9, 0.99),
    eps: Annotated[Positive, Range(high=1)] = 1e-15,
    weight_decay: Annotated[float, Range(0, 100)] = 0.01,
) -> ScheduledAdamW:
    """An optimiser with one group per name, e.g. {"geometry": [...]}; the rates are given to `step`."""
    listed = [{"params": list(params), "name": name} for name, params in groups.items()]
    # One pass over each parameter: on a CPU a quarter of the time, on CUDA one kernel; elsewhere torch chooses
    kinds = {p.device.type for group in listed for p in group["params"]}
    fused = True if kinds in ({"cpu"}, {"cuda"}) else None
    first, second = float(betas[0]), float(betas[1])
    return ScheduledAdamW(
        listed, lr_scale or {}, betas=(first, second), eps=eps, weight_decay=weight_decay, fused=fused
    )
