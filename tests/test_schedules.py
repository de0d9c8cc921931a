"""Schedules: small examples, by hand."""

import numpy as np
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
    "lr": {"geometry": [[0, 1.0e-2], [5000, 1.0e-6]], "appearance": 1.0e-3},
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


def test_annealed_timesteps_are_the_official_ones():
    """threestudio's C, as the released code calls it, at every one of the 3,000 steps and beyond."""
    t_min = Schedule.parse([[0, 0.98], [3000, 0.02, "linear"]])
    t_max = Schedule.parse([[0, 0.98], [3000, 0.5, "linear"]])
    for schedule, start, end in ((t_min, 0.98, 0.02), (t_max, 0.98, 0.5)):
        for step in range(3100):
            official = start + (end - start) * max(min(1.0, (step - 0) / (3000 - 0)), 0.0)
            assert int(1000 * schedule(step)) == int(1000 * official), step


def test_shares_of_the_run_move_with_its_steps():
    spec = [[0, 1.0], ["50%", 0.0, "linear"], ["87.5%", 2.0]]
    for steps in (8, 800):
        schedule = Plan({"steps": steps, "a": spec})._find("a")
        assert [step for step, _, _ in schedule.knots] == [0, steps // 2, steps * 7 // 8]
    assert Schedule.parse(spec, steps=8)(2) == 0.5


@pytest.mark.parametrize("share", ["50", "%", "-5%", "nan%", "1e3%", "5 %"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UserError, match="expected a knot"):
        Schedule.parse([[0, 1], [share, 2]], steps=100)


@pytest.mark.parametrize(("step", "value"), [(0, 10), (1000, 340), (3000, 1000), (4999, 1000), (5000, 0)])
def test_a_ramp_may_be_followed_by_a_drop(step, value):
    assert Schedule.parse(JOINTDREAMER["loss"]["orient"])(step) == pytest.approx(value)


def test_plan_is_nested_and_pure():
    plan = Plan(JOINTDREAMER)
    assert plan.steps == 6000
    now = plan.at(5000)
    assert (now.guidance_scale, now.lr.geometry, now.lr.appearance, now.loss.orient) == (51, 1e-6, 1e-3, 0)
    assert now.shading is True and plan.at(4999).shading is False
    assert (plan.at(99).mask, plan.at(100).mask) == ("input", "none")
    assert plan.at(4999) == plan.at(4999) != now
    assert vars(now.loss) == {"orient": 0, "jsd": 1}


def test_plan_knows_the_largest_value():
    plan = Plan(JOINTDREAMER)
    assert (plan.max("resolution"), plan.max("lr.geometry"), plan.max("loss.orient")) == (512, 1e-2, 1000)


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


def test_plans_differ_where_a_step_sees_another_value():
    """Against every step looked at, for plans whose knots lie anywhere."""
    specs = [
        5,
        [[0, 5], [4, 6]],
        [[0, 5], [9, 6]],
        [[0, 5], [8, 13, "linear"]],
        [[0, 5], [4, 9, "linear"], [8, 13, "linear"]],
        [[0, 5], [4, 9, "linear"]],
    ]
    for first in specs:
        for second in specs:
            one, two = (Plan({"steps": 20, "lr": {"a": spec}, "b": 1}) for spec in (first, second))
            for steps in range(0, 12):
                slow = any(one.at(step) != two.at(step) for step in range(steps))
                assert one.differing(two, steps) == (["schedule.lr.a"] if slow else []), (first, second, steps)
    assert Plan({"steps": 1, "a": 1}).differing(Plan({"steps": 9, "b": 1}), 0) == ["schedule.a", "schedule.b"]


GOOD = {
    "steps": 10,
    "resolution": 16,
    "t_min": 0.1,
    "t_max": 0.9,
    "guidance_scale": 2,
    "energy_weight": 1,
    "negative_prompt": False,
    "shading": False,
    "lr": {"density": 0.1},
    "loss": {"jsd": 1},
}


@pytest.mark.parametrize(
    "change",
    [
        {"t_min": float("nan")},
        {"t_min": None},
        {"t_max": [[0, float("inf")]]},
        {"resolution": [[0, 16], [5, 32, "linear"]]},
        {"resolution": 10**400},
        {"lr": {"density": 10**400}},
        {"lr": {"density": float("inf")}},
        {"lr": {"density": None}},
        {"lr": None},
        {"lr": [[0, 1]]},
        {"loss": {"jsd": float("nan")}},
        {"shading": 1},
        {"grad_clip": None},
        {"grad_clip": -1},
        {"bridge": 0.8},
    ],
)
def test_values_that_no_step_can_use_are_one_line(change):
    Plan(GOOD).check()
    with pytest.raises(UserError, match=r"^schedule\.") as caught:
        Plan({**GOOD, **change}).check()
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_a_hundred_million_steps_take_no_time():
    plan = Plan({**JOINTDREAMER, "steps": 10**30})
    assert plan.stages("resolution") == [(0, 64), (3000, 256), (5000, 512)]
    assert Plan({**JOINTDREAMER, "steps": 5000}).stages("resolution") == [(0, 64), (3000, 256)]
    assert plan.differing(Plan({**JOINTDREAMER, "steps": 10**29}), 10**29) == []


@pytest.mark.parametrize(
    ("t_min", "t_max", "where"),
    [
        (0.5, 0.4, 0),
        ([[0, 0.02], [7, 0.6]], 0.5, 7),
        (0.3, [[0, 0.98], [9, 0.2, "linear"]], 8),  # between two knots, and first at the last step before one
        ([[0, 0.1], [10, 0.9, "linear"]], [[0, 0.95], [4, 0.3], [6, 0.95]], 5),
        ([[0, 0.02], [30, 0.9, "linear"]], [[0, 0.98], [30, 0.1, "linear"]], 19),
    ],
)
def test_a_t_min_above_t_max_is_found_anywhere_in_the_plan(t_min, t_max, where):
    spec = {**GOOD, "steps": 20, "t_min": t_min, "t_max": t_max}
    found = [step for step in range(20) if Plan(spec).at(step).t_min > Plan(spec).at(step).t_max]
    with pytest.raises(UserError, match=r"t_min is .* at step (\d+)") as said:
        Plan(spec).check()
    step = int(str(said.value).partition("at step ")[2].partition(":")[0])
    assert step in found
    assert where in found


def test_a_t_min_that_would_cross_after_the_end_is_fine():
    Plan({**GOOD, "steps": 10, "t_min": [[0, 0.02], [11, 0.9]], "t_max": 0.9 - 0.5}).check()


def test_hifa_falls_with_the_root_of_the_steps():
    schedule = Schedule.parse([[0, 0.98], [100, 0.3, "sqrt"]])
    assert [schedule(step) for step in (0, 25, 100, 200)] == pytest.approx([0.98, 0.98 - 0.68 / 2, 0.3, 0.3])


def test_dreamtime_spends_its_steps_as_its_weights_say():
    """The formula in numpy: W(t) = sqrt((1 - abar) / abar) P(t), summed from 980 down to 20; t at the share i / N."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)
    t = np.arange(1000)
    plateau = np.where(t > 800, np.exp(-((t - 800) ** 2) / (2 * 300**2)), 1) * np.where(
        t < 500, np.exp(-((t - 500) ** 2) / (2 * 100**2)), 1
    )
    weights = (np.sqrt((1 - abar) / abar) * plateau)[20:981][::-1]
    sums = weights.cumsum() / weights.sum()
    schedule = Schedule.parse([[0, 0.98], [2000, 0.02, "dreamtime"]])
    for step in range(0, 2000, 37):
        expected = 980 - int(np.searchsorted(sums, step / 2000))
        assert int(1000 * schedule(step)) == expected
    values = [schedule(step) for step in range(2000)]
    assert all(later <= sooner for sooner, later in zip(values, values[1:], strict=False))
    at_high = sum(0.5 <= value <= 0.8 for value in values)
    assert at_high > 700 > 100 > sum(value < 0.3 for value in values)


@pytest.mark.parametrize("knots", [[[0, 0.02], [10, 0.98, "dreamtime"]], [[0, 5], [10, 1, "dreamtime"]]])
def test_dreamtime_is_for_noise_levels_that_fall(knots):
    with pytest.raises(UserError, match="falls from one noise level"):
        Schedule.parse(knots)(5)


def test_plans_with_curves_are_compared_step_by_step():
    def plan(curve):
        return Plan({"steps": 100, "t": [[0, 1.0], [100, 0.0, curve]]})

    assert plan("sqrt").differing(plan("linear"), 60) == ["schedule.t"]
    assert plan("sqrt").differing(plan("sqrt"), 60) == []
