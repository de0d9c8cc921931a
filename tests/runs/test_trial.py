"""Memory that is measured: the tensors alive in a small render, and in what a term does with it."""

import pytest
import torch

from jointdreamer.cameras import Rig
from jointdreamer.runs import memory
from jointdreamer.runs.trial import TRIED, Line, Live, Trial, busiest
from tests.runs.small_step import Images, nerf, plan

CPU = torch.device("cpu")


def test_live_counts_what_is_alive():
    with Live() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # the same memory
        c = a + 1
        assert (live.now, live.peak) == (8000, 8000)
        del a, c
        assert live.now == 4000
        del b
    assert (live.now, live.peak) == (0, 8000)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("orient", [0, 1])
def test_a_line_through_two_small_renders_foresees_a_larger_one(backend, orient):
    """Within the margin that is left for fuller objects: above what is counted, by at most that and a third."""
    scene, rig, size = nerf(256, backend=backend), Rig(), 96
    trial = Trial(plan(loss={"orient": orient}), rig, scene, [], CPU)
    rays = tuple(rig.n_views * side**2 for side in TRIED)
    small, large = (trial.render(side) for side in TRIED)
    line = Line.through((rays[0], rays[1]), (small, large))
    counted = trial.render(size)
    foreseen = line.at(rig.n_views * size**2, memory.MARGIN)
    assert 1 < foreseen.kept / counted.kept < memory.MARGIN * 1.33
    assert 1 < foreseen.peak / counted.peak < memory.MARGIN * 1.33


def test_a_trial_leaves_no_trace():
    scene, term = nerf(), Images()
    term.energy = Images()  # a child of its own
    before = {name: value.clone() for name, value in scene.state_dict().items()}
    state = torch.get_rng_state()
    trial = Trial(plan(), Rig(), scene, [term], CPU)
    trial.render(8)
    trial.teach(2)
    assert torch.equal(torch.get_rng_state(), state) and term.chunk is None
    assert term.asked == 0 and not hasattr(term, "kept") and trial.terms[0].asked == 1
    assert trial.terms[0].energy is not term.energy
    assert all(torch.equal(value, before[name]) for name, value in scene.state_dict().items())
    assert all(p.grad is None for p in scene.parameters())


def test_what_terms_take_is_counted_by_images_at_a_time():
    first, second = Images(), Images()
    trial = Trial(plan(), Rig(n_views=4), nerf(), [first], CPU)
    assert trial.teach(1) == pytest.approx(1e7, rel=0.05)
    assert trial.teach(None) == pytest.approx(4e7, rel=0.05)
    both = Trial(plan(), Rig(n_views=4), nerf(), [first, second], CPU)
    assert both.teach(1) == pytest.approx(1e7, rel=0.05)  # one after the other


def test_everything_that_is_ever_at_work_is_tried():
    now = busiest(plan(energy_weight=[[0, 0], [8, 5]], shading=[[0, False], [7, True]]))
    assert (now.energy_weight, now.shading, now.loss.orient) == (5, True, 1)
