"""How toys look: a face on one side, and all within the picture."""

import numpy as np
import pytest

from jointdreamer.toybox import raycast
from jointdreamer.toybox.judge import judging_cameras, true_views
from jointdreamer.toybox.solids import solids
from jointdreamer.toybox.world import SECOND, Toy, sample_toy


@pytest.mark.parametrize("kind", SECOND.kinds)
def test_a_face_is_on_one_side_only(kind):
    """Eyes are where there is both black (pupils) and white: tails may have one of them, never both."""
    cameras = judging_cameras()
    c2w, fovy = cameras.c2w[0].double().numpy(), cameras.fovy[0].double().numpy()
    rgba, _, _ = raycast.render(raycast.pack(solids(Toy(kind, "red"))), c2w, fovy)
    inside = rgba[..., 3] == 1  # edges mix with what is behind
    black = (inside & (rgba[..., :3].max(-1) < 0.06)).sum((1, 2))
    white = (inside & (rgba[..., :3].min(-1) > 0.6)).sum((1, 2))
    eyes = np.minimum(black, white)
    assert eyes[0] >= 4
    assert eyes[8] <= 1


@pytest.mark.parametrize("kind", SECOND.kinds)
def test_every_toy_fits_the_picture_and_the_box(kind):
    rng = np.random.default_rng(8)
    toys = [sample_toy(rng, words=SECOND) for _ in range(600)]
    for toy in [toy for toy in toys if toy.kind == kind][:8]:
        assert all(np.abs(s.center).max() < 1 for s in solids(toy))
        views = true_views(toy)
        border = np.concatenate([views[:, :, 0].flatten(), views[:, :, -1].flatten()])
        assert np.mean(np.abs(border - 0.85) < 0.01) > 0.85
