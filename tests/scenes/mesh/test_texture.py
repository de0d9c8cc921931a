"""Texture maps of surfaces whose albedo is a known function of the place; an arrow says which way is up."""

import gc
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
import xatlas
from PIL import Image
from trimesh.visual import ColorVisuals

from jointdreamer.data.meshes import draw, load_mesh
from jointdreamer.errors import UserError
from jointdreamer.scenes.export import write_mesh
from jointdreamer.scenes.mesh import texture
from jointdreamer.scenes.mesh.raster import sample_texture
from jointdreamer.scenes.mesh.texture import TexturedMesh, add_texture, dilate, unwrap


def smooth(points, normals):
    return (0.5 + 0.3 * points).clamp(0, 1)


def ball(subdivisions=3) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=subdivisions)


def on_the_surface(mesh: TexturedMesh, count=2000, seed=0):
    """Random points of the surface and where they lie in the picture."""
    rng = np.random.default_rng(seed)
    face, weight = rng.integers(0, len(mesh.faces), count), rng.dirichlet((1, 1, 1), count)
    points = (np.asarray(mesh.surface.vertices)[mesh.surface.faces[face]] * weight[..., None]).sum(1)
    return points, (mesh.uv[mesh.faces[face]] * weight[..., None]).sum(1)


def looked_up(mesh: TexturedMesh, uv) -> np.ndarray:
    """Colours as numbers to 255."""
    return sample_texture(torch.tensor(mesh.pixels).float(), torch.tensor(uv).float()).numpy()


def test_every_point_has_the_colour_of_its_place():
    mesh = add_texture(ball(), 256, smooth)
    points, uv = on_the_surface(mesh)
    wanted = 255 * smooth(torch.tensor(points), None).numpy()
    assert np.abs(looked_up(mesh, uv) - wanted).max() < 3  # a texel is 0.02 wide, which is 1.5 of 255


def test_colours_are_asked_at_points_of_the_surface_with_its_normals():
    asked = []

    def seen(points, normals):
        asked.append((points, normals))
        return torch.zeros_like(points)

    add_texture(ball(4), 128, seen)
    points, normals = (torch.cat(of) for of in zip(*asked, strict=True))
    assert len(points) > 0.3 * 128**2
    assert points.norm(dim=1).sub(1).abs().max() < 3e-3
    assert normals.norm(dim=1).sub(1).abs().max() < 1e-5 and (points - normals).norm(dim=1).max() < 0.02


def test_the_map_is_of_the_surface_and_its_charts_do_not_overlap():
    surface, size = ball(), 512
    vertices, faces, uv = unwrap(surface, size)
    assert np.array_equal(vertices[faces], surface.faces)
    assert uv.min() >= 0 and uv.max() <= 1 and uv.max(0).min() > 0.95
    a, b, c = uv[faces].transpose(1, 0, 2)
    areas = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    assert areas.min() > 0 and 0.4 < areas.sum() < 1
    clip = torch.tensor(np.c_[2 * uv - 1, np.zeros(len(uv)), np.ones(len(uv))], dtype=torch.float32)[None]
    covered = texture.rasterize(clip, torch.tensor(faces), (size, size)).triangle > 0
    assert float(covered.float().mean()) == pytest.approx(areas.sum(), abs=0.01)  # an overlap is covered once


def test_bands_and_pieces_change_nothing_of_the_colours(monkeypatch):
    whole = add_texture(ball(), 128, smooth)
    again = add_texture(ball(), 128, smooth)
    assert np.array_equal(whole.pixels, again.pixels) and np.array_equal(whole.uv, again.uv)
    monkeypatch.setattr(texture, "BAND", 128 * 10)
    banded = add_texture(ball(), 128, smooth)
    difference = np.abs(banded.pixels.astype(int) - whole.pixels).max(-1)
    assert (difference > 1).mean() < 0.001  # a texel whose centre is on an edge may be seen from either side
    monkeypatch.setattr(texture, "PIECE", 100)
    pieces = add_texture(ball(), 128, smooth)
    assert np.array_equal(pieces.vertices[pieces.faces], whole.surface.faces)
    points, uv = on_the_surface(pieces)
    assert np.abs(looked_up(pieces, uv) - 255 * smooth(torch.tensor(points), None).numpy()).max() < 6


def test_without_a_colour_function_vertex_colours_are_spread():
    surface = ball()
    rgb = 255 * smooth(torch.tensor(np.asarray(surface.vertices)), None).numpy()
    surface.visual = ColorVisuals(surface, vertex_colors=np.c_[rgb, np.full(len(rgb), 255)].round().astype(np.uint8))
    points, uv = on_the_surface(mesh := add_texture(surface, 256))
    assert np.abs(looked_up(mesh, uv) - 255 * smooth(torch.tensor(points), None).numpy()).max() < 4


def test_texels_beyond_the_charts_have_the_nearest_colour(monkeypatch):
    pixels, covered = np.zeros((40, 8, 3), np.uint8), np.zeros((40, 8), bool)
    for row, column in ((3, 2), (20, 5), (39, 0)):
        pixels[row, column], covered[row, column] = row, True
    monkeypatch.setattr(texture, "BAND", 20)  # 5 rows at a time
    dilate(pixels, covered)
    rows, columns = np.mgrid[:40, :8]
    away = np.stack([(rows - r) ** 2 + (columns - c) ** 2 for r, c in ((3, 2), (20, 5), (39, 0))])
    nearest = np.array([3, 20, 39])[away.argmin(0)]
    tie = np.sort(away, 0)[0] == np.sort(away, 0)[1]
    assert (pixels[..., 0] == nearest)[~tie].all() and not tie.all()


def test_charts_that_are_smaller_than_a_texel_have_their_colour():
    dust: Any = trimesh.util.concatenate(
        [ball(), *(ball(0).apply_scale(1e-3).apply_translation((0, 0, 2 + k)) for k in range(3))]
    )
    mesh = add_texture(dust, 64, lambda points, normals: (points[:, 2:] > 1.5).float().expand(-1, 3))
    uv = mesh.uv[mesh.vertices >= len(ball().vertices)]
    texel = mesh.pixels[((1 - uv[:, 1]) * 64).astype(int).clip(0, 63), (uv[:, 0] * 64).astype(int).clip(0, 63)]
    assert (texel == 255).all()


def test_slivers_without_area_have_the_colour_of_their_place():
    """An edge of a box is halved on one side of it: the face that fills the gap is a line."""
    surface = trimesh.creation.box(extents=(2, 2, 2))
    (a, b, c), middle = surface.faces[0], len(surface.vertices)
    faces = np.concatenate([surface.faces[1:], [[a, middle, c], [middle, b, c], [a, b, middle]]])
    points = np.concatenate([surface.vertices, [np.asarray(surface.vertices)[[a, b]].mean(0)]])
    thin = trimesh.Trimesh(points, faces, process=False)
    assert thin.is_watertight and thin.area_faces[-1] == 0
    mesh = add_texture(thin, 256, smooth)
    assert np.array_equal(mesh.vertices[mesh.faces], thin.faces)
    wanted = 255 * smooth(torch.tensor(points[middle]), None).numpy()
    assert np.abs(looked_up(mesh, mesh.uv[mesh.faces[-1]]) - wanted).max() < 10


def test_xatlas_s_destructor_is_never_run(monkeypatch):
    """It hung a run, once: it joins threads that it may have failed to wake."""
    freed, real = [], xatlas.Atlas

    class Atlas:
        def __init__(self):
            self.atlas = real()
            self.add_mesh, self.generate = self.atlas.add_mesh, self.atlas.generate

        def __getitem__(self, number):
            return self.atlas[number]

        def __del__(self):
            freed.append(self)

    monkeypatch.setattr(xatlas, "Atlas", Atlas)
    unwrap(trimesh.creation.icosphere(1), 64)
    gc.collect()
    assert not freed


@pytest.mark.parametrize("size", [8, -1, 9000])
def test_a_size_that_cannot_be_is_said_in_one_line(size):
    with pytest.raises(UserError, match=f"texture of {size} pixels: wanted from 16 to 8192"):
        add_texture(ball(), size, smooth)


# Which way is up


def arrow() -> np.ndarray:
    """(32, 32) seen from the front, row 0 the top: an arrow that points up, with a foot to the right only."""
    picture = np.zeros((32, 32), bool)
    picture[8:28, 14:18] = True
    for k in range(8):
        picture[4 + k, 16 - k : 16 + k] = True
    picture[24:28, 18:26] = True
    return picture


def box_with_an_arrow(size=256) -> TexturedMesh:
    """A box 1 deep, 1.2 wide and 2 high, whose front, world +x, is white with a black arrow; the rest is red."""
    shape = torch.tensor(arrow())

    def albedo(points, normals):
        # seen from the front, the right hand side is +y (the camera's right is +y at azimuth 0)
        column = ((points[:, 1] / 1.2 + 0.5) * 32).long().clamp(0, 31)
        row = ((0.5 - points[:, 2] / 2) * 32).long().clamp(0, 31)
        front = (points[:, 0] > 0.499)[:, None]
        white = torch.where(shape[row, column], 0.0, 1.0)[:, None].expand(-1, 3)
        return torch.where(front, white, torch.tensor([0.8, 0.0, 0.0]))

    box = trimesh.creation.box(extents=(1.0, 1.2, 2.0))
    apart = trimesh.Trimesh(box.vertices[box.faces].reshape(-1, 3), np.arange(36).reshape(-1, 3), process=False)
    return add_texture(apart, size, albedo)


def front_view(path) -> np.ndarray:
    """What `load_mesh` has of a file, from its front (-y, z up), cut to the object's rectangle: (32, 32)."""
    mesh = load_mesh(path)
    assert mesh.notes == ()
    c2w = np.eye(4)
    c2w[:3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]).T  # right +x, up +z, backward -y
    c2w[:3, 3] = (0, -20.0, 0)
    rgba = draw(mesh, c2w, 0.06, 256)
    rows, columns = np.nonzero(rgba[..., 3] > 128)
    cut = Image.fromarray(rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1, :3])
    assert cut.height / cut.width == pytest.approx(2 / 1.2, rel=0.03)
    return np.asarray(cut.resize((32, 32), Image.Resampling.BOX)).astype(int)


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_an_arrow_on_the_front_points_up_and_its_foot_to_the_right(tmp_path, suffix):
    write_mesh(tmp_path / f"box{suffix}", box_with_an_arrow())
    seen = front_view(tmp_path / f"box{suffix}")
    assert (seen.max(-1) - seen.min(-1)).max() < 40  # no red
    assert ((seen.mean(-1) < 0.5 * seen.max()) == arrow()).mean() > 0.97
    assert ((seen.mean(-1) < 0.5 * seen.max()) == arrow()[:, ::-1]).mean() < 0.95


def test_obj_names_its_material_and_picture_beside_it(tmp_path):
    files = write_mesh(tmp_path / "box.obj", box_with_an_arrow(64))
    assert [file.name for file in files] == ["box.png", "box.mtl", "box.obj"]
    assert "mtllib box.mtl" in files[2].read_text() and "map_Kd box.png" in files[1].read_text()
    assert "\nKd 1 1 1\n" in files[1].read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box.mtl", "box.obj", "box.png"]
    assert np.array_equal(np.asarray(Image.open(files[0])), box_with_an_arrow(64).pixels)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_what_is_written_has_the_same_colours_when_it_is_read(tmp_path, suffix):
    surface = ball()
    rgb = 255 * smooth(torch.tensor(np.asarray(surface.vertices)), None).numpy()
    surface.visual = ColorVisuals(surface, vertex_colors=np.c_[rgb, np.full(len(rgb), 255)].round().astype(np.uint8))
    write_mesh(tmp_path / f"ball{suffix}", add_texture(surface, 256, smooth))
    found = load_mesh(tmp_path / f"ball{suffix}")
    assert found.notes == () and len(found.corners) == len(surface.faces)
    points = 2 * found.corners.reshape(-1, 3)  # its longest side became 1; z up, front -y
    world = np.stack([-points[:, 1], points[:, 0], points[:, 2]], 1)
    wanted = 255 * smooth(torch.tensor(world), None).numpy()
    linear: Any = found.color.reshape(-1, 4)[:, :3].astype(float)
    if found.textures:
        linear = linear * found.textures[0].sample(found.uv.reshape(-1, 2))[:, :3]
    srgb = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(srgb - wanted).max() < (1 if suffix == ".ply" else 4)


def test_a_closed_surface_has_one_side_and_an_open_one_two(tmp_path):
    from jointdreamer.formats.glb import read_glb

    half = ball()
    half.update_faces(half.triangles_center[:, 2] > 0)
    for name, surface in (("closed", ball()), ("open", half)):
        write_mesh(tmp_path / f"{name}.glb", add_texture(surface, 32, smooth))
        [material] = read_glb((tmp_path / f"{name}.glb").read_bytes())[0]["materials"]
        assert material.get("doubleSided", False) == (name == "open")
        assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
