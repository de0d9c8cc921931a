"""What the prior wants, against the formulas of the papers; Perp-Neg's weights and geometry at known azimuths."""

import math
from types import SimpleNamespace

import pytest
import torch

from jointdreamer.cameras import Rig, orbit_cameras, sample_cameras
from jointdreamer.diffusion import add_noise
from jointdreamer.distillation.baselines import Zero
from jointdreamer.distillation.targets import (
    Bridge,
    ClassifierFree,
    Coefficients,
    NoiseFree,
    PerpNeg,
    halves,
    perpendicular,
)
from jointdreamer.errors import UserError
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.prompts import DIRECTIONS, Prompts, TextEmbeddings
from tests.priors.known import PicturePrior

TEXT = TextEmbeddings(torch.randn(4, 5, 3), torch.randn(2, 5, 3))


class Known(PicturePrior):
    def predict(self, x_t, t, conditions, cameras):
        return [x_t for _ in conditions]


PRIOR = Known()
CAMERAS = sample_cameras(Rig(n_rigs=2, n_views=2), 8, torch.Generator().manual_seed(0))


def tensors(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(n)]


def noised(t=(100, 700)):
    return add_noise(PRIOR.process, tensors(1)[0], torch.tensor(t), torch.Generator().manual_seed(1))


def now(**more):
    return SimpleNamespace(guidance_scale=7.5, negative_prompt=False, **more)


def test_guidance_is_the_prior_s_own_with_its_limits():
    prior = Known()
    prior.guidance = Guidance(x0_limit=0.5, cfg_rescale=0.3)
    cond, uncond = tensors(2)
    here = noised()
    expected = prior.guidance.noise(prior.process, here.x_t, here.t, cond, uncond, 7.5)
    assert torch.equal(ClassifierFree()(prior, here, [cond, uncond], CAMERAS, now()), expected)


def test_csd_is_its_three_coefficients_and_subtracts_nothing():
    cond, empty, negative = tensors(3)
    plan = now(csd=SimpleNamespace(text=1.0, empty=-0.25, negative=-0.75))
    target = Coefficients()
    conditions = target.conditions(TEXT, CAMERAS, plan)
    assert torch.equal(conditions[1].embedding[0, 0], TEXT.uncond[0])
    assert torch.equal(conditions[2].embedding[0, 0], TEXT.uncond[1])
    wanted = target(PRIOR, noised(), [cond, empty, negative], CAMERAS, plan)
    assert torch.allclose(wanted, cond - 0.25 * empty - 0.75 * negative)
    assert not Zero()(noised(), CAMERAS, plan).any()
    with pytest.raises(UserError, match="schedule.csd.negative is missing"):
        target(PRIOR, noised(), [cond, empty, negative], CAMERAS, now(csd=SimpleNamespace(text=1, empty=0)))


def test_nfsd_takes_the_negative_away_where_there_is_much_noise_rig_by_rig():
    cond, empty, negative = tensors(3)
    wanted = NoiseFree()(PRIOR, noised((199, 200)), [cond, empty, negative], CAMERAS, now())
    assert torch.allclose(wanted[0], 7.5 * (cond - empty)[0] + empty[0])
    assert torch.allclose(wanted[1], 7.5 * (cond - empty)[1] + (empty - negative)[1])


def test_the_bridge_is_sds_first_and_then_goes_from_the_poor_to_the_good_text():
    class Embeds(Known):
        def embed(self, prompts):
            return TextEmbeddings(torch.full((4, 5, 3), float(len(prompts.prompt))), TEXT.uncond)

    target, (cond, uncond) = Bridge(Embeds(), Prompts("a cat"), good=", sharp", poor=", a blur"), tensors(2)
    here = noised()
    assert torch.equal(target.conditions(TEXT, CAMERAS, now(bridge=False))[1].embedding[0, 0], TEXT.uncond[0])
    before = target(PRIOR, here, [cond, uncond], CAMERAS, now(bridge=False))
    assert torch.equal(before, ClassifierFree()(PRIOR, here, [cond, uncond], CAMERAS, now()))

    good, poor = target.conditions(TEXT, CAMERAS, now(bridge=True))
    assert good.embedding.unique() == len("a cat, sharp") and poor.embedding.unique() == len("a cat, a blur")
    after = target(PRIOR, here, [cond, uncond], CAMERAS, now(bridge=True))
    assert torch.allclose(after - here.noise, 7.5 * (cond - uncond))
    with pytest.raises(UserError, match="schedule.bridge is missing"):
        target.conditions(TEXT, CAMERAS, now())


def test_the_perpendicular_part_is_perpendicular_and_the_rest_is_parallel():
    x, y = tensors(2)
    across = perpendicular(x, y)
    assert ((across * y).sum((-3, -2, -1))).abs().max() < 1e-12
    ratio = (x - across) / y  # what is left is a multiple of y, one for each view
    assert torch.allclose(ratio, ratio[..., :1, :1, :1].expand_as(ratio))
    assert torch.allclose(perpendicular(3 * y, y), torch.zeros_like(y), atol=1e-12)
    assert torch.equal(perpendicular(x, torch.zeros_like(y)), x)


@pytest.mark.parametrize(
    ("degrees", "share", "ahead"),
    [(0, 1, 1), (45, 0.5, 1), (-45, 0.5, 1), (89.99, 0, 1), (90.01, 1, 0), (135, 0.5, 0), (180, 0, 0), (-180, 0, 0)],
)
def test_the_quarter_turns(degrees, share, ahead):
    found = halves(torch.tensor([[math.radians(degrees)]]))
    assert found[0].item() == pytest.approx(share, abs=1e-3) and found[1].item() == ahead


@pytest.mark.parametrize(
    ("degrees", "weights"),
    [(0, (0, -1.574)), (45, (-0.689, -0.689)), (89.99, (-1.574, 0)), (90.01, (0, -1.5735)), (180, (-0.394, -1.967))],
)
def test_threestudio_s_weights(degrees, weights):
    """f(r) = a exp(-b r) + c with (a, b, c) = (4, 0.5, -2.426), (1, 0.5, -0.606), (1, 0.5, 0.967); without the sign."""
    share, ahead = halves(torch.tensor([[math.radians(degrees)]]))
    found = [PerpNeg().weights(share, ahead, number).item() for number in range(2)]
    assert found == pytest.approx(weights, abs=2e-3)


@pytest.mark.parametrize(
    ("degrees", "weights"),
    [
        (0, (0, -2)),
        (45, (-2 * math.exp(-1), -2 * math.exp(-5))),
        (75, (-2 * math.exp(-1 / 3), 0)),
        (135, (-math.exp(-5), -2)),
        (180, (-1, -2)),
    ],
)
def test_the_authors_weights(degrees, weights):
    share, ahead = halves(torch.tensor([[math.radians(degrees)]]))
    found = [PerpNeg("authors").weights(share, ahead, number).item() for number in range(2)]
    assert found == pytest.approx(weights, abs=1e-3)


def test_perp_neg_asks_between_two_directions_and_for_two_wrong_ones():
    front, side, back = (TEXT.cond[DIRECTIONS.index(name)] for name in ("front", "side", "back"))
    right, nothing, one, two = (
        condition.embedding[0] for condition in PerpNeg().conditions(TEXT, orbit_cameras(8, 8), now())
    )
    assert torch.allclose(right[0], front) and torch.allclose(right[1], (front + side) / 2, atol=1e-5)
    assert torch.allclose(right[3], (side + back) / 2, atol=1e-5) and torch.allclose(right[4], back, atol=1e-5)
    assert torch.equal(nothing[0], TEXT.uncond[0])
    assert torch.equal(one[1], front) and torch.equal(two[1], side)  # in the front half
    assert torch.equal(one[3], side) and torch.equal(two[3], front)  # in the back half


def test_perp_neg_is_its_formula():
    cond, uncond, one, two = tensors(4)
    target, cameras = PerpNeg(), CAMERAS
    target.conditions(TEXT, cameras, now())
    share, ahead = halves(cameras.azimuth)
    expected = cond - uncond
    for number, other in enumerate((one, two)):
        weight = target.weights(share, ahead, number).double()[..., None, None, None]
        x, y = other - uncond, cond - uncond
        expected = expected + weight * (x - y * (x * y).sum((2, 3, 4), True) / (y * y).sum((2, 3, 4), True))
    found = target(PRIOR, noised(), [cond, uncond, one, two], cameras, now())
    assert torch.allclose(found, uncond + 7.5 * expected)


def test_from_overhead_nothing_is_taken_away():
    above = sample_cameras(Rig(n_rigs=2, n_views=2, elevation_deg=(80, 80)), 8, torch.Generator().manual_seed(0))
    cond, uncond, one, two = tensors(4)
    target = PerpNeg()
    right = target.conditions(TEXT, above, now())[0].embedding
    assert torch.equal(right[0, 0], TEXT.cond[DIRECTIONS.index("overhead")])
    found = target(PRIOR, noised(), [cond, uncond, one, two], above, now())
    assert torch.allclose(found, uncond + 7.5 * (cond - uncond))
