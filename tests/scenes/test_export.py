"""Meshes of fields whose surface is known: balls, hollow balls, a fog with a closed form, and nothing at all."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from scipy import ndimage
from trimesh.visual import ColorVisuals

from jointdreamer.errors import UserError
from jointdreamer.scenes.export import (
    WORLD_TO_Y_UP,
    choose_threshold,
    density_grid,
    extract_mesh,
    mesh_from_density,
    write_mesh,
)
from jointdreamer.scenes.nerf.base import Field, FieldOutput


class Analytic(Field):
    """A field given by two functions of the position; remembers the largest call."""

    def __init__(self, density, albedo=None, radius=1.0):
        super().__init__()
        self.radius, self.largest = radius, 0
        self._sigma, self._albedo = density, albedo or (lambda x: torch.full_like(x, 0.5))

    def density(self, x):
        self.largest = max(self.largest, len(x))
        return self._sigma(x)

    def forward(self, x, normals=False):
        assert not normals
        self.largest = max(self.largest, len(x))
        return FieldOutput(self._sigma(x), self._albedo(x), None)

    def parameter_groups(self):
        return {}


def ball(center=(0.0, 0.0, 0.0), radius=0.5, density=60.0):
    return lambda x: density * ((x - torch.tensor(center)).norm(dim=1) < radius).float()


def colors_of(mesh):
    return np.asarray(mesh.visual.vertex_colors).astype(int)


def volume_of_ball(radius):
    return 4 / 3 * math.pi * radius**3


def test_grid_covers_the_cube_in_x_y_z_order_and_in_chunks():
    field = Analytic(lambda x: 4 * (x[:, 0] + 2) + 2 * (x[:, 1] + 2) / 10 + (x[:, 2] + 2) / 100, radius=2.0)
    sigma = density_grid(field, resolution=5, chunk=7)
    assert sigma.shape == (5, 5, 5) and field.largest == 7
    axis = np.linspace(-2, 2, 5)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    assert np.allclose(sigma, 4 * (x + 2) + 2 * (y + 2) / 10 + (z + 2) / 100, atol=1e-5)


def test_nan_and_negative_densities_are_empty_space_and_infinite_ones_solid():
    field = Analytic(lambda x: torch.where(x[:, 0] > 0, torch.nan, -1.0))
    assert (density_grid(field, 4) == 0).all()
    infinite = Analytic(lambda x: torch.where(x.norm(dim=1) < 0.5, torch.inf, 0.0))
    assert extract_mesh(infinite, 48).volume == pytest.approx(volume_of_ball(0.5), rel=0.05)


@pytest.mark.parametrize("density", [2.0, 60.0, 1e4])
def test_a_ball_has_its_volume_place_and_outward_faces(density):
    center, radius = (0.2, -0.1, 0.15), 0.6
    mesh = extract_mesh(Analytic(ball(center, radius, density)), resolution=64, max_faces=None)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(volume_of_ball(radius), rel=0.03)  # positive: faces look outwards
    assert np.allclose(mesh.center_mass, center, atol=0.01)
    distance = np.linalg.norm(mesh.vertices - np.array(center), axis=1)
    assert np.abs(distance - radius).max() < 2 / 63
    assert ((mesh.vertices - mesh.center_mass) * mesh.vertex_normals).sum(1).min() > 0


def test_a_fog_is_cut_where_renders_are_half_opaque():
    """sigma = s0 exp(-r^2 / 2 s^2). A ray at distance b has 1 - exp(-s0 s sqrt(2 pi) exp(-b^2 / 2 s^2)): half opaque
    where the largest density on it, s0 exp(-b^2 / 2 s^2), is ln 2 / (s sqrt(2 pi)). That density is the threshold."""
    s = 0.25
    expected = math.log(2) / (s * math.sqrt(2 * math.pi))
    for s0 in (5.0, 500.0):
        sigma = density_grid(Analytic(lambda x, s0=s0: s0 * torch.exp(-x.square().sum(1) / (2 * s * s))), 96)
        assert choose_threshold(sigma, 1.0) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_where_nothing_is_half_opaque_there_still_is_a_mesh(density):
    """At most 2 * 0.5 * density is 5% or 40% opaque."""
    mesh = extract_mesh(Analytic(ball(density=density)), resolution=48)
    assert mesh.volume == pytest.approx(volume_of_ball(0.5), rel=0.25)


@pytest.mark.parametrize("density", [0.0, 1e-4])
def test_an_empty_field_is_said_in_one_line(density):
    with pytest.raises(UserError, match="the field is empty") as caught:
        extract_mesh(Analytic(ball(density=density)), resolution=16)
    assert "\n" not in str(caught.value)


def test_a_threshold_of_ones_own_never_gives_an_empty_mesh():
    sigma = density_grid(Analytic(lambda x: 20 * (1 - x.norm(dim=1)).clamp_min(0)), 48)
    small = mesh_from_density(sigma, 1.0, threshold=15.0)  # inside of r = 1/4
    assert np.abs(np.linalg.norm(small.vertices, axis=1) - 0.25).max() < 2 / 47
    assert len(mesh_from_density(sigma, 1.0, threshold=1e6).faces) > 100


def test_small_floaters_go_and_big_pieces_stay():
    def scene(x):
        return ball((0.4, 0, 0), 0.5)(x) + ball((-0.7, 0.0, 0), 0.25)(x) + ball((-0.5, 0.6, 0.6), 0.12)(x)

    sigma = density_grid(Analytic(scene), 64)
    pieces = mesh_from_density(sigma, 1.0, min_share=0.05).split()  # volumes 1 : 0.125 : 0.014
    assert sorted(round(piece.center_mass[0], 1) for piece in pieces) == [-0.7, 0.4]
    assert len(mesh_from_density(sigma, 1.0, min_share=0.5).split()) == 1
    assert len(mesh_from_density(sigma, 1.0, min_share=0.0).split()) == 3


def test_a_hollow_ball_has_no_inner_wall():
    def shell(x):
        return ball(radius=0.7)(x) - ball(radius=0.5)(x)

    mesh = extract_mesh(Analytic(shell), resolution=64, max_faces=None)
    assert len(mesh.split()) == 1
    assert mesh.volume == pytest.approx(volume_of_ball(0.7), rel=0.03)


def test_what_touches_the_border_is_closed():
    mesh = extract_mesh(Analytic(lambda x: torch.full((len(x),), 50.0)), resolution=16, max_faces=None)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(8, rel=0.25)


def test_the_cap_on_faces_holds_and_keeps_the_shape():
    mesh = extract_mesh(Analytic(ball(radius=0.6)), resolution=64, max_faces=500)
    assert 100 < len(mesh.faces) <= 500
    assert mesh.volume == pytest.approx(volume_of_ball(0.6), rel=0.08)


def rough(resolution: int, seed: int = 0) -> np.ndarray:
    """The density of a lump with thin places and holes, over [-1, 1]^3."""
    axis = np.linspace(-1, 1, resolution, dtype=np.float32)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    noise: Any = ndimage.zoom(np.random.default_rng(seed).normal(size=(12, 12, 12)), resolution / 12, order=1)
    return np.maximum(0, 60 * (0.6 * noise.astype(np.float32) + 0.8 - 1.2 * np.sqrt(x * x + y * y + z * z)))


@pytest.mark.parametrize(
    ("resolution", "max_faces"), [(24, None), (48, 20_000), (48, 3000), (48, 500), (64, 5000), (192, 100_000)]
)
def test_a_mesh_is_closed_at_any_resolution(resolution, max_faces):
    """As every reader has it: vertices in one place, in the file's 32 bits, are one."""
    for seed in range(1 if resolution > 100 else 3):
        mesh = mesh_from_density(rough(resolution, seed), 1.0, max_faces=max_faces)
        stored = trimesh.Trimesh(np.asarray(mesh.vertices, np.float32), mesh.faces, process=True)
        assert stored.is_watertight and stored.is_winding_consistent and stored.volume > 0
        assert len(mesh.faces) <= (max_faces or np.inf)


@pytest.mark.parametrize("resolution", [192, 256])
def test_a_ball_of_many_faces_is_closed(resolution):
    axis = np.linspace(-1, 1, resolution, dtype=np.float32)
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    mesh = mesh_from_density(60 * (distance < 0.6).astype(np.float32), 1.0)
    stored = trimesh.Trimesh(np.asarray(mesh.vertices, np.float32), mesh.faces, process=True)
    assert stored.is_watertight and len(stored.faces) > 90_000
    assert stored.volume == pytest.approx(volume_of_ball(0.6), rel=0.02)


def test_densities_right_at_the_threshold_make_no_vertices_in_one_place():
    sigma = np.zeros((12, 12, 12), np.float32)
    sigma[3:9, 3:9, 3:9] = 5
    sigma[4:8, 4:8, 4:8] = 50
    mesh = mesh_from_density(sigma, 1.0, threshold=5.0)
    assert mesh.is_watertight and len(np.unique(mesh.vertices.round(6), axis=0)) == len(mesh.vertices)


def test_vertex_colours_are_those_that_a_camera_sees():
    """Red on the side of +x, blue on the other; what is deep inside (green) and outside (white) is not seen."""

    def albedo(x):
        r = x.norm(dim=1, keepdim=True)
        side = torch.where(x[:, :1] > 0, torch.tensor([0.8, 0, 0]), torch.tensor([0, 0, 0.8]))
        return torch.where(r < 0.35, torch.tensor([0, 1.0, 0]), torch.where(r > 0.5, torch.ones(3), side))

    field = Analytic(ball(density=1000.0), albedo)
    mesh = extract_mesh(field, resolution=64, chunk=4096)
    assert field.largest <= 4096
    colors = colors_of(mesh)
    front, back = mesh.vertices[:, 0] > 0.05, mesh.vertices[:, 0] < -0.05
    assert np.abs(colors[front] - np.array([204, 0, 0, 255])).max() <= 1
    assert np.abs(colors[back] - np.array([0, 0, 204, 255])).max() <= 1


def test_files_hold_the_mesh_in_the_axes_of_their_readers(tmp_path):
    """A box with its long side up (world z), its front (world +x) painted. Files by trimesh, read by trimesh."""
    mesh = trimesh.creation.box(extents=(1.0, 0.5, 2.0))
    colors = np.full((len(mesh.vertices), 4), 255, np.uint8)
    colors[mesh.vertices[:, 0] > 0] = [188, 0, 0, 255]
    mesh.visual = ColorVisuals(mesh, vertex_colors=colors)
    before = mesh.vertices.copy()
    back = {}
    for suffix in (".glb", ".obj", ".ply"):
        write_mesh(tmp_path / f"mesh/mesh{suffix}", mesh)
        back[suffix] = trimesh.load(tmp_path / f"mesh/mesh{suffix}", force="mesh", process=False, skip_materials=True)
    assert (mesh.vertices == before).all() and (colors_of(mesh) == colors).all()
    assert len(list((tmp_path / "mesh").iterdir())) == 3
    y_up, z_up = ([0.5, 2, 1], [0, 0, 1]), ([0.5, 1, 2], [0, -1, 0])
    for suffix, (extents, front) in ((".glb", y_up), (".obj", y_up), (".ply", z_up)):
        read = back[suffix]
        assert np.allclose(read.extents, extents, atol=1e-5) and read.volume == pytest.approx(1.0, abs=1e-5)
        # glTF 2.0 says that COLOR_0 is linear: 188 in sRGB is ((188/255 + 0.055) / 1.055) ** 2.4 = 0.503 of the light
        red = 128 if suffix == ".glb" else 188
        painted = colors_of(read)[read.vertices @ front > 0.1]
        assert len(painted) and (np.abs(painted - [red, 0, 0, 255]) <= 1).all()
    assert np.linalg.det(WORLD_TO_Y_UP) == pytest.approx(1)


def test_glb_is_not_metal(tmp_path):
    import json
    import struct

    mesh = trimesh.creation.box()
    mesh.visual = ColorVisuals(mesh, vertex_colors=np.full((len(mesh.vertices), 4), 255, np.uint8))
    write_mesh(tmp_path / "a.glb", mesh)
    data = (tmp_path / "a.glb").read_bytes()
    tree = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    [primitive] = tree["meshes"][0]["primitives"]
    assert tree["materials"][primitive["material"]]["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert {"POSITION", "NORMAL", "COLOR_0"} <= primitive["attributes"].keys()


def test_another_suffix_or_resolution_is_the_user_s_to_fix(tmp_path):
    with pytest.raises(UserError, match=r"\.glb, \.obj, \.ply, \.usdz, got \.fbx"):
        write_mesh(tmp_path / "a.fbx", trimesh.creation.box())
    with pytest.raises(UserError, match="wants a texture"):
        write_mesh(tmp_path / "a.usdz", trimesh.creation.box())
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="resolution 1"):
        extract_mesh(Analytic(ball()), resolution=1)
    with pytest.raises(UserError, match="at most 3 faces"):
        extract_mesh(Analytic(ball()), resolution=16, max_faces=3)
