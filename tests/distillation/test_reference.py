"""The reference view as a term, on a scene whose picture is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from jointdreamer.cameras import orbit_cameras
from jointdreamer.distillation.reference import ReferenceView
from jointdreamer.reference import ImageCamera, Reference
from jointdreamer.scenes.base import Render, Scene

CAMERA = ImageCamera(elevation_deg=10, azimuth_deg=30, distance=2.0, fovy_deg=40)


class Flat(Scene):
    """One colour of one opacity before white, whoever looks."""

    def __init__(self):
        super().__init__()
        self.color, self.cover = nn.Parameter(torch.full((3,), 0.5)), nn.Parameter(torch.tensor(0.5))
        self.asked: list = []

    def render(self, cameras, now=None, generator=None, chunk=None, normals=True):
        self.asked.append((cameras, now))
        size = (*cameras.azimuth.shape, 1, cameras.resolution, cameras.resolution)
        opacity = self.cover.expand(size)
        return Render(self.color[:, None, None] * opacity + 1 - opacity, opacity)

    def parameter_groups(self):
        return {"geometry": [self.cover], "appearance": [self.color]}


def now(**more):
    return SimpleNamespace(resolution=8, shading=True, loss=SimpleNamespace(rgb=1, mask=1), **more)


def losses(scene, term, now):
    cameras = orbit_cameras(2, 8)
    return term(scene, scene.render(cameras), cameras, now, torch.Generator())


def test_the_losses_are_mean_squares_before_the_background():
    rgba = torch.tensor([0.2, 0.3, 0.4, 1.0])[:, None, None].expand(4, 16, 16)
    scene = Flat()
    found = losses(scene, ReferenceView(Reference(rgba, CAMERA)), now())
    wanted = sum((0.75 - x) ** 2 for x in (0.2, 0.3, 0.4)) / 3
    assert float(found["rgb"]) == pytest.approx(wanted, abs=1e-6) and float(found["mask"]) == pytest.approx(0.25)
    cameras, plain = scene.asked[-1]
    assert cameras.azimuth.shape == (1, 1) and float(cameras.azimuth.rad2deg()) == pytest.approx(30)
    assert not plain.shading and cameras.resolution == 8


@pytest.mark.parametrize(("cover", "mask"), [(0.5, 1.0), (0.8, 0.25), (0.8, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_the_mask_s_loss_may_be_the_cross_entropy(cover, mask):
    scene, rgba = Flat(), torch.full((4, 8, 8), mask)
    with torch.no_grad():
        scene.cover.fill_(cover)
    found = losses(scene, ReferenceView(Reference(rgba, CAMERA), mask_loss="bce"), now())["mask"]
    held = min(max(cover, 1e-5), 1 - 1e-5)
    wanted = -mask * math.log(held) - (1 - mask) * math.log(1 - held)
    assert float(found) == pytest.approx(wanted, rel=5e-3, abs=1e-6)


def test_a_transparent_picture_shows_the_ground():
    scene = Flat()
    with torch.no_grad():
        scene.cover.zero_()
    for ground, wanted in ((1.0, 0.0), (0.5, 0.25)):  # the scene's own is white
        found = losses(scene, ReferenceView(Reference(torch.zeros(4, 8, 8), CAMERA), ground), now())
        assert float(found["rgb"]) == pytest.approx(wanted, abs=1e-6) and float(found["mask"]) == 0


def test_the_resolution_is_the_schedule_s_own():
    scene, term = Flat(), ReferenceView(Reference(torch.rand(4, 16, 16), CAMERA))
    losses(scene, term, now(reference_resolution=12))
    assert scene.asked[-1][0].resolution == 12


def test_descending_leads_to_the_picture():
    rgba = torch.tensor([0.9, 0.1, 0.2, 1.0])[:, None, None].expand(4, 8, 8)
    scene, term = Flat(), ReferenceView(Reference(rgba, CAMERA))
    optimizer = torch.optim.SGD(scene.parameters(), lr=0.4)
    for _ in range(200):
        optimizer.zero_grad()
        found = losses(scene, term, now())
        (found["rgb"] + found["mask"]).backward()
        optimizer.step()
    assert float(scene.cover) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(scene.color.detach(), torch.tensor([0.9, 0.1, 0.2]), atol=0.02, rtol=0)


def test_without_weights_nothing_is_rendered():
    scene, silent = Flat(), now()
    silent.loss = SimpleNamespace(rgb=0, mask=0)
    assert losses(scene, ReferenceView(Reference(torch.zeros(4, 8, 8), CAMERA)), silent) == {}
    assert len(scene.asked) == 1
