"""CLS energy (Eq. 6): the sum over neighbours, its gradient and memory; and whether the shipped one likes coherence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jointdreamer.cameras import Cameras, Rig, camera_numbers, sample_cameras
from jointdreamer.classifier.model import Features
from jointdreamer.energies.base import Views
from jointdreamer.energies.classifier import ClassifierEnergy
from jointdreamer.errors import UserError
from jointdreamer.priors.prompts import TextPair

SHIPPED = Path(__file__).parents[2] / "jointdreamer" / "toybox" / "weights" / "classifier"
NOTHING = torch.zeros(1)


def views(n_rigs=2, n_views=4, size=8, x0=None, cameras=None, decode=None):
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(n_rigs, n_views, 4, size, size, generator=g) if x0 is None else x0
    weight = torch.randn(3, 4, generator=g) * 0.2
    return Views(
        x0=x0.requires_grad_(),
        rgb=NOTHING,
        opacity=NOTHING,
        cameras=cameras or sample_cameras(Rig(n_rigs=n_rigs, n_views=n_views), 16, g),
        timesteps=torch.zeros(n_rigs),
        text=TextPair(NOTHING, NOTHING),
        # a decoder in small: each latent is a 3 x 3 block of one colour
        decode=decode or (lambda z: torch.einsum("dc,bvchw->bvdhw", weight, z).repeat_interleave(3, -1) + 0.5),
    )


@pytest.mark.parametrize("n_views", [2, 3, 4])
@pytest.mark.parametrize("pairs", ["neighbours", "all", "given"])
def test_energy_is_the_sum_over_pairs(tiny_classifier_folder, n_views, pairs):
    """Neighbours, the last one's being the first; or every view with every other, both ways round; or the front one
    with every other."""
    energy = ClassifierEnergy(
        tiny_classifier_folder, scale=2.0, pairs=pairs, anchor="front" if pairs == "given" else None
    )
    seen = views(n_views=n_views)
    front = seen.cameras.azimuth.cos().argmax(1).tolist()
    coherence = energy(seen)
    images = seen.decode(seen.x0)
    expected = torch.zeros(2)
    for rig in range(2):
        for v in range(n_views):
            for w in range(n_views):
                if v == w or (pairs == "neighbours" and w != (v + 1 if v + 1 < n_views else 0)):
                    continue
                if pairs == "given" and v != front[rig]:
                    continue
                camera = camera_numbers(seen.cameras.c2w[rig, v], seen.cameras.c2w[rig, w])
                pair = torch.stack([images[rig, v], images[rig, w]])
                expected[rig] += energy.classifier(pair, torch.tensor([0]), torch.tensor([1]), camera[None])[0]
    torch.testing.assert_close(coherence, 2 * expected)


def test_the_anchor_is_given_and_the_others_follow(tiny_classifier_folder):
    """The guided estimate stands for the view nearest to the front, which gets no gradient; the others do."""
    seen = views()
    ahead = torch.randn_like(seen.x0)
    front = seen.cameras.azimuth.cos().argmax(1)
    rows = torch.arange(2)
    (grad,) = torch.autograd.grad(
        ClassifierEnergy(tiny_classifier_folder, anchor="front")(replace(seen, x0_guided=ahead)).sum(), seen.x0
    )
    assert (grad[rows, front] == 0).all()
    with torch.no_grad():
        seen.x0[rows, front] = ahead[rows, front]
    (expected,) = torch.autograd.grad(ClassifierEnergy(tiny_classifier_folder)(seen).sum(), seen.x0)
    expected[rows, front] = 0
    torch.testing.assert_close(grad, expected)
    with pytest.raises(UserError, match="anchor=back: choose front or null"):
        ClassifierEnergy(tiny_classifier_folder, anchor="back")
    with pytest.raises(UserError, match="pairs=some: choose neighbours, all or given"):
        ClassifierEnergy(tiny_classifier_folder, pairs="some")


class Blank(torch.nn.Module):
    """A classifier whose logit is bias - |second - first - pull|^2 / 2, whatever the cameras."""

    def __init__(self, bias=0.0, pull=0.1):
        super().__init__()
        self.bias, self.pull = bias, pull

    def encode(self, rgb):
        return Features(rgb, rgb, rgb)

    def compare(self, first, second, camera):
        return self.bias - (second.summary - first.summary - self.pull).square().flatten(1).sum(1) / 2


def climbing(folder, **options) -> tuple[Any, Views]:
    energy: Any = ClassifierEnergy(
        folder, **({"pairs": "given", "anchor": "front", "ascent": 1, "ascent_step": 0.5} | options)
    )
    energy.classifier = Blank()
    seen = views(
        x0=0.4 + 0.1 * torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(3)), decode=lambda z: z
    )
    return energy, replace(seen, encode=lambda rgb: rgb)


def test_an_ascent_pulls_to_where_the_derivative_of_log_sigmoid_leads(tiny_classifier_folder):
    """One step of half the derivative, s(-logit) (first + pull - second), for every view but the given one."""
    energy, seen = climbing(tiny_classifier_folder, scale=3.0)
    ahead = torch.full_like(seen.x0, 0.5)
    coherence = energy(replace(seen, x0_guided=ahead))
    (grad,) = torch.autograd.grad(coherence.sum(), seen.x0)
    front = seen.cameras.azimuth.cos().argmax(1)
    step = 0.5 + 0.1 - seen.x0.detach()
    logit = -step.square().sum((2, 3, 4), keepdim=True) / 2
    expected = 0.5 * torch.sigmoid(-logit) * step
    expected[torch.arange(2), front] = 0
    torch.testing.assert_close(grad, 3 * expected)
    torch.testing.assert_close(coherence, -1.5 * expected.square().sum((1, 2, 3, 4)))


def test_an_ascent_arrives_stays_an_image_and_leaves_what_is_coherent(tiny_classifier_folder):
    energy, seen = climbing(tiny_classifier_folder, ascent=60)
    front = seen.cameras.azimuth.cos().argmax(1)
    given = seen.x0.detach()[torch.arange(2), front][:, None]
    for pull in (0.1, 0.8):  # white is the end
        energy.classifier = Blank(pull=pull)
        (grad,) = torch.autograd.grad(energy(seen).sum(), seen.x0)
        arrived = (seen.x0 + grad).detach()
        wanted = (given + pull).clamp(max=1).expand_as(arrived).clone()
        wanted[torch.arange(2), front] = given[:, 0]
        torch.testing.assert_close(arrived, wanted, atol=2e-3, rtol=0)
    energy.classifier = Blank(bias=200.0)  # coherent beyond doubt
    assert torch.autograd.grad(energy(seen).sum(), seen.x0)[0].abs().max() < 1e-6


def test_an_ascent_needs_an_encoder_and_the_given_pairs_an_anchor(tiny_classifier_folder):
    energy, seen = climbing(tiny_classifier_folder)
    with pytest.raises(UserError, match="without an encoder"):
        energy(replace(seen, encode=None))
    with pytest.raises(UserError, match="pairs=given: no view is given without anchor=front"):
        ClassifierEnergy(tiny_classifier_folder, pairs="given")
    for wrong in ({"ascent": -1}, {"ascent": 1.5}, {"ascent_step": 0}):
        with pytest.raises(UserError, match="ascent="):
            climbing(tiny_classifier_folder, **wrong)


def test_recomputing_saves_memory_and_changes_nothing(tiny_classifier_folder):
    """Low memory: the decoder runs once forward and once again backward for each view, and only then."""
    grads, calls = [], {True: 0, False: 0}
    for low_memory in (True, False):
        energy, seen = ClassifierEnergy(tiny_classifier_folder, low_memory=low_memory), views()
        decode = seen.decode

        def counted(z, low_memory=low_memory, decode=decode):
            calls[low_memory] += 1
            assert z.shape[:2] == (2, 1)
            return decode(z)

        seen = replace(seen, decode=counted)
        grads.append(torch.autograd.grad(energy(seen).sum(), seen.x0)[0])
    assert calls == {True: 8, False: 4}
    torch.testing.assert_close(grads[0], grads[1])
    assert (grads[0] != 0).float().mean() > 0.99


def test_the_gradient_climbs(tiny_classifier_folder):
    energy, seen = ClassifierEnergy(tiny_classifier_folder), views()
    before = energy(seen)
    (grad,) = torch.autograd.grad(before.sum(), seen.x0)
    small = 1e-2 / grad.norm().item()
    after = energy(replace(seen, x0=(seen.x0 + small * grad).detach()))
    assert (after - before).sum().item() == pytest.approx(1e-2 * grad.norm().item(), rel=0.1)


def test_a_decoder_of_half_precision_does_not_drown_the_gradient(tiny_classifier_folder):
    grads = []
    for dtype in (torch.float32, torch.float16):
        energy, seen = ClassifierEnergy(tiny_classifier_folder, scale=3e-6), views()
        decode = seen.decode
        halved = replace(seen, decode=lambda z, decode=decode, dtype=dtype: decode(z).to(dtype).float())
        grads.append(torch.autograd.grad(energy(halved).sum(), seen.x0)[0])
    assert grads[0].abs().median() < 1e-6  # half precision ends at 6e-8
    assert (grads[1] - grads[0]).norm() < 0.02 * grads[0].norm()


def test_a_small_decoder_takes_the_prior_s_place(tiny_classifier_folder, tmp_path):
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    tiny.save_pretrained(tmp_path)
    energy = ClassifierEnergy(tiny_classifier_folder, decoder=tmp_path)

    def never(z):
        raise AssertionError("the prior's decoder was asked")

    seen = views(decode=never)
    coherence = energy(seen)
    (grad,) = torch.autograd.grad(coherence.sum(), seen.x0)
    assert grad.abs().max() > 0
    with torch.no_grad():
        decoded: Any = tiny.decode(seen.x0.flatten(0, 1))
        flat = decoded.sample / 2 + 0.5
    same = ClassifierEnergy(tiny_classifier_folder)
    decoded = replace(seen, x0=flat.unflatten(0, (2, 4)), decode=lambda z: z)
    torch.testing.assert_close(same(decoded), coherence, rtol=1e-4, atol=1e-4)
    wide = replace(seen, x0=torch.randn(2, 4, 16, 8, 8), x0_guided=None)  # Stable Diffusion 3's
    with pytest.raises(UserError, match="decoder reads latents of 4 channels.*have 16.*decoder=null"):
        energy(wide)


def test_one_view_has_no_neighbour(tiny_classifier_folder):
    with pytest.raises(UserError, match=r"cameras\.n_views of at least 2"):
        ClassifierEnergy(tiny_classifier_folder)(views(n_views=1))


def test_a_classifier_for_other_images_is_refused(tiny_classifier_folder):
    with pytest.raises(UserError, match="16 pixels.*224"):
        ClassifierEnergy(tiny_classifier_folder, image_size=224)


# The shipped one, on toys that it never saw


@pytest.fixture(scope="module")
def toys():
    """Images (n, V, 3, 64, 64) of true rigs of held-out toys, and their cameras."""
    from jointdreamer.toybox import data

    n = 48
    g = torch.Generator().manual_seed(77 + 1)
    pictures = data.rigs(n, seed=77, scarce=False, shape="held_out")
    cameras = sample_cameras(replace(data.RIG, n_rigs=n, n_views=4), 64, g)  # as `rigs` draws them
    assert torch.allclose(cameras.azimuth, torch.as_tensor(pictures.azimuth), atol=1e-5)
    grey = torch.full((n, 4, 3), 0.8).numpy()
    return data.composite(pictures.rgba, grey), cameras


def judged(energy, images, cameras: Cameras):
    with torch.no_grad():
        return energy(views(len(images), x0=images.clone(), cameras=cameras, decode=lambda z: z))


@pytest.mark.skipif(not SHIPPED.exists(), reason="no toybox classifier is shipped yet")
def test_the_energy_rises_with_the_true_view_and_falls_with_a_wrong_one(toys):
    images, cameras = toys
    energy = ClassifierEnergy(SHIPPED, image_size=64)
    whole = judged(energy, images, cameras)
    assert (whole > 0).float().mean() > 0.95

    strange = images.clone()
    strange[:, 2] = images.roll(1, 0)[:, 2]  # another toy stands in for the third view
    turned = images.clone()
    turned[:, 2] = images[:, 0]  # the first view again, where the third should be: a Janus in small
    for worse in (strange, turned):
        assert (whole > judged(energy, worse, cameras)).float().mean() > 0.95
    swapped = replace(cameras, c2w=cameras.c2w.roll(1, 1))  # right pictures in the right order, each a quarter turn on
    assert torch.allclose(judged(energy, images, swapped), whole, atol=1e-2)  # only relative poses count
    wrong = replace(cameras, c2w=cameras.c2w.flip(1))  # the other way round
    assert (whole > judged(energy, images, wrong)).float().mean() > 0.95


@pytest.mark.skipif(not SHIPPED.exists(), reason="no toybox classifier is shipped yet")
def test_from_a_front_on_every_side_the_energy_leads_towards_the_true_views(toys):
    """Janus in full: every view of a rig shows the front. Where the ascent arrives, a good part of the way is done."""
    images, cameras = toys[0][:16], toys[1]
    cameras = replace(cameras, c2w=cameras.c2w[:16], azimuth=cameras.azimuth[:16])
    rows, front = torch.arange(16), cameras.azimuth.cos().argmax(1)
    copied = images[rows, front][:, None].expand_as(images).clone()
    seen = replace(views(16, x0=copied, cameras=cameras, decode=lambda z: z), encode=lambda rgb: rgb)
    energy = ClassifierEnergy(SHIPPED, pairs="given", anchor="front", ascent=4)
    (step,) = torch.autograd.grad(energy(seen).sum(), seen.x0)
    before, after = (images - copied.detach()), (images - copied.detach() - step)
    assert after.square().sum() < 0.7 * before.square().sum()
    nearer = after.square().sum((1, 2, 3, 4)) < before.square().sum((1, 2, 3, 4))
    assert nearer.float().mean() > 0.9
