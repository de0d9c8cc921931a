"""GLB as it is written."""

import numpy as np

from jointdreamer.formats import gltf
from jointdreamer.formats.glb import read_glb, write_glb
from jointdreamer.formats.surface import png, srgb_to_linear
from tests.glb_builder import SQUARE, UV

FACES = np.array([[0, 1, 2], [0, 2, 3]], np.uint16)


def test_what_is_written_is_read_back(tmp_path):
    srgb = np.arange(4)[:, None] / 255 * [1, 2, 3]
    attributes = {"POSITION": SQUARE, "COLOR_0": srgb_to_linear(srgb).astype(np.float32)}
    (tmp_path / "a.glb").write_bytes(write_glb(attributes, FACES))
    [part] = gltf.read(tmp_path / "a.glb", 10, [])
    assert np.allclose(part.corners, SQUARE[FACES])
    assert np.allclose(part.color[..., :3], attributes["COLOR_0"][FACES])


def test_a_picture_is_read_back_as_it_is_and_its_corners_are_not_repeated(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)  # a PNG of an odd length
    data = write_glb({"POSITION": SQUARE, "TEXCOORD_0": UV}, FACES, picture=png(pixels), double_sided=True)
    (tmp_path / "a.glb").write_bytes(data)
    notes: list[str] = []
    [part] = gltf.read(tmp_path / "a.glb", 10, notes)
    assert notes == [] and part.texture is not None and part.texture.wrap == ("clamp", "clamp")
    assert np.array_equal(part.texture.pixels, pixels)
    assert part.uv is not None and np.allclose(part.uv, UV[FACES])
    tree, binary = read_glb(data)
    [material] = tree["materials"]
    assert material["doubleSided"] and material["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert len(data) % 4 == 0 and tree["buffers"] == [{"byteLength": len(binary)}]
    assert "doubleSided" not in read_glb(write_glb({"POSITION": SQUARE}, FACES))[0]["materials"][0]
