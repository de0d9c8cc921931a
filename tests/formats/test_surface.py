import io

import numpy as np
import pytest
from PIL import Image

from jointdreamer.formats.surface import (
    MAX_SIDE,
    Texture,
    companion,
    linear_to_srgb,
    load_texture,
    srgb_to_linear,
    unit,
)
from jointdreamer.reading import Unreadable


def test_srgb_by_the_standard_s_numbers_and_back():
    assert np.allclose(srgb_to_linear(np.array([0, 0.04045, 0.5, 1])), [0, 0.0031308, 0.2140411, 1], atol=1e-6)
    x = np.linspace(0, 1, 101)
    assert np.allclose(linear_to_srgb(srgb_to_linear(x)), x, atol=1e-6)


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        (np.array([51], np.uint8), 0.2),
        (np.array([13107], np.uint16), 0.2),
        (np.array([51], np.int32), 0.2),
        (np.array([0.2], np.float32), 0.2),
        (np.array([51, 255], np.float32), 0.2),
        (np.array([np.nan], np.float32), 0),
    ],
)
def test_colours_of_any_type(stored, value):
    assert unit(stored)[0] == pytest.approx(value)


def test_a_texture_goes_on_as_its_sampler_says():
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)  # black on the left
    u = np.array([[-0.2, 0.5], [0.2, 0.5], [0.8, 0.5], [1.2, 0.5], [1.8, 0.5], [np.nan, 9]])
    for wrap, white in (("repeat", [1, 0, 1, 0, 1, 0]), ("clamp", [0, 0, 1, 1, 1, 0]), ("mirror", [0, 0, 1, 1, 0, 0])):
        assert Texture(pixels, (wrap, "repeat")).sample(u)[:, 0].tolist() == white, wrap


def test_a_texture_is_linear_and_no_larger_than_is_needed():
    assert Texture(np.full((1, 1, 4), 188, np.uint8)).sample(np.zeros((1, 2)))[0] == pytest.approx(
        [0.503, 0.503, 0.503, 188 / 255], abs=1e-3
    )
    stream = io.BytesIO()
    Image.new("RGBA", (2 * MAX_SIDE, 8), (9, 8, 7, 0)).save(stream, "PNG")
    assert load_texture(stream.getvalue(), opaque=True).shape == (4, MAX_SIDE, 3)
    assert (load_texture(stream.getvalue(), opaque=True) == (9, 8, 7)).all()
    assert load_texture(stream.getvalue(), opaque=False).shape == (4, MAX_SIDE, 4)


def test_companions_are_found_as_other_systems_name_them(tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "my skin.png").write_bytes(b"1")
    (tmp_path / "Wood.PNG").write_bytes(b"2")
    for name, content in (("maps/my skin.png", b"1"), ("maps\\my skin.png", b"1"), ('"maps/my skin.png"', b"1")):
        assert companion(tmp_path, name) == content
    for name in ("wood.png", "C:\\textures\\Wood.PNG", "elsewhere/wood.png"):
        assert companion(tmp_path, name) == b"2"
    for name in ("gone.png", "", "maps", "a\0b", "x" * 5000):
        with pytest.raises(Unreadable):
            companion(tmp_path, name)
