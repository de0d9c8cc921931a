import math
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from benchmarks.fake_browser import FRONT
from jointdreamer.cameras import look_at, orbit_cameras
from jointdreamer.images import to_uint8
from jointdreamer.runs.pictures import render_views
from jointdreamer.scenes.registry import build_scene
from jointdreamer.viewer.frames import (
    CHANNELS,
    Surface,
    arrange,
    camera_of,
    compose,
    depth_to_rgb,
    mesh_picture,
    pictures_of,
)

CONFIG = {
    "field": {"encoding": {"n_levels": 2, "log2_table_size": 6, "base_resolution": 4, "backend": "torch"}, "hidden": 8},
    "renderer": {"grid_resolution": 8, "n_samples": 16, "backend": "torch"},
    "background": {},
}


@pytest.fixture(params=["nerf", "dmtet"])
def scene(request):
    options: dict[str, Any] = {"resolution": 12} if request.param == "dmtet" else {}
    made = build_scene(groups=CONFIG, name=request.param, **options)
    with torch.no_grad():
        for parameter in made.parameters():  # no side of it looks like another
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


def quaternion_of(c2w: np.ndarray) -> np.ndarray:
    """A browser's (right, down, forward) rotation of an OpenGL camera, by the eigenvector of Bar-Itzhack."""
    r = c2w[:3, :3] * (1, -1, -1)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = r
    k = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    return np.linalg.eigh(k / 3)[1][:, -1]


@pytest.mark.parametrize("azimuth", [0.0, 1.0, 2.5, -2.0])
def test_a_browser_s_camera_is_the_same_camera_here(azimuth):
    wanted = look_at(torch.tensor(0.4), torch.tensor(azimuth), torch.tensor(2.6))
    position = wanted[:3, 3].tolist()
    found = camera_of((7 * quaternion_of(wanted.double().numpy())).tolist(), position, 0.7, 16)
    assert torch.allclose(found.c2w[0, 0], wanted, atol=1e-6)
    given = {"elevation": 0.4, "azimuth": azimuth, "distance": 2.6, "fovy": 0.7}
    for name, value in given.items():
        assert float(getattr(found, name)[0, 0]) == pytest.approx(value, abs=1e-6), name
    assert found.light.shape == (1, 1, 3) and found.resolution == 16


def test_what_is_no_camera_is_refused():
    for wxyz, position, fovy in [
        ((0, 0, 0, 0), (1, 0, 0), 1),
        ((math.nan, 0, 0, 1), (1, 0, 0), 1),
        ((1, 0, 0, 0), (math.inf, 0, 0), 1),
        ((1, 0, 0, 0), (1, 0, 0), math.nan),
    ]:
        with pytest.raises(ValueError, match="no pose"):
            camera_of(wxyz, position, fovy, 8)
    assert float(camera_of((1, 0, 0, 0), (0, 0, 0), 9.0, 8).fovy) < math.pi  # looks, from the origin, at anything


def test_pictures_are_the_renders_of_the_scene(scene):
    cameras = orbit_cameras(1, 12, elevation_deg=0, distance=3.0)
    render = render_views(scene, cameras)
    found = pictures_of(scene, camera_of(FRONT, (3, 0, 0), math.radians(40), 12), CHANNELS)
    assert to_uint8(render.rgb[0, 0])[:, :6].tolist() != to_uint8(render.rgb[0, 0])[:, 11:5:-1].tolist()
    assert list(found) == ["rgb", "normals", "depth", "opacity"]
    assert np.abs(found["rgb"].astype(int) - to_uint8(render.rgb[0, 0])).max() <= 1
    assert np.abs(found["opacity"].astype(int) - to_uint8(render.opacity[0, 0])).max() <= 1
    assert all(picture.shape == (12, 12, 3) and picture.dtype == np.uint8 for picture in found.values())
    assert pictures_of(scene, cameras, ["mesh"]) == {}


def test_depth_is_bright_where_it_is_near():
    opacity = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0]).reshape(5, 1, 1, 1)
    depth = torch.tensor([2.0, 3.0, 4.0, 0.5 * 3.0, 0.0]).reshape(5, 1, 1, 1)
    grey = depth_to_rgb(depth, opacity, distance=3.0, radius=1.0)
    assert grey.flatten().tolist() == pytest.approx([1.0, 0.5, 0.0, 0.75, 1.0])


def test_a_mesh_is_drawn_from_the_camera_that_looks_at_it():
    """A square towards +x, green, its left half red (y < 0), lit from the front: full colours."""
    vertices = np.array([[0, -0.5, -0.5], [0, 0, -0.5], [0, 0, 0.5], [0, -0.5, 0.5]])
    colors = [np.tile(np.array(color, np.uint8), (4, 1)) for color in ((255, 0, 0, 255), (0, 255, 0, 255))]
    halves = [
        trimesh.Trimesh(vertices + (0, shift, 0), [[0, 1, 2], [0, 2, 3]], vertex_colors=color, process=False)
        for shift, color in zip((0, 0.5), colors, strict=True)
    ]
    surface = Surface.of(trimesh.util.concatenate(halves))
    image = mesh_picture(surface, camera_of(FRONT, (2, 0, 0), 2 * math.atan(0.5), 8))  # 2 units of the world wide
    assert image[4, 2].tolist() == [255, 0, 0] and image[4, 5].tolist() == [0, 255, 0]
    assert image[0].tolist() == [[255] * 3] * 8  # beyond it, paper
    behind = mesh_picture(surface, camera_of((0.5, -0.5, 0.5, -0.5), (-2, 0, 0), 2 * math.atan(0.5), 8))
    assert behind[4, 2].tolist() == [0, 89, 0]  # left and right change places, and no light is there


def test_pictures_are_arranged_as_large_as_can_be():
    assert arrange(1, 4, 1000, 250) == 4 and arrange(1, 4, 250, 1000) == 1 and arrange(1, 4, 500, 500) == 2
    assert arrange(3, 2, 9000, 10) == 2  # several runs: a row for each


@pytest.mark.parametrize(("width", "height"), [(800, 300), (300, 800), (64, 64), (1920, 1080)])
def test_a_frame_has_the_proportions_of_the_window_and_every_picture(width, height):
    cells = [(name, np.full((8, 8, 3), value, np.uint8)) for name, value in (("a", 10), ("b", 80), ("c", 160))]
    frame = compose([*cells, ("none", None)], arrange(1, 4, width, height), width, height)
    assert frame.shape[1] / frame.shape[0] == pytest.approx(width / height, rel=0.05)
    values, counts = np.unique(frame[..., 0], return_counts=True)
    for value in (10, 80, 160, 235):
        assert counts[values == value].sum() > 100
