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
    return a, b, build_optimizer({"geometry": [a], "appearance": iter([b])}, weight_decay=0.1)


def step(optimizer, a, b, geometry, appearance):
    optimizer.zero_grad()
    (a.square().sum() + 3 * b.sum()).backward()
    optimizer.step(SimpleNamespace(geometry=geometry, appearance=appearance))


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


def test_a_role_without_a_rate_is_named_and_a_rate_without_a_role_is_not_needed():
    a, b, optimizer = world()
    with pytest.raises(UserError, match=r"schedule\.lr\.appearance is missing"):
        optimizer.step(SimpleNamespace(geometry=1.0, normal=1.0))
    assert torch.equal(a, torch.ones_like(a))
    (a.sum() + b.sum()).backward()
    optimizer.step(SimpleNamespace(geometry=0.1, appearance=0.0, normal=1.0))
    assert not torch.equal(a, torch.ones_like(a)) and torch.equal(b, torch.ones_like(b))


def test_a_part_of_a_role_has_a_multiple_of_its_rate():
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer({"geometry:encoding": [a], "geometry": [b]}, {"geometry:encoding": 2.0})
    (a.sum() + b.sum()).backward()
    optimizer.step(SimpleNamespace(geometry=1e-2))
    assert [group["lr"] for group in optimizer.param_groups] == [2e-2, 1e-2]


def test_betas_may_be_whole_numbers():
    optimizer = build_optimizer({"a": [nn.Parameter(torch.zeros(2))]}, betas=(0, 0))
    assert optimizer.defaults["betas"] == (0.0, 0.0)


def test_the_fused_step_is_the_plain_one():
    ends = []
    for fused in (True, False):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(50))
        optimizer = build_optimizer({"geometry": [parameter]}, eps=1e-8)
        assert optimizer.param_groups[0]["fused"] is True
        optimizer.param_groups[0]["fused"] = fused
        for _ in range(5):
            optimizer.zero_grad()
            parameter.sin().sum().backward()
            optimizer.step(SimpleNamespace(geometry=0.01))
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-7)
