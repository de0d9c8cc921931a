"""Which side is the right one: an object with one red arm, on its +90 degrees side, for each novel-view model.

The world: the front is +x, azimuth 90 is +y. From the front a camera has +y to its right.
"""

import math

import numpy as np
import pytest
import torch

from jointdreamer.cameras import Cameras, Rig, look_at, orbit_cameras, sample_cameras
from jointdreamer.classifier.views import world_to_camera
from jointdreamer.priors.registry import load_novel_view
from jointdreamer.priors.wonder3d import AZIMUTH_DEG
from jointdreamer.priors.zero123 import relative_numbers, stable_numbers
from jointdreamer.project import ROOT
from jointdreamer.toybox import data, raycast
from jointdreamer.toybox.raycast import SPHERE, Solid
from jointdreamer.toybox.solids import solids
from jointdreamer.toybox.world import Toy

BODY = Solid(SPHERE, (0, 0, 0), (0.3, 0.3, 0.5), (0.5, 0.5, 0.5))
ARM = Solid(SPHERE, (0, 0.5, 0), (0.1, 0.15, 0.1), (1.0, 0.0, 0.0))
SIZE = 32


def cameras(azimuth_deg, elevation_deg=15.0, distance=2.6) -> Cameras:
    """One rig of cameras at these azimuths."""
    azimuth = torch.tensor([azimuth_deg]).float().deg2rad()
    elevation, far, fovy = (torch.full_like(azimuth, x) for x in (math.radians(elevation_deg), distance, 0.7))
    c2w = look_at(elevation, azimuth, far)
    return Cameras(c2w, fovy, elevation, azimuth, far, c2w[..., :3, 3], SIZE)


def arm_seen(c2w: torch.Tensor, fovy: float = 0.7) -> tuple[float, float]:
    """How much red a camera (4, 4) sees, in pixels, and where: from -1, the left edge, to 1, the right one."""
    rgba, _, _ = raycast.render(raycast.pack([BODY, ARM]), c2w[None].double().numpy(), np.array([fovy]), SIZE)
    red = (rgba[0, ..., 0] > 0.4) & (rgba[0, ..., 1] < 0.2) & (rgba[0, ..., 3] > 0.5)
    columns = np.nonzero(red)[1]
    return len(columns), float((columns + 0.5).mean() / SIZE * 2 - 1) if len(columns) else math.nan


def test_the_world_s_own_sides():
    front, right, back, left = (arm_seen(c2w) for c2w in cameras([0, 90, 180, 270]).c2w[0])
    assert front[1] > 0.3 and back[1] < -0.3
    assert right[0] > 0 and abs(right[1]) < 0.1
    assert left[0] == 0


def authors_numbers(reference: torch.Tensor, target: torch.Tensor) -> list[float]:
    """Zero-1-to-3's training pose of two cameras (4, 4), as its dataset computes it from world-to-camera matrices."""

    def spherical(c2w):
        w2c = world_to_camera(c2w.double().numpy())  # 3x4, as the dataset's .npy files
        x, y, z = -w2c[:, :3].T @ w2c[:, 3]
        return math.acos(z / math.hypot(x, y, z)), math.atan2(y, x), math.hypot(x, y, z)

    (theta, azimuth, z), (theta_1, azimuth_1, z_1) = spherical(reference), spherical(target)
    turn = (azimuth_1 - azimuth) % (2 * math.pi)
    return [theta_1 - theta, math.sin(turn), math.cos(turn), z_1 - z]


@pytest.mark.parametrize("numbers", [relative_numbers, stable_numbers], ids=["zero123", "stable_zero123"])
@pytest.mark.parametrize("reference_deg", [0.0, 70.0])
def test_zero123_is_asked_for_the_side_with_the_arm(numbers, reference_deg):
    """What the authors' numbers mean, drawn: the view asked for has the arm in the middle, its opposite none."""
    reference = cameras([reference_deg], elevation_deg=25.0, distance=1.8)
    wanted = cameras([90.0, 270.0], elevation_deg=5.0, distance=2.1)
    said = numbers(reference, wanted)[0].double()
    for view in range(2):
        theirs = authors_numbers(reference.c2w[0, 0], wanted.c2w[0, view])
        np.testing.assert_allclose(said[view, :3], theirs[:3], atol=1e-5)
        fourth = math.radians(90 - 25) if numbers is stable_numbers else theirs[3]
        assert float(said[view, 3]) == pytest.approx(fourth, abs=1e-5)
        azimuth = reference.azimuth[0, 0] + math.atan2(said[view, 1], said[view, 2])
        elevation = reference.elevation[0, 0] - said[view, 0]
        seen, where = arm_seen(look_at(elevation, azimuth, torch.tensor(2.1)).float())
        assert (seen > 0 and abs(where) < 0.1) if view == 0 else seen == 0


def test_wonder3d_s_right_is_the_side_with_the_arm():
    """Its views are front, front right, right, back, left, front left of the object as it is seen."""
    assert AZIMUTH_DEG == (0, 45, 90, 180, -90, -45)
    rig = Rig(n_views=6, azimuth_deg=AZIMUTH_DEG, first_azimuth_deg=(0, 0), elevation_deg=(0, 0), fovy_deg=(40, 40))
    drawn = sample_cameras(rig, SIZE, torch.Generator().manual_seed(0))
    seen = [arm_seen(c2w, fovy=math.radians(40)) for c2w in drawn.c2w[0]]
    front, front_right, right, back, left, front_left = seen
    assert front[1] > 0.2 and back[1] < -0.2
    assert abs(right[1]) < 0.1 and left[0] == 0
    assert front[1] > front_right[1] > 0.1 and front_left[0] < front_right[0]


@pytest.mark.slow
def test_a_trained_model_draws_the_side_that_was_asked_for():
    """The toybox's own: a duck whose bill points left when it is seen from +90, and right from -90."""
    weights = ROOT / "jointdreamer" / "toybox" / "weights"
    model = load_novel_view(
        "zero123", weights / "novel_view", vae=weights / "text_to_image", image_size=64, x0_limit=5.0
    )
    around = orbit_cameras(4, 64, elevation_deg=15, distance=2.61, fovy_deg=40)
    packed = raycast.pack(solids(Toy("duck", "green", shape_seed=1_000_000_007)))
    rgba, _, _ = raycast.render(packed, around.c2w[0].double().numpy(), around.fovy[0].double().numpy(), 64)
    truth = data.composite(np.round(rgba * 255).astype(np.uint8), np.full((4, 3), 0.85))
    front, sides = (around.select(torch.tensor([views])) for views in ([0], [1, 3]))
    given = model.told(truth[0], front)
    told, nothing = given.at(sides), given.nothing(sides)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, model.unet.config.out_channels, 16, 16, generator=generator)
    levels = torch.linspace(980, 20, 10).long()
    for t, after in zip(levels, [*levels[1:], None], strict=True):
        cond, uncond = model.predict(x, t[None], [told, nothing], sides)
        x0 = model.process.x0(uncond + 3 * (cond - uncond), x, t[None]).clamp(-5, 5)
        alpha_t, sigma_t = model.process.at(t[None])
        noise = (x - alpha_t * x0) / sigma_t
        if after is not None:
            alpha_t, sigma_t = model.process.at(after[None])
            x = alpha_t * x0 + sigma_t * noise
    drawn = model.decode(x0)[0].clamp(0, 1)
    error = (drawn[:, None] - truth[[1, 3]][None]).square().mean((2, 3, 4))  # (drawn, true)
    assert error[0, 0] < error[0, 1] and error[1, 1] < error[1, 0], error
