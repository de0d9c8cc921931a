"""Camera poses for tests of views."""

import math

import torch

from jointdreamer.cameras import look_at

VIEWS = 12


def random_poses(rng, n=VIEWS):
    elevation, azimuth = rng.uniform(-0.3, 1.0, n), rng.uniform(-math.pi, math.pi, n)
    return look_at(*(torch.from_numpy(x) for x in (elevation, azimuth, rng.uniform(1.5, 2.2, n)))).numpy()
