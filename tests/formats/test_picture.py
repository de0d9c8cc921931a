import io

import numpy as np
import pytest
from PIL import Image

from jointdreamer.formats.picture import read_rgba


def stored(image: Image.Image, kind="PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def pixel(data: bytes) -> tuple[int, ...]:
    return tuple(np.asarray(read_rgba(data))[0, 0].tolist())


@pytest.mark.parametrize("value", [0, 257, 128 * 257, 65535])
def test_sixteen_bits_become_eight_not_white(value):
    grey = Image.fromarray(np.full((2, 2), value, np.uint16))
    assert grey.mode == "I;16"
    for kind in ("PNG", "TIFF"):
        assert pixel(stored(grey, kind)) == (*[value // 257] * 3, 255)


def test_every_mode_is_rgba():
    rgb = Image.new("RGB", (2, 2), (200, 60, 30))
    assert pixel(stored(rgb)) == (200, 60, 30, 255)
    assert pixel(stored(rgb.quantize(4))) == (200, 60, 30, 255)
    assert pixel(stored(Image.new("LA", (2, 2), (100, 7)))) == (100, 100, 100, 7)
    assert pixel(stored(Image.new("L", (2, 2), 9))) == (9, 9, 9, 255)
    assert pixel(stored(Image.new("1", (2, 2), 1))) == (255, 255, 255, 255)
    assert pixel(stored(Image.new("RGBA", (2, 2), (1, 2, 3, 4)))) == (1, 2, 3, 4)
    assert pixel(stored(Image.new("F", (2, 2), 0.5), "TIFF")) == (128, 128, 128, 255)


@pytest.mark.parametrize("data", [b"", b"\x89PNG is what it is not", stored(Image.new("RGB", (64, 64)))[:60]])
def test_no_picture(data):
    with pytest.raises(ValueError, match="."):
        read_rgba(data)
