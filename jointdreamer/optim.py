"""AdamW whose learning rates come from the plan, every step."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Annotated

import torch
from torch import nn

from jointdreamer.arguments import Positive, Range
from jointdreamer.errors import UserError


class RatedAdamW(torch.optim.AdamW):
    """AdamW over named parameter groups; `step(rates)` writes each group's rate before it steps.

    Loading a state dict restores the rates that were saved with it; because every step writes them anew, a resumed run
    still follows its schedule. (In the release a resume keeps the old rates, and Geometry Fading never happens.)
    """

    def step(self, rates: SimpleNamespace):  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update with `rates.<group name>`. Raises UserError when the names are not those of the groups."""
        names = [group["name"] for group in self.param_groups]
        wanted = vars(rates)
        if set(names) != set(wanted):
            raise UserError(
                f"learning rates and parameter groups must have the same names: schedule.lr has "
                f"{', '.join(sorted(wanted))}; the model has {', '.join(sorted(names))}"
            )
        for group in self.param_groups:
            group["lr"] = wanted[group["name"]]
        super().step()


def build_optimizer(
    groups: Mapping[str, Iterable[nn.Parameter]],
    betas: tuple[Annotated[float, Range(0, below=1)], Annotated[float, Range(0, below=1)]] = (0.9, 0.99),
    eps: Annotated[Positive, Range(high=1)] = 1e-15,
    weight_decay: Annotated[float, Range(0, 100)] = 0.01,
) -> RatedAdamW:
    """An optimiser with one group per name, e.g. {"encoding": [...], "density": [...]}; rates are given to `step`."""
    listed = [{"params": list(params), "name": name} for name, params in groups.items()]
    # On a CPU one pass over each parameter, a quarter of the time; elsewhere torch chooses by itself
    fused = all(p.is_cpu for group in listed for p in group["params"]) or None
    return RatedAdamW(
        listed, lr=0.0, betas=(float(betas[0]), float(betas[1])), eps=eps, weight_decay=weight_decay, fused=fused
    )
