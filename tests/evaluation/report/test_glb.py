"""A thinned GLB is the same object, to the width of its integers."""

import io
import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals

from jointdreamer.errors import UserError
from jointdreamer.evaluation.report.glb import read_accessor, read_glb, thin_glb, write_quantised
from jointdreamer.formats import gltf
from jointdreamer.scenes.export import write_mesh
from jointdreamer.scenes.mesh.texture import add_texture


@pytest.fixture
def glb(tmp_path):
    """glb(subdivisions) -> bytes, as a run exports them: a ball of radius 1 around (1, 2, 3), half red, half blue."""

    def make(subdivisions=3) -> bytes:
        mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
        red = np.asarray(mesh.vertices)[:, 1:2] > 0
        rgb = np.where(red, (255, 10, 0), (0, 10, 255))
        mesh.visual = ColorVisuals(mesh, vertex_colors=np.c_[rgb, np.full(len(rgb), 255)].astype("u1"))
        mesh.apply_translation((1, 2, 3))
        write_mesh(tmp_path / "ball.glb", mesh)
        return (tmp_path / "ball.glb").read_bytes()

    return make


def decoded(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions in the scene, unit-range normals, colours as bytes and faces of a GLB with one node."""
    tree, binary = read_glb(data)
    [primitive] = tree["meshes"][0]["primitives"]
    found = {name: read_accessor(tree, binary, index) for name, index in primitive["attributes"].items()}
    [node] = [node for node in tree["nodes"] if "mesh" in node]
    position, normal = found["POSITION"].astype(float), found["NORMAL"].astype(float)
    if found["POSITION"].dtype == np.int16:
        position = np.maximum(position / 32767, -1) * node["scale"] + node["translation"]
        normal = normal / 127
    return position, normal, found["COLOR_0"], read_accessor(tree, binary, primitive["indices"]).reshape(-1, 3)


def test_the_same_object_in_half_the_bytes(glb):
    before, after = glb(), thin_glb(glb())
    assert len(after) < 0.6 * len(before)
    old, new = decoded(before), decoded(after)
    np.testing.assert_allclose(new[0], old[0], atol=1.01 / 32767 / 2)  # half a step of a ball of radius 1
    direction = new[1] / np.linalg.norm(new[1], axis=1, keepdims=True)
    assert (direction * old[1]).sum(1).min() > np.cos(np.radians(0.5))
    assert new[2].dtype == np.uint16
    np.testing.assert_allclose(new[2] / 65535, old[2], atol=0.51 / 65535)
    np.testing.assert_array_equal(new[3], old[3])


def textured(size=32, subdivisions=3) -> bytes:
    """A ball of radius 1 whose texture is red where world y > 0, else blue."""

    def albedo(points, normals):
        return torch.where(points[:, 1:2] > 0, torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0]))

    with tempfile.TemporaryDirectory() as folder:
        ball = trimesh.creation.icosphere(subdivisions=subdivisions)
        [file] = write_mesh(Path(folder) / "ball.glb", add_texture(ball, size, albedo))
        return file.read_bytes()


def test_a_texture_stays_and_becomes_a_jpeg(tmp_path):
    before, after = textured(256), thin_glb(textured(256))
    parts = []
    for name, data in (("before", before), ("after", after)):
        (tmp_path / f"{name}.glb").write_bytes(data)
        notes: list[str] = []
        parts += gltf.read(tmp_path / f"{name}.glb", 10_000, notes)
        assert notes == []
    old, new = parts
    np.testing.assert_allclose(new.corners, old.corners, atol=1e-4)
    np.testing.assert_allclose(new.uv, old.uv, atol=1e-5)
    seen = np.stack([part.texture.sample(part.uv.reshape(-1, 2))[:, :3] for part in parts])
    clear = np.abs(old.corners.reshape(-1, 3)[:, 0]) > 0.1  # world y is the file's x
    assert np.abs(seen[0] - seen[1])[clear].max() < 0.2  # linear; a JPEG
    assert read_glb(after)[0]["images"][0]["mimeType"] == "image/jpeg" and len(after) < len(before)
    assert largest_side(thin_glb(textured(2048, 1))) == 1024


def largest_side(data: bytes) -> int:
    tree, binary = read_glb(data)
    view = tree["bufferViews"][tree["images"][0]["bufferView"]]
    return max(Image.open(io.BytesIO(binary[view["byteOffset"] :][: view["byteLength"]])).size)


def test_a_textured_one_of_too_many_faces_has_its_colours_at_the_vertices_and_no_cracks():
    position, normal, color, faces = decoded(thin_glb(textured(256, 4), max_faces=600))
    assert 300 < len(faces) <= 600
    assert trimesh.Trimesh(position, faces, process=False).is_watertight
    clear = np.abs(position[:, 0]) > 0.15
    assert np.array_equal(color[clear, 0] > color[clear, 2], position[clear, 0] > 0)


def test_no_normal_has_length_zero():
    points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]])
    data = write_quantised(points, np.zeros((4, 3)), np.zeros((4, 3)), np.array([[0, 1, 2]]))
    assert np.array_equal(decoded(data)[1], np.tile([0, 1, 0], (4, 1)))


def test_it_is_laid_out_as_gltf_wants(glb):
    data = thin_glb(glb())
    tree, binary = read_glb(data)
    assert tree["extensionsRequired"] == ["KHR_mesh_quantization"] and len(data) % 4 == 0
    assert tree["buffers"] == [{"byteLength": len(binary)}]
    position = read_accessor(tree, binary, 1)
    assert tree["accessors"][1]["min"] == position.min(0).tolist()  # stored numbers, section 3.6.2.5
    assert tree["accessors"][1]["max"] == position.max(0).tolist()
    for view in tree["bufferViews"]:
        assert view["byteOffset"] % 4 == 0 and view.get("byteStride", 4) % 4 == 0
        assert view["byteOffset"] + view["byteLength"] <= len(binary)


def test_the_reader_of_meshes_reads_it_as_the_same(glb, tmp_path):
    parts = []
    for name, data in (("whole", glb()), ("thin", thin_glb(glb()))):
        (tmp_path / f"{name}.glb").write_bytes(data)
        notes: list[str] = []
        parts += gltf.read(tmp_path / f"{name}.glb", 10_000, notes)
        assert notes == []
    np.testing.assert_allclose(parts[1].corners, parts[0].corners, atol=1e-4)
    np.testing.assert_allclose(parts[1].color, parts[0].color, atol=1e-5)


def test_too_many_faces_become_few_and_keep_their_colours(glb):
    position, normal, color, faces = decoded(thin_glb(glb(4), max_faces=600))
    assert 300 < len(faces) <= 600 and len(decoded(glb(4))[3]) == 5120
    center = np.array([2, 3, 1])  # y up
    np.testing.assert_allclose(np.linalg.norm(position - center, axis=1), 1, atol=0.05)
    assert ((position - center) * normal).sum(1).min() > 0.9  # outwards
    clear = np.abs(position[:, 0] - 2) > 0.1
    assert np.array_equal(color[clear, 0] > color[clear, 2], position[clear, 0] > 2)


def test_a_large_mesh_needs_wide_indices(glb):
    points = np.random.default_rng(0).normal(size=(69_999, 3))
    faces = np.arange(69_999).reshape(-1, 3)
    data = write_quantised(points, np.zeros_like(points), np.zeros((69_999, 4)), faces)
    np.testing.assert_array_equal(decoded(data)[3], faces)


def test_a_glb_of_another_kind_stays_as_it_is():
    plain = trimesh.Scene(trimesh.creation.box()).export(file_type="glb")
    assert isinstance(plain, bytes) and thin_glb(plain) is plain


def rewritten(data: bytes, change) -> bytes:
    """The GLB with `change` done to its JSON tree."""
    tree, binary = read_glb(data)
    change(tree)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    head = b"glTF" + struct.pack("<III", 2, 28 + len(text) + len(binary), len(text)) + b"JSON"
    return head + text + struct.pack("<I", len(binary)) + b"BIN\0" + binary


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"not a mesh at all, though long enough",
        lambda data: data[: len(data) // 2],
        lambda data: data[:16] + b"\0" * (len(data) - 16),
        lambda data: rewritten(data, lambda tree: tree.update(meshes=[])),
        lambda data: rewritten(data, lambda tree: tree["accessors"][0].update(count=0)),
        lambda data: rewritten(data, lambda tree: tree["accessors"][0].update(count=10**9)),
        lambda data: rewritten(data, lambda tree: tree["accessors"][1].update(count=5)),
        lambda data: rewritten(data, lambda tree: tree["accessors"][0].update(bufferView=99)),
        lambda data: rewritten(data, lambda tree: tree.update(meshes="none")),
    ],
)
def test_a_damaged_one_is_the_users_to_know(glb, spoil):
    with pytest.raises(UserError, match="damaged mesh: wanted a GLB"):
        thin_glb(spoil(glb(1)))
