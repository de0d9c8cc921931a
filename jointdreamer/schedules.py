"""Time is data: values that depend on the step, written as knots in YAML and read as `now.lr.density` in the loop.

    guidance_scale: 30                                   a constant
    resolution:     [[0, 64], [3000, 256]]               each value holds until the next knot
    t_min:          [[0, 0.98], [3000, 0.02, linear]]    a `linear` knot is reached in a straight line
    t_max:          [[0, 0.98], [50%, 0.5, linear]]      a knot at a share of the run moves with `steps`
    t_min:          [[0, 0.98], [100%, 0.02, dreamtime]] other curves: see CURVES

Pure in the step, so a resumed run continues exactly (the official Geometry Fading is undone by its own resume).
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import cos, exp, pi, sqrt
from types import SimpleNamespace
from typing import Any, TypeGuard

from jointdreamer.errors import UserError


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


@dataclass(frozen=True)
class Schedule:
    """A value of the step: knots (step, value, curve), the first at step 0, steps increasing; "" holds the value."""

    knots: tuple[tuple[int, Any, str], ...]

    @staticmethod
    def parse(spec: Any, name: str = "schedule", steps: int = 0) -> "Schedule":
        """From a constant (number, text, true/false, null) or a list of [step, value] and [step, value, curve].

        steps: of the run, for knots at a share of it ("50%").
        Raises UserError that starts with `name` when the spec is neither.
        """
        if not _is_list(spec):
            if not (spec is None or isinstance(spec, str | bool) or _is_number(spec)):
                raise UserError(f"{name}: expected a constant or knots [[step, value], ...], got {spec!r}")
            return Schedule(((0, spec, ""),))
        knots = tuple(_parse_knot(knot, name, steps) for knot in spec)
        if not knots or knots[0][0] != 0 or knots[0][2]:
            raise UserError(f"{name}: the first knot must be [0, value], got {_show(spec)}")
        for (step, value, _), (next_step, next_value, curve) in zip(knots, knots[1:], strict=False):
            if next_step <= step:
                raise UserError(f"{name}: the steps of the knots must increase, got {step} and then {next_step}")
            if curve and not (_is_number(value) and _is_number(next_value)):
                raise UserError(f"{name}: a {curve} knot needs numbers, got {value!r} to {next_value!r}")
        return Schedule(knots)

    def __call__(self, step: int) -> Any:
        """The value at this step; the last knot holds for ever."""
        i = max(i for i, knot in enumerate(self.knots) if knot[0] <= max(step, 0))
        start, value, _ = self.knots[i]
        if i + 1 < len(self.knots) and self.knots[i + 1][2]:
            end, target, curve = self.knots[i + 1]
            # divided first, as the official code does: the other order loses a timestep at 22 of 3,000 steps
            return CURVES[curve](value, target, (step - start) / (end - start))
        return value

    def max(self) -> Any:
        """The largest value it ever takes: a knot's, since curves peak at their ends."""
        return max(value for _, value, _ in self.knots)


def dreamtime(high: float, low: float, share: float) -> float:
    """DreamTime (Huang et al. 2023): from a high noise level to a low one, in shares of 1,000 timesteps.

    After a share of the way t is where the weights W, summed from the highest timestep downwards, first reach it. Of
    Stable Diffusion's noise process. Raises UserError for a level that rises, or that is no share.
    """
    if not 0 <= low <= high <= 1:
        raise UserError(f"a dreamtime knot falls from one noise level in [0, 1] to another, got {high} to {low}")
    first, last = min(round(1000 * high), 999), round(1000 * low)
    summed = _dreamtime_sums(first, last)
    return (first - min(bisect_left(summed, share), first - last) + 0.5) / 1000  # the middle of a timestep


@cache
def _dreamtime_sums(first: int, last: int) -> list[float]:
    """Sums of W(t) from `first` down to `last`, over the whole sum.

    W is sqrt((1 - abar) / abar) times a plateau from 500 to 800 with Gaussian ends.
    """
    ends = 0.00085**0.5, 0.012**0.5
    betas = [(ends[0] + (ends[1] - ends[0]) * t / 999) ** 2 for t in range(1000)]
    abar = list(accumulate((1 - beta for beta in betas), lambda product, factor: product * factor))

    def weight(t: int) -> float:
        above, below = max(0, t - 800) / 300, max(0, 500 - t) / 100
        return sqrt((1 - abar[t]) / abar[t]) * exp(-(above**2) / 2 - below**2 / 2)

    sums = list(accumulate(weight(t) for t in range(first, last - 1, -1)))
    return [part / sums[-1] for part in sums]


# How a knot's value is reached from the one before: from, to, and the share of the steps between them
CURVES: dict[str, Callable[[float, float, float], float]] = {
    "linear": lambda start, end, share: start + (end - start) * share,
    "sqrt": lambda start, end, share: start + (end - start) * sqrt(share),  # HiFA (Zhu et al. 2023)
    "dreamtime": dreamtime,
}


def _show(spec: Any) -> str:
    return str([list(k) if _is_list(k) else k for k in spec])


def _parse_knot(knot: Any, name: str, steps: int) -> tuple[int, Any, str]:
    step = _knot_step(knot[0], steps) if _is_list(knot) and len(knot) in (2, 3) else None
    curve = knot[2] if step is not None and len(knot) == 3 else ""
    if step is None or _is_list(knot[1]) or (curve and curve not in CURVES) or curve is None:
        curves = ", ".join(CURVES)
        raise UserError(f"{name}: expected a knot [step, value] or [step, value, curve] with {curves}, got {knot!r}")
    return step, knot[1], curve


def _knot_step(given: Any, steps: int) -> int | None:
    """A whole number as it is, a share of the run ("50%") in steps; None for anything else."""
    if isinstance(given, str) and (share := re.fullmatch(r"(\d{1,3}(?:\.\d{1,9})?)%", given)):
        return round(float(share[1]) / 100 * steps)
    return given if isinstance(given, int) and not isinstance(given, bool) else None


# What the training loop reads besides lr and loss: kind, lowest and highest value.
WANTED: dict[str, tuple[Any, float, float]] = {
    "resolution": (int, 8, 4096),
    "t_min": (int | float, 0, 1),
    "t_max": (int | float, 0, 1),
    "guidance_scale": (int | float, -1, 1000),
    "energy_weight": (int | float, 0, 1e6),
    "negative_prompt": (bool, 0, 1),
    "shading": (bool, 0, 1),
}
OPTIONAL: dict[str, tuple[Any, float, float]] = {  # the same, for what may be missing
    "grad_clip": (int | float, 0, 1e6),
    "bridge": (bool, 0, 1),
    "reference_resolution": (int, 8, 4096),
}
LARGEST = 1e300  # rate or weight: what float arithmetic takes


class Plan:
    """Every schedule of a run, by name: `Plan(spec).at(step).lr.density`.

    `spec` is a mapping, possibly nested, of what Schedule.parse reads; `steps`, the length of the run, is a plain
    number and stays one: `plan.steps`. Raises UserError with the dotted name of what it cannot read.
    """

    def __init__(self, spec: Mapping[str, Any]):
        steps = spec.get("steps")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise UserError(f"schedule.steps must be a whole number of at least 1, got {steps!r}")
        self.steps: int = steps
        self._tree = _parse_tree({key: value for key, value in spec.items() if key != "steps"}, "schedule", steps)

    def at(self, step: int) -> SimpleNamespace:
        """Every value at this step, nested like the spec.

        The paper writes guidance as (1 + s) e(y) - s e(0), and so do our schedules; from here on it is the usual s' =
        1 + s of e(0) + s' (e(y) - e(0)).
        """
        now = _evaluate(self._tree, step)
        if hasattr(now, "guidance_scale"):
            now.guidance_scale += 1
        return now

    def check(self, losses: Sequence[str] | None = None) -> "Plan":
        """Self, if every value that the training loop reads is there and possible; a UserError of one line if not.

        losses: the names that `loss` may give a weight to.
        """
        given = {name: wanted for name, wanted in OPTIONAL.items() if name in self._tree}
        for name, (kind, low, high) in {**WANTED, **given}.items():
            schedule = self._tree.get(name)
            if not isinstance(schedule, Schedule):
                raise UserError(f"schedule.{name} is missing: wanted a constant or knots [[step, value], ...]")
            for _, value, curve in schedule.knots:
                if curve and kind is int:
                    raise UserError(f"schedule.{name}: a {curve} knot would pass through fractions; leave out {curve}")
                right = isinstance(value, kind) and (kind is bool) == isinstance(value, bool)
                if not right or not low <= value <= high:
                    what = "true or false" if kind is bool else f"numbers from {low:g} to {high:g}"
                    whole = "whole " if kind is int else ""
                    raise UserError(f"schedule.{name}: wanted {whole}{what}, got {value!r}")
        self._check_t()
        for name in ("lr", "loss"):
            if not isinstance(self._tree.get(name), dict):
                came = "is missing" if name not in self._tree else "is one value"
                raise UserError(
                    f"schedule.{name} {came}: wanted a schedule for each name in it, schedule.{name}.NAME=..."
                )
            for key, schedule in self._tree[name].items():
                knots = schedule.knots if isinstance(schedule, Schedule) else ((0, "more names", False),)
                if wrong := [value for _, value, _ in knots if not (_is_number(value) and 0 <= value <= LARGEST)]:
                    shown = repr(wrong[0])[:60]
                    raise UserError(f"schedule.{name}.{key}: wanted numbers from 0 to {LARGEST:g}, got {shown}")
        if losses is not None:
            weighted = {name for name, weight in self._tree["loss"].items() if weight.max() > 0}
            if unknown := sorted(weighted - set(losses)):
                raise UserError(
                    f"unknown key 'schedule.loss.{unknown[0]}': there are {', '.join(dict.fromkeys(losses))}"
                )
            if not weighted & set(losses):
                raise UserError(f"schedule.loss gives no weight to any of {', '.join(dict.fromkeys(losses))}")
        return self

    def _check_t(self) -> None:
        """Raise UserError if t_min is above t_max somewhere."""
        low, high = self._find("t_min"), self._find("t_max")
        for step in _telling(low, high, self.steps):
            if 0 <= step < self.steps and low(step) > high(step):
                raise UserError(
                    f"schedule.t_min is {low(step):g} and schedule.t_max {high(step):g} at step {step}: wanted a t_min "
                    "of at most t_max all the way"
                )

    def max(self, name: str, missing: Any = None) -> Any:
        """The largest value that e.g. "resolution" or "lr.encoding" takes in the whole plan.

        missing: what a name that is not there counts as. Raises KeyError for it if that is None.
        """
        try:
            return self._find(name).max()
        except KeyError:
            if missing is None:
                raise
            return missing

    def stages(self, name: str) -> list[tuple[int, Any]]:
        """(first step, value) of every value that e.g. "resolution", without linear knots, takes before the end."""
        values = [(step, value) for step, value, _ in self._find(name).knots if step < self.steps]
        return values[:1] + [after for before, after in zip(values, values[1:], strict=False) if before[1] != after[1]]

    def differing(self, other: "Plan", steps: int) -> list[str]:
        """Dotted names of the schedules that differ from `other`'s somewhere in the first `steps`, sorted."""
        ours, theirs = _leaves(self._tree), _leaves(other._tree)
        found = list(ours.keys() ^ theirs.keys())
        for name in ours.keys() & theirs.keys():
            one, two = ours[name], theirs[name]
            if any(one(step) != two(step) for step in _telling(one, two, steps) if 0 <= step < steps):
                found.append(name)
        return sorted(found)

    def _find(self, name: str) -> Schedule:
        node: Any = self._tree
        for part in name.split("."):
            node = node[part]
        return node


def _telling(one: Schedule, two: Schedule, steps: int) -> list[int]:
    """Steps at which two schedules tell all that they differ in.

    Between two neighbours among the knots of both, each is a constant or a straight line: those that agree at the
    first, the second and the last step there agree at all of them, and so do signs. Of other curves it is all steps.
    """
    knots = (*one.knots, *two.knots)
    if any(curve not in ("", "linear") for _, _, curve in knots):
        return list(range(steps))
    return sorted({step + near for step in {*(step for step, _, _ in knots), steps} for near in (-1, 0, 1)})


def _parse_tree(spec: Mapping[str, Any], name: str, steps: int) -> dict[str, Any]:
    return {
        key: _parse_tree(value, f"{name}.{key}", steps)
        if isinstance(value, Mapping)
        else Schedule.parse(value, f"{name}.{key}", steps)
        for key, value in spec.items()
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "schedule") -> dict[str, Schedule]:
    found = {}
    for key, node in tree.items():
        name = f"{prefix}.{key}"
        found |= {name: node} if isinstance(node, Schedule) else _leaves(node, name)
    return found


def _evaluate(tree: Mapping[str, Any], step: int) -> SimpleNamespace:
    return SimpleNamespace(
        **{key: node(step) if isinstance(node, Schedule) else _evaluate(node, step) for key, node in tree.items()}
    )


def warm_up_and_cosine(step: int, steps: int, warm_up: int = 200) -> float:
    """Share of the learning rate: a linear start, then half a cosine down to a hundredth."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + cos(pi * (step - warm_up) / max(1, steps - warm_up)))
