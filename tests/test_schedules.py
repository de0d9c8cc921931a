"""Schedules: the examples of DESIGN section 9, by hand."""

import pytest

from jointdreamer.errors import UserError
from jointdreamer.schedules import Plan, Schedule

JOINTDREAMER = {
    "steps": 6000,
    "resolution": [[0, 64], [3000, 256], [5000, 512]],
    "t_min": [[0, 0.98], [3000, 0.02, "linear"]],
    "guidance_scale": [[0, 30], [5000, 50]],
    "shading": [[0, False], [5000, True]],
    "mask": [[0, "input"], [100, "none"]],
    "lr": {"encoding": [[0, 1.0e-2], [5000, 1.0e-6]], "albedo": 1.0e-3},
    "loss": {"orient": [[0, 10], [3000, 1000, "linear"], [5000, 0]], "jsd": 1},
}


def test_constant_holds_for_ever():
    schedule = Schedule.parse(0.5)
    assert schedule(0) == schedule(10**6) == 0.5


@pytest.mark.parametrize(("step", "value"), [(0, 64), (2999, 64), (3000, 256), (4999, 256), (5000, 512), (9999, 512)])
def test_values_hold_until_the_next_knot(step, value):
    assert Schedule.parse(JOINTDREAMER["resolution"])(step) == value
    assert isinstance(Schedule.parse(JOINTDREAMER["resolution"])(step), int)


@pytest.mark.parametrize(("step", "value"), [(0, 0.98), (1500, 0.5), (3000, 0.02), (5999, 0.02)])
def test_linear_knots_are_reached_in_a_straight_line(step, value):
    assert Schedule.parse(JOINTDREAMER["t_min"])(step) == pytest.approx(value)


@pytest.mark.parametrize(("step", "value"), [(0, 10), (1000, 340), (3000, 1000), (4999, 1000), (5000, 0)])
def test_a_ramp_may_be_followed_by_a_drop(step, value):
    assert Schedule.parse(JOINTDREAMER["loss"]["orient"])(step) == pytest.approx(value)


def test_plan_is_nested_and_pure():
    plan = Plan(JOINTDREAMER)
    assert plan.steps == 6000
    now = plan.at(5000)
    assert (now.guidance_scale, now.lr.encoding, now.lr.albedo, now.loss.orient) == (50, 1e-6, 1e-3, 0)
    assert now.shading is True and plan.at(4999).shading is False
    assert (plan.at(99).mask, plan.at(100).mask) == ("input", "none")
    assert plan.at(4999) == plan.at(4999) != now
    assert vars(now.loss) == {"orient": 0, "jsd": 1}


def test_plan_knows_the_largest_value():
    plan = Plan(JOINTDREAMER)
    assert (plan.max("resolution"), plan.max("lr.encoding"), plan.max("loss.orient")) == (512, 1e-2, 1000)


@pytest.mark.parametrize(
    "spec",
    [
        [],
        [[5, 1]],  # nothing before step 5
        [[0, 1, "linear"]],
        [[0, 1], [0, 2]],
        [[0, 1], [10, 2], [5, 3]],
        [[0, 1], [10, 2, "cubic"]],
        [[0, 1], [2.5, 2]],
        [[0, "a"], [10, 2, "linear"]],
        [[0, False], [10, True, "linear"]],
        [0, 1],
        [[0, 1], 5],
        [[0]],
        [[0, [1, 2]]],
        object(),
    ],
)
def test_what_is_no_schedule_is_refused_by_name(spec):
    with pytest.raises(UserError, match=r"^schedule\.loss\.orient: "):
        Plan({"steps": 10, "loss": {"orient": spec}})


@pytest.mark.parametrize("steps", [None, 0, -1, 2.5, True, [[0, 1]]])
def test_steps_must_be_a_whole_number(steps):
    with pytest.raises(UserError, match=r"schedule\.steps"):
        Plan({"steps": steps})
