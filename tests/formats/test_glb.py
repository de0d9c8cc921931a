"""GLB as it is written."""

import numpy as np

from jointdreamer.formats import gltf
from jointdreamer.formats.glb import write_glb
from jointdreamer.formats.surface import srgb_to_linear
from tests.glb_builder import SQUARE


def test_what_is_written_is_read_back(tmp_path):
    srgb = np.arange(4)[:, None] / 255 * [1, 2, 3]
    attributes = {"POSITION": SQUARE, "COLOR_0": srgb_to_linear(srgb).astype(np.float32)}
    (tmp_path / "a.glb").write_bytes(write_glb(attributes, np.array([[0, 1, 2], [0, 2, 3]], np.uint16)))
    [part] = gltf.read(tmp_path / "a.glb", 10, [])
    assert np.allclose(part.corners, SQUARE[[[0, 1, 2], [0, 2, 3]]])
    assert np.allclose(part.color[..., :3], attributes["COLOR_0"][[[0, 1, 2], [0, 2, 3]]])
