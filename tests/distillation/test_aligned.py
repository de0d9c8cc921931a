"""Score distillation of coordinate maps, with a denoiser that is known in closed form."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jointdreamer.cameras import Rig, rays, sample_cameras
from jointdreamer.diffusion import noise_from_x0
from jointdreamer.distillation.aligned import AlignedGeometry
from jointdreamer.errors import UserError
from jointdreamer.priors.condition import Condition
from jointdreamer.scenes.base import Render, Scene
from jointdreamer.scenes.coordinates import as_latents, coordinate_map
from tests.priors.known import PicturePrior

SCENE: Any = None  # that a prior with an extent does not ask
CAMERAS = sample_cameras(Rig(n_rigs=2, n_views=3), 6, torch.Generator().manual_seed(1))
NOW = SimpleNamespace(
    t_min=0.1, t_max=0.9, guidance_scale=2.0, energy_weight=0.0, negative_prompt=False, loss=SimpleNamespace(agp=1.0)
)


class NoText:
    def at(self, cameras):
        return Condition(torch.ones(()))

    def nothing(self, cameras, negative=False):
        return Condition(torch.zeros(()))


class KnownMaps(PicturePrior):
    """Whatever it sees, it wants these coordinate maps: the posterior of a world with one object."""

    extent: float | None = 2.0

    def __init__(self, wanted):
        super().__init__()
        self.wanted = wanted  # latents (B, V, 4, h, w)

    def encode(self, rgb, generator, grad=True, chunk=None):
        return as_latents(rgb)

    def predict(self, x_t, t, conditions, cameras):
        return [noise_from_x0(x_t, self.wanted, *self.process.at(t))] * len(conditions)


TEXT: Any = NoText()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def render(seed=2) -> Any:
    drawn = torch.rand(2, 3, 5, 6, 6, generator=generator(seed), dtype=torch.float64)
    rgb, opacity, depth = (part.clone().requires_grad_() for part in drawn.split([3, 1, 1], 2))
    return Render(rgb, opacity, depth)


def test_the_gradient_is_that_of_half_the_squared_distance_of_the_maps():
    """With w = sigma_t / alpha_t: z - x0, through opacity and depth, by hand; the colours are not in it."""
    seen = render()
    wanted = torch.randn(2, 3, 4, 6, 6, generator=generator(3), dtype=torch.float64)
    term = AlignedGeometry(KnownMaps(wanted), TEXT, weighting="x0")
    losses = term(SCENE, seen, CAMERAS, NOW, generator(4))
    of_rgb, of_opacity, of_depth = torch.autograd.grad(
        losses["agp"], (seen.rgb, seen.opacity, seen.depth), allow_unused=True
    )
    rays_o, rays_d = (x.movedim(-1, 2).double() for x in rays(CAMERAS.c2w, CAMERAS.fovy, 6))
    z = torch.cat([(rays_o * seen.opacity + rays_d * seen.depth) / 2, 2 * seen.opacity - 1], 2)
    away = (z - wanted).detach() / 6  # of six views
    assert of_rgb is None
    torch.testing.assert_close(of_depth, (away[:, :, :3] * rays_d / 2).sum(2, keepdim=True), atol=1e-7, rtol=1e-5)
    by_hand = (away[:, :, :3] * rays_o / 2).sum(2, keepdim=True) + 2 * away[:, :, 3:]
    torch.testing.assert_close(of_opacity, by_hand, atol=1e-7, rtol=1e-5)


def test_where_the_maps_are_what_the_prior_wants_there_is_no_gradient():
    seen = render()
    box = torch.tensor([[-2.0] * 3, [2.0] * 3])
    wanted = as_latents(coordinate_map(seen.opacity, seen.depth, CAMERAS, box)).detach()
    losses = AlignedGeometry(KnownMaps(wanted), TEXT)(SCENE, seen, CAMERAS, NOW, generator())
    (grad,) = torch.autograd.grad(losses["agp"], seen.depth)
    assert grad.abs().max() < 1e-9


def test_the_cube_is_a_tenth_larger_than_the_object_and_around_its_centre():
    class Box(Scene):
        def render(self, cameras, now=None, generator=None, chunk=None, normals=True):
            raise AssertionError

        def parameter_groups(self):
            return {}

        def bounds(self) -> torch.Tensor | None:
            return torch.tensor([[-0.5, -0.1, 0.0], [0.1, 0.1, 0.4]])

    prior = KnownMaps(torch.zeros(()))
    prior.extent = None
    term = AlignedGeometry(prior, TEXT)
    torch.testing.assert_close(term.box(Box()), torch.tensor([[-0.53, -0.33, -0.13], [0.13, 0.33, 0.53]]))
    Box.bounds = Scene.bounds
    with pytest.raises(UserError, match=r"does not say which box .* models\.coordinates\.extent=1"):
        term.box(Box())


def test_a_render_without_depth_is_one_line():
    seen = render()
    with pytest.raises(UserError, match="renders no depth"):
        AlignedGeometry(KnownMaps(torch.zeros(())), TEXT)(
            SCENE, Render(seen.rgb, seen.opacity), CAMERAS, NOW, generator()
        )


def test_without_a_weight_the_prior_is_not_asked():
    now = SimpleNamespace(**{**vars(NOW), "loss": SimpleNamespace(agp=0.0)})
    term = AlignedGeometry(KnownMaps(torch.zeros(())), TEXT)
    assert term(SCENE, render(), CAMERAS, now, generator()) == {} and term.pictures() == {}


def test_what_the_cameras_saw_can_be_shown():
    term = AlignedGeometry(KnownMaps(torch.zeros(2, 3, 4, 6, 6)), TEXT)
    term(SCENE, render(), CAMERAS, NOW, generator())
    assert term.pictures()["coordinates"].shape == (3, 3, 6, 6)
