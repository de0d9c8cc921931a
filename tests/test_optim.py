"""Rates come from the plan, every step, also after a resume."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from jointdreamer.errors import UserError
from jointdreamer.optim import build_optimizer


def world():
    a, b = nn.Parameter(torch.ones(3, dtype=torch.float64)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    return a, b, build_optimizer({"encoding": [a], "albedo": iter([b])}, weight_decay=0.1)


def step(optimizer, a, b, encoding, albedo):
    optimizer.zero_grad()
    (a.square().sum() + 3 * b.sum()).backward()
    optimizer.step(SimpleNamespace(encoding=encoding, albedo=albedo))


def test_first_step_is_adamw_by_hand():
    """After bias correction the first AdamW update is lr * sign(g), after the decay by lr * weight_decay."""
    a, b, optimizer = world()
    step(optimizer, a, b, 1e-2, 1e-3)
    torch.testing.assert_close(a.detach(), torch.full_like(a, 1 - 1e-2 * 0.1 - 1e-2))
    torch.testing.assert_close(b.detach(), torch.full_like(b, 1 - 1e-3 * 0.1 - 1e-3))


def test_a_rate_of_zero_stands_still():
    a, b, optimizer = world()
    step(optimizer, a, b, 0.0, 1e-3)
    assert torch.equal(a, torch.ones_like(a)) and not torch.equal(b, torch.ones_like(b))


def test_resume_continues_exactly_and_the_plan_beats_the_saved_rate():
    a, b, optimizer = world()
    for _ in range(3):
        step(optimizer, a, b, 1e-2, 1e-2)
    a2, b2, resumed = world()
    with torch.no_grad():
        a2.copy_(a)
        b2.copy_(b)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    assert resumed.param_groups[0]["lr"] == 1e-2  # what undoes Geometry Fading in the release
    for o, x, y in ((optimizer, a, b), (resumed, a2, b2)):
        step(o, x, y, 1e-6, 1e-3)
        assert [group["lr"] for group in o.param_groups] == [1e-6, 1e-3]
    assert torch.equal(a, a2) and torch.equal(b, b2)


@pytest.mark.parametrize("rates", [{"encoding": 1.0}, {"encoding": 1.0, "albedo": 1.0, "normal": 1.0}])
def test_names_must_be_those_of_the_groups(rates):
    a, b, optimizer = world()
    with pytest.raises(UserError, match="albedo"):
        optimizer.step(SimpleNamespace(**rates))
    assert torch.equal(a, torch.ones_like(a))


def test_betas_may_be_whole_numbers():
    optimizer = build_optimizer({"a": [nn.Parameter(torch.zeros(2))]}, betas=(0, 0))
    assert optimizer.defaults["betas"] == (0.0, 0.0)
