"""Meshes: the z-buffer against the exact ray caster, colours, axes, and files that are no meshes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import trimesh as _trimesh
from PIL import Image

from jointdreamer.cameras import look_at
from jointdreamer.data.meshes import BadMesh, TriangleMesh, draw, load_mesh, peel
from jointdreamer.formats.surface import linear_to_srgb
from jointdreamer.scenes.export import write_mesh
from jointdreamer.toybox import raycast
from jointdreamer.toybox.raycast import BOX, Solid
from tests.glb_builder import UV, GlbBuilder
from tests.glb_builder import plain as plain_picture

trimesh: Any = _trimesh  # its stubs know half of it
FOVY = math.radians(40)


def camera(elevation, azimuth, distance=2.5):
    return look_at(*(torch.tensor(x, dtype=torch.float64) for x in (elevation, azimuth, distance))).numpy()


def plain(corners):
    n = len(corners)
    return TriangleMesh(
        np.asarray(corners, dtype=np.float64),
        np.ones((n, 3, 3), np.float32),
        np.zeros((n, 3, 2), np.float32),
        np.full(n, -1),
        (),
    )


def box(center, size):
    mesh = trimesh.creation.box(extents=2 * np.asarray(size))
    return mesh.vertices[mesh.faces] + np.asarray(center)


@pytest.mark.parametrize("elevation", [-0.4, 0.3, 1.2])
@pytest.mark.parametrize("azimuth", [0.0, 0.7, 2.5])
def test_two_boxes_look_as_the_ray_caster_sees_them(elevation, azimuth):
    placed = [((0.1, 0.0, -0.1), (0.3, 0.2, 0.25)), ((-0.25, 0.2, 0.2), (0.1, 0.3, 0.2))]
    corners = np.concatenate([box(*where) for where in placed])
    c2w = camera(elevation, azimuth)
    face, weight, _ = peel(corners, c2w, FOVY, np.full((48, 48), np.inf))
    solids = raycast.pack([Solid(BOX, *where, (1.0, 1.0, 1.0)) for where in placed])
    rgba, depth, _ = raycast.render(solids, c2w[None], np.array([FOVY]), 48, supersample=1)
    hit = face >= 0
    assert (hit != (rgba[0, ..., 3] > 0)).sum() <= 2  # a pixel's centre may lie on an edge
    both = hit & (rgba[0, ..., 3] > 0)
    assert both.sum() > 200
    point = (corners[face[both]] * weight[both][..., None]).sum(1)
    assert np.allclose(np.linalg.norm(point - c2w[:3, 3], axis=-1), depth[0][both], atol=1e-4)
    assert np.allclose(weight[hit].sum(-1), 1) and weight[hit].min() >= -1e-9


def test_what_is_behind_the_camera_is_not_drawn():
    triangle = np.array([[[0, 0, 5.0], [1, 0, 5], [0, 1, 5]], [[0, 0, 0], [1, 0, 0], [0, 1, 9.0]]])
    face, _, _ = peel(triangle, np.eye(4), FOVY, np.full((8, 8), np.inf))
    assert (face == -1).all()


def test_a_picture_is_antialiased_and_has_straight_colour():
    picture = draw(plain(box((0, 0, 0), (0.5, 0.5, 0.5))), camera(0.4, 0.6), FOVY, 32)
    assert picture.shape == (32, 32, 4) and picture.dtype == np.uint8
    alpha = picture[..., 3]
    assert set(np.unique(alpha)) <= {0, 64, 128, 191, 255} and len(np.unique(alpha)) > 2
    assert picture[alpha > 0][:, :3].min() > 120  # white, also where a pixel is half covered
    assert (picture[alpha == 0] == 0).all()


def saved(mesh, path):
    mesh.export(path)
    return path


def test_up_is_up_and_the_box_is_brought_to_size(tmp_path):
    mesh = trimesh.creation.box(extents=(2.0, 8.0, 4.0))
    mesh.apply_translation((100, 0, 0))
    mesh.unmerge_vertices()  # GLB has colours of vertices only
    mesh.visual.face_colors = np.where(mesh.face_normals[:, 1:2] > 0.5, (255, 0, 0, 255), (0, 0, 255, 255))
    for name in ("a.glb", "a.ply"):
        loaded = load_mesh(saved(mesh, tmp_path / name))
        low, high = loaded.corners.min((0, 1)), loaded.corners.max((0, 1))
        assert np.allclose(high, (0.125, 0.25, 0.5), atol=1e-6) and np.allclose(low, -high, atol=1e-6)
        above = draw(loaded, camera(1.55, 0.3), FOVY, 16)[8, 8]
        below = draw(loaded, camera(-1.55, 0.3), FOVY, 16)[8, 8]
        assert above[0] > 150 and above[2] < 60 and below[2] > 100 and below[0] < 60, name


def test_textures_are_seen_the_right_way_up(tmp_path):
    """A square facing +z of the file, the left half of its texture red, the upper right quarter green."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, :8, 0], image[:8, 8:, 1] = 255, 255
    square = trimesh.Trimesh(
        [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]],
        [[0, 1, 2], [0, 2, 3]],
        visual=trimesh.visual.TextureVisuals(
            uv=[[0, 0], [1, 0], [1, 1], [0, 1]],
            material=trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(image)),
        ),
        process=False,
    )
    loaded = load_mesh(saved(square, tmp_path / "a.glb"))
    # the file's +z is the world's -y: look from there, so that the file's x runs to the right
    picture = draw(loaded, camera(0.0, -math.pi / 2), FOVY, 32)
    left, upper, lower = picture[16, 11], picture[11, 20], picture[20, 20]
    assert left[0] > 150 and left[1] == 0
    assert upper[1] > 150 and upper[0] == 0
    assert lower[3] == 255 and lower[:3].max() == 0


def test_parts_of_a_scene_stand_where_the_scene_puts_them(tmp_path):
    scene = trimesh.Scene()
    for x, color in ((-1.0, (255, 0, 0, 255)), (1.0, (0, 255, 0, 255))):
        part = trimesh.creation.box(extents=(0.5, 0.5, 0.5))
        part.visual.face_colors = color
        move = np.eye(4)
        move[0, 3] = x
        scene.add_geometry(part, transform=move)
    picture = draw(load_mesh(saved(scene, tmp_path / "a.glb")), camera(0.0, -math.pi / 2), FOVY, 32)
    columns = np.flatnonzero(picture[16, :, 3])
    assert picture[16, columns[0], 0] > 100 and picture[16, columns[-1], 1] > 100
    assert picture[16, 16, 3] == 0


def behind_and_before(front_material):
    """A square in front of another, which is blue, seen from the file's +z."""
    builder = GlbBuilder()
    builder.place(builder.part({"pbrMetallicRoughness": {"baseColorFactor": [0, 0, 1, 1]}}), translation=[0, 0, -0.1])
    return builder.place(builder.part(front_material))


@pytest.mark.parametrize(
    ("mode", "alpha", "red", "blue"),
    [
        ("OPAQUE", 0.2, 255, 0),
        ("MASK", 0.6, 255, 0),
        ("MASK", 0.4, 0, 255),
        ("BLEND", 0.25, 64, 191),
        ("BLEND", 0, 0, 255),
    ],
)
def test_one_looks_through_what_is_transparent(tmp_path, mode, alpha, red, blue):
    builder = behind_and_before({"alphaMode": mode, "pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, alpha]}})
    loaded = load_mesh(builder.save(tmp_path / "a.glb"))
    picture = draw(loaded, camera(0.0, -math.pi / 2), FOVY, 16)[8, 8].astype(float)
    light = (0.66 + 0.18) * 1.0
    assert np.abs(picture - [red * light, 0, blue * light, 255]).max() < 3


def test_what_is_half_there_is_half_opaque(tmp_path):
    builder = GlbBuilder()
    builder.place(builder.part({"alphaMode": "BLEND", "pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 0.5]}}))
    picture = draw(load_mesh(builder.save(tmp_path / "a.glb")), camera(0.0, -math.pi / 2), FOVY, 16)[8, 8]
    assert np.abs(picture.astype(int) - [214, 214, 214, 128]).max() <= 1  # straight colour
    builder = GlbBuilder()
    builder.place(builder.part({"alphaMode": "BLEND", "pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 0]}}))
    with pytest.raises(BadMesh, match="all of it is transparent"):
        load_mesh(builder.save(tmp_path / "a.glb"))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e6])
def test_units_do_not_matter(tmp_path, scale):
    builder = GlbBuilder()
    builder.place(builder.part(), scale=[scale, scale, -scale], translation=[scale, 0, 0])
    loaded = load_mesh(builder.save(tmp_path / "a.glb"))
    assert np.allclose(np.ptp(loaded.corners, axis=(0, 1)), [1, 0, 1], atol=1e-6)


def test_faces_that_are_not_finite_are_left_out_and_named(tmp_path):
    path = tmp_path / "a.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv nan 0 0\nf 1 2 3\nf 1 2 4\n")
    loaded = load_mesh(path)
    assert len(loaded.corners) == 1 and "1 of 2 faces" in loaded.notes[0]


def test_parts_share_one_texture_in_memory_and_its_wrap_is_their_own(tmp_path):
    builder = GlbBuilder()
    image = builder.picture(plain_picture(9, 9, 9))
    clamp = builder.add("samplers", wrapS=33071)
    for sampler in ({}, {}, {"sampler": clamp}, {}):
        skin = {"baseColorTexture": {"index": builder.add("textures", source=image, **sampler)}}
        builder.place(builder.part({"pbrMetallicRoughness": skin}, TEXCOORD_0=builder.accessor(UV)))
    loaded = load_mesh(builder.save(tmp_path / "a.glb"))
    assert [texture.wrap[0] for texture in loaded.textures] == ["repeat", "clamp"]
    assert loaded.textures[0].pixels is loaded.textures[1].pixels
    assert loaded.texture.tolist() == [0, 0, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_what_is_written_is_read_back_in_place_and_colour(tmp_path, suffix):
    """Every format that the exporter writes: the same triangles, colours within half a level of 255, dark ones too."""
    mesh = trimesh.creation.icosphere(subdivisions=3)
    mesh.apply_transform(np.diag([1.0, 0.5, 0.25, 1]))
    level = np.linspace(0, 60, len(mesh.vertices)).round().astype(np.uint8)
    rgba = np.stack([level, 255 - level, level // 2, np.full_like(level, 255)], 1)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=rgba)
    write_mesh(tmp_path / f"a{suffix}", mesh)
    loaded = load_mesh(tmp_path / f"a{suffix}")
    assert loaded.notes == ()
    # the world's front, +x, is the file's +z, which the reader has at -y
    right = (mesh.vertices[mesh.faces] / 2)[..., [1, 0, 2]] * [1, -1, 1]
    assert np.allclose(loaded.corners, right, atol=1e-6)
    stored = 255 * linear_to_srgb(loaded.color[..., :3])
    assert np.abs(stored - rgba[mesh.faces][..., :3]).max() < 0.5


@pytest.mark.parametrize("suffix", [".stl", ".off"])
def test_formats_without_colours_are_grey(tmp_path, suffix):
    loaded = load_mesh(saved(trimesh.creation.box(), tmp_path / f"a{suffix}"))
    assert len(loaded.corners) == 12 and np.allclose(linear_to_srgb(loaded.color[..., :3]), 0.7, atol=0.01)


def broken_index(path):
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 99\n")


def not_finite(path):
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 nan 0\nf 1 2 3\n")


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("a.glb", lambda path: path.write_bytes(b"no mesh"), "cannot be read"),
        ("a.glb", lambda path: path.write_bytes(b""), "cannot be read"),
        ("a.obj", lambda path: path.write_text("v 0 0 0\n"), "empty|cannot be read"),
        ("a.obj", lambda path: path.write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n"), "no extent"),
        ("a.obj", broken_index, "broken|cannot be read"),
        ("a.obj", not_finite, "broken|cannot be read"),
    ],
)
def test_files_that_are_no_meshes(tmp_path, name, make, says):
    make(tmp_path / name)
    with pytest.raises(BadMesh, match=says):
        load_mesh(tmp_path / name)


def test_a_file_that_is_gone_is_a_bad_mesh(tmp_path):
    with pytest.raises(BadMesh, match="No such file"):
        load_mesh(tmp_path / "a.glb")


def test_huge_meshes_are_not_drawn(tmp_path):
    path = saved(trimesh.creation.icosphere(subdivisions=2), tmp_path / "a.glb")
    with pytest.raises(BadMesh, match="huge: 320 faces, the limit is 319"):
        load_mesh(path, max_faces=319)
    with pytest.raises(BadMesh, match="huge"):
        load_mesh(path, max_bytes=100)
    assert len(load_mesh(path, max_faces=320).corners) == 320
