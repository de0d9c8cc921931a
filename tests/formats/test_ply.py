"""PLY of every kind of number."""

import struct

import numpy as np
import pytest
from PIL import Image

from jointdreamer.formats import ply
from jointdreamer.formats.surface import GREY, BadMesh, srgb_to_linear

CORNERS = [(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]
LETTERS = {"uchar": "B", "ushort": "H", "float": "f", "double": "d", "int": "i"}


@pytest.fixture
def read(tmp_path):
    """read(kind, ...) -> the part and notes of a square in two triangles and one quad beside it."""

    def run(kind, color="uchar", values=(), of_faces=False, polygons=((0, 1, 2), (0, 2, 3)), extra=(), uv=None, cut=0):
        order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[kind]
        channels = [f"property {color} {name}" for name in ("red", "green", "blue")] if values else []
        head = ["ply", f"format {kind} 1.0", *extra, "element vertex 4", *(f"property float {axis}" for axis in "xyz")]
        head += [] if of_faces else channels
        head += ["property float s", "property float t"] if uv else []
        head += [f"element face {len(polygons)}", "property list uchar int vertex_indices"]
        head += channels if of_faces else []
        rows = []
        for k, corner in enumerate(CORNERS):
            row = [("f", x) for x in corner]
            row += [] if of_faces else [(LETTERS[color], x) for x in values]
            rows.append(row + ([("f", x) for x in uv[k]] if uv else []))
        for polygon in polygons:
            row = [("B", len(polygon)), *(("i", corner) for corner in polygon)]
            rows.append(row + ([(LETTERS[color], x) for x in values] if of_faces else []))
        body = b"".join(
            " ".join(str(x) for _, x in row).encode() + b"\n"
            if kind == "ascii"
            else struct.pack(order + "".join(letter for letter, _ in row), *(x for _, x in row))
            for row in rows
        )
        data = "\n".join([*head, "end_header", ""]).encode() + body
        (tmp_path / "a.ply").write_bytes(data[: len(data) - cut])
        notes: list[str] = []
        return ply.read(tmp_path / "a.ply", 10, notes)[0], notes

    return run


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("of_faces", [False, True], ids=["vertices", "faces"])
@pytest.mark.parametrize(
    ("color", "values"),
    [
        ("uchar", (51, 0, 255)),
        ("ushort", (13107, 0, 65535)),
        ("float", (0.2, 0, 1)),
        ("double", (51, 0, 255)),
        ("int", (51, 0, 255)),
    ],
)
@pytest.mark.parametrize("polygons", [((0, 1, 2), (0, 2, 3)), ((0, 1, 2, 3),), ((0, 1, 2, 3), (0, 1, 2))])
def test_colours_of_any_type_are_srgb(read, kind, of_faces, color, values, polygons):
    part, notes = read(kind, color, values, of_faces, polygons)
    assert len(part.corners) == sum(len(polygon) - 2 for polygon in polygons) and notes == []
    assert np.allclose(part.corners[0], np.array(CORNERS)[[0, 1, 2]])
    assert np.allclose(part.color[..., :3], srgb_to_linear(np.array([0.2, 0, 1])), atol=1e-5)
    assert (part.color[..., 3] == 1).all()


def test_without_colours_it_is_grey(read):
    part, _ = read("ascii")
    assert np.allclose(part.color[..., :3], srgb_to_linear(np.array(GREY)))


def test_a_texture_or_its_absence(read, tmp_path):
    uv = [(0, 0), (1, 0), (1, 1), (0, 1)]
    part, [note] = read("ascii", uv=uv, extra=["comment TextureFile my skin.png"])
    assert part.texture is None and "my skin.png" in note
    Image.new("RGB", (2, 2), (0, 0, 255)).save(tmp_path / "my skin.png")
    part, notes = read("ascii", uv=uv, extra=["comment TextureFile my skin.png"])
    assert notes == [] and part.texture.sample(part.uv[0])[0, :3].tolist() == [0, 0, 1]
    assert np.allclose(part.uv[0], [[0, 1], [1, 1], [1, 0]])


def test_z_up_where_it_says_so(read):
    corners = np.array(CORNERS)[[0, 1, 2]]
    part, _ = read("ascii", extra=[ply.Z_UP])  # front -y: (x left, -y front, z up) -> (x, z, -y)
    assert np.allclose(part.corners[0], corners[:, [0, 2, 1]] * [1, 1, -1])
    part, _ = read("ascii", extra=["comment z up, front +x"])  # as it was written once: (y, z, x)
    assert np.allclose(part.corners[0], corners[:, [1, 2, 0]])


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian"])
def test_damaged_ones(read, kind, tmp_path):
    for changes in (
        {"polygons": ((0, 1, 9),)},
        {"polygons": ()},
        {"cut": 3},
        {"cut": 60},
        {"polygons": [(0, 1, 2)] * 11},
    ):
        with pytest.raises(BadMesh):
            read(kind, **changes)
    for data in (b"", b"ply\n", b"ply\nformat ascii 1.0\nelement vertex -1\nend_header\n", b"ply\nend_header\n"):
        (tmp_path / "a.ply").write_bytes(data)
        with pytest.raises(BadMesh):
            ply.read(tmp_path / "a.ply", 10, [])
