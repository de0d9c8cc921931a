"""OBJ and MTL as their many writers write them."""

import re

import numpy as np
import pytest
from PIL import Image

from jointdreamer.formats import obj
from jointdreamer.formats.surface import GREY, BadMesh, srgb_to_linear

CORNERS = "v -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\n"
COORDINATES = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACE = "f 1/1 2/2 3/3 4/4\n"


@pytest.fixture
def read(tmp_path):
    """read(material, faces) -> parts and notes; skin.png is half red (left), half white, and so is `my skin.png`."""
    picture = np.full((4, 4, 3), 255, np.uint8)
    picture[:, :2, 1:] = 0
    for name in ("skin.png", "my skin.png"):
        Image.fromarray(picture).save(tmp_path / name)

    def run(material, faces=FACE, corners=CORNERS, head="mtllib a.mtl\n", max_faces=100):
        if material is not None:
            (tmp_path / "a.mtl").write_text(f"newmtl a\n{material}\n")
        (tmp_path / "a.obj").write_text(f"{head}{corners}{COORDINATES}usemtl a\n{faces}")
        notes = []
        return obj.read(tmp_path / "a.obj", max_faces, notes), notes

    return run


def at(part, x, y):
    """Linear RGB at a place of the square, where it has one colour in all corners."""
    color = part.color[0, 0, :3]
    if part.texture is None:
        return color.tolist()
    uv = np.linalg.lstsq(np.c_[part.corners[0, :, :2], np.ones(3)], part.uv[0], rcond=None)[0]
    return (color * part.texture.sample(np.array([[x, y, 1]]) @ uv)[0, :3]).round(3).tolist()


RED, WHITE = [1, 0, 0], [1, 1, 1]


@pytest.mark.parametrize("color", ["", "Kd 0 0 0\n", "Kd 1 1 1\n", "Kd 1\n"])
def test_a_map_without_a_colour_or_with_black_is_shown_as_it_is(read, color):
    ([part], notes) = read(f"{color}map_Kd skin.png")
    assert (at(part, -0.5, 0), at(part, 0.5, 0), notes) == (RED, WHITE, [])


def test_kd_is_srgb_and_multiplies(read):
    [part], _ = read("Kd 0.5 0.003 0")
    assert at(part, 0, 0) == pytest.approx(srgb_to_linear(np.array([0.5, 0.003, 0])).tolist(), abs=1e-6)
    [part], _ = read("Kd 0.5 0.5 0.5\nmap_Kd skin.png")
    assert at(part, 0.5, 0) == pytest.approx([0.214] * 3, abs=1e-3)
    [part], _ = read("Kd 127.5 0 255")
    assert at(part, 0, 0) == pytest.approx([0.214, 0, 1], abs=1e-3)


@pytest.mark.parametrize(
    "line",
    [
        "map_Kd my skin.png",
        "map_Kd -clamp on my skin.png",
        "map_Kd -s 1 1 1 -o 0 0 0 skin.png",
        "map_Kd -blendu on -mm 0 1 -bm 0.5 my skin.png",
        'map_Kd "skin.png"',
        "map_Kd C:\\stuff\\SKIN.png",
        "\tmap_Kd\tskin.png",
        "map_kd skin.png",
    ],
)
def test_names_and_options_of_a_map(read, line):
    ([part], notes) = read(line)
    assert (at(part, -0.5, 0), at(part, 0.5, 0), notes) == (RED, WHITE, [])


def test_scale_and_offset_of_a_map(read):
    [part], _ = read("map_Kd -o 0.5 0 skin.png")
    assert (at(part, -0.5, 0), at(part, 0.5, 0)) == (WHITE, RED)
    [part], _ = read("map_Kd -s 2 skin.png")
    assert (at(part, -0.75, 0), at(part, -0.25, 0), at(part, 0.25, 0)) == (RED, WHITE, RED)


@pytest.mark.parametrize(
    ("material", "says"),
    [
        ("map_Kd gone.png", "gone.png cannot be read .*absent"),
        ("map_Kd a.mtl", "a.mtl cannot be read"),
        ("Kd spectral a.rfl", "Kd spectral"),
        ("map_d skin.png", "map_d"),
    ],
)
def test_what_is_not_read_is_named(read, material, says):
    ([part], [note]) = read(material)
    assert part.texture is None
    assert at(part, 0, 0) == pytest.approx([float(srgb_to_linear(np.array(GREY)))] * 3)
    assert re.search(says, note)


def test_materials_that_are_not_there(read):
    ([part], notes) = read(None)
    assert len(notes) == 2 and "a.mtl is absent" in notes[0] and "material a" in notes[1]
    ([part], notes) = read("Kd 1 1 1", head="mtllib none.mtl a.mtl\n")
    assert at(part, 0, 0) == WHITE and "none.mtl" in notes[0]


def test_vertex_colours_are_srgb_and_multiply(read):
    corners = "".join(f"{line} 0.5 0 1\n" for line in CORNERS.splitlines())
    for material, right in (("Kd 1 1 1", [0.214, 0, 1]), ("Kd 0 1 1", [0, 0, 1]), ("Ns 1", [0.214, 0, 1])):
        [part], _ = read(material, corners=corners)
        assert at(part, 0, 0) == pytest.approx(right, abs=1e-3)
    [part], _ = read("map_Kd skin.png", corners=corners)
    assert at(part, 0.5, 0) == pytest.approx([0.214, 0, 1], abs=1e-3)


@pytest.mark.parametrize(
    "faces",
    ["f -4/-4 -3/-3 -2/-2 -1/-1\n", "f 1/1 2/2 \\\n3/3 4/4 # a square\n", "f 1/1/ 2/2/ 3/3/\nf 1/1 3/3 4/4\n"],
)
def test_faces_of_any_writing(read, faces):
    ([part], notes) = read("map_Kd skin.png", faces=faces)
    assert len(part.corners) == 2 and at(part, -0.5, 0) == RED and notes == []


def test_without_coordinates_or_beyond_the_corners(read):
    ([part], notes) = read("map_Kd skin.png", faces="f 1 2 3\nf 1//1 3//1 4//1\n")
    assert part.texture is None and len(part.corners) == 2 and "no texture coordinates" in notes[0]
    for faces in ("f 1 2 99\n", "f 0 1 2\n", "f 1/9 2/9 3/9\n", "f a b c\n", "f -9 1 2\n"):
        with pytest.raises(BadMesh):
            read("map_Kd skin.png", faces=faces)
    with pytest.raises(BadMesh, match="huge"):
        read("Kd 1 1 1", max_faces=1)
