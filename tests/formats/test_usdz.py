"""USDZ as it is written: the archive's rules, and a layer that says what it was given."""

import io
import re
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from jointdreamer.formats.surface import png
from jointdreamer.formats.usdz import write_usdz

VERTICES = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0.25]], np.float32)
FACES = np.array([[0, 1, 2], [0, 2, 3]])
UV = np.array([[0, 0], [1, 0], [1, 1], [0.5, 0.5], [0, 1]], np.float32)
MAPPED = np.array([[0, 1, 2], [3, 2, 4]])  # a seam: the first vertex has two places


@pytest.fixture
def data() -> bytes:
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    return write_usdz(VERTICES, np.tile([0, 0, 1.0], (4, 1)), FACES, UV, MAPPED, png(pixels))


def test_files_are_stored_at_multiples_of_64_bytes_the_layer_first(data):
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    assert [item.filename.rpartition(".")[2] for item in archive.infolist()] == ["usda", "png"]
    for item in archive.infolist():
        name, extra = struct.unpack_from("<HH", data, item.header_offset + 26)
        start = item.header_offset + 30 + name + extra
        assert item.compress_type == zipfile.ZIP_STORED and start % 64 == 0
        assert data[start : start + item.file_size] == archive.read(item)


def test_the_layer_says_what_it_was_given(data):
    archive = zipfile.ZipFile(io.BytesIO(data))
    layer, picture = (archive.read(item) for item in archive.infolist())
    text = layer.decode()
    assert text.startswith("#usda 1.0\n") and 'upAxis = "Y"' in text and text.count("{") == text.count("}")
    assert f"@{archive.infolist()[1].filename}@" in text and '"sRGB"' in text

    def numbers(name: str, width: int) -> np.ndarray:
        found = re.search(rf"\b{name} = \[(.*?)\]", text)
        assert found is not None
        return np.array([float(word) for word in re.findall(r"[-\d.e]+", found[1])]).reshape(-1, width)

    assert np.array_equal(numbers("points", 3), VERTICES)
    assert np.array_equal(numbers("faceVertexIndices", 3), FACES)
    assert np.array_equal(numbers("primvars:st", 2)[numbers("primvars:st:indices", 3).astype(int)], UV[MAPPED])
    assert np.array_equal(numbers("extent", 3), [[-1, -1, 0], [1, 1, 0.25]])
    assert (numbers("faceVertexCounts", 1) == 3).all() and len(numbers("faceVertexCounts", 1)) == 2
    assert "doubleSided = 0" in text
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), np.arange(27).reshape(3, 3, 3))


def test_the_same_object_is_the_same_file(data):
    again = write_usdz(
        VERTICES, np.tile([0, 0, 1.0], (4, 1)), FACES, UV, MAPPED, png(np.arange(27, dtype=np.uint8).reshape(3, 3, 3))
    )
    assert again == data
