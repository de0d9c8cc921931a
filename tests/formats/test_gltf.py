"""glTF by hand: what a surface's linear colour is, where it stands, and what is named because it is not read."""

import base64
import json
import re

import numpy as np
import pytest
from PIL import Image

from jointdreamer.formats import gltf
from jointdreamer.formats.glb import read_glb
from jointdreamer.formats.surface import BadMesh
from tests.glb_builder import SQUARE, UV, GlbBuilder, plain


@pytest.fixture
def read(tmp_path):
    """read(builder) -> parts and notes."""

    def run(builder, max_faces=1000):
        notes = []
        return gltf.read(builder.save(tmp_path / "a.glb"), max_faces, notes), notes

    return run


def shown(part):
    """Linear RGBA of the first face's middle."""
    color = part.color[0].mean(0)
    return color if part.texture is None else color * part.texture.sample(part.uv[:1].mean(1))[0]


def one(found):
    ([part], notes) = found
    assert notes == []
    return part


LINEAR = np.array([0.216, 0.05, 0.5])


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("dtype", ["f4", "u1", "u2"])
def test_factor_texture_and_vertex_colour_multiply_in_linear_light(read, dtype, width):
    color = np.tile(np.r_[LINEAR, 0.3][:width], (4, 1))
    color = color.astype("f4") if dtype == "f4" else np.round(color * np.iinfo(dtype).max).astype(dtype)
    color = np.pad(color, ((0, 0), (0, -color.itemsize * width % 4 // color.itemsize)))  # rows of four bytes
    builder = GlbBuilder()
    accessor = builder.accessor(color, normalized=dtype != "f4")
    builder.tree["accessors"][accessor]["type"] = f"VEC{width}"
    builder.tree["bufferViews"][-1]["byteStride"] = color.strides[0]
    builder.textured(plain(188, 188, 188), pbr={"baseColorFactor": [0.5, 1, 0.25, 0.1]}, COLOR_0=accessor)
    part = one(read(builder))
    assert shown(part) == pytest.approx([*(LINEAR * [0.5, 1, 0.25] * 0.503), 1], abs=2e-3)  # opaque whatever alpha is


@pytest.mark.parametrize("factor", [0.216, 0.05, 0.004, 0.002])
def test_dark_factors_stay_dark(read, factor):
    builder = GlbBuilder()
    skin = {"pbrMetallicRoughness": {"baseColorFactor": [factor, 0, 0, 1]}}
    assert shown(one(read(builder.place(builder.part(skin))))) == pytest.approx([factor, 0, 0, 1])


def test_without_a_material_it_is_white_and_unlit_and_metal_change_nothing(read):
    builder = GlbBuilder()
    assert shown(one(read(builder.place(builder.part())))) == pytest.approx([1, 1, 1, 1])
    builder = GlbBuilder()
    skin = {"pbrMetallicRoughness": {"baseColorFactor": [0.2, 0.3, 0.4, 1], "metallicFactor": 1}}
    builder.place(builder.part({**skin, "doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}))
    builder.tree["extensionsRequired"] = ["KHR_materials_unlit"]
    assert shown(one(read(builder))) == pytest.approx([0.2, 0.3, 0.4, 1])


def test_specular_glossiness_is_diffuse(read):
    builder = GlbBuilder()
    old = {"diffuseFactor": [0.5, 1, 1, 1], "diffuseTexture": {"index": builder.texture(plain(188, 0, 255))}}
    material = {"extensions": {"KHR_materials_pbrSpecularGlossiness": old}}
    builder.place(builder.part(material, TEXCOORD_0=builder.accessor(UV)))
    assert shown(one(read(builder))) == pytest.approx([0.2515, 0, 1, 1], abs=1e-3)


GREY16 = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
PICTURES = {
    "grey": Image.new("L", (4, 4), 128),
    "16-bit grey": GREY16,
    "grey with alpha": Image.new("LA", (4, 4), (128, 10)),
    "palette": Image.new("RGB", (4, 4), (128, 128, 128)).quantize(2),
    "alpha": Image.new("RGBA", (4, 4), (128, 128, 128, 0)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_any_mode(read, name):
    assert shown(one(read(GlbBuilder().textured(PICTURES[name])))) == pytest.approx([0.2159] * 3 + [1], abs=1e-3)


def test_alpha_counts_as_the_material_says(read):
    faint = Image.new("RGBA", (4, 4), (255, 255, 255, 51))
    for mode, alpha, cutoff in (("OPAQUE", 1, 0), ("MASK", 0.1, 0.5), ("BLEND", 0.1, 0)):
        factor = {"baseColorFactor": [1, 1, 1, 0.5]}
        part = one(read(GlbBuilder().textured(faint, pbr=factor, material={"alphaMode": mode})))
        assert shown(part)[3] == pytest.approx(alpha, abs=1e-3) and part.cutoff == cutoff


QUARTERS = np.zeros((8, 8, 3), np.uint8)  # upper left red, upper right green, lower left blue, lower right white
QUARTERS[:4, :4, 0] = QUARTERS[:4, 4:, 1] = QUARTERS[4:, :4, 2] = 255
QUARTERS[4:, 4:] = 255


def corner(part, x, y):
    """The colour of the corner of the square at (x, y)."""
    face, k = np.argwhere((np.abs(part.corners[..., :2] - [x, y]) < 0.01).all(-1))[0]
    inwards = 0.8 * part.uv[face, k] + 0.2 * part.uv.reshape(-1, 2).mean(0)
    return part.texture.sample(inwards[None])[0, :3].round(2).tolist()


def test_texture_transform_and_second_coordinates(read):
    part = one(read(GlbBuilder().textured(QUARTERS)))
    assert [corner(part, *at) for at in ((-1, 1), (1, 1), (-1, -1))] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    # the example of the extension's text: the lower left quarter only, turned clockwise
    move = {"offset": [0, 1], "rotation": np.pi / 2, "scale": [0.5, 0.5]}
    part = one(read(GlbBuilder().textured(QUARTERS, {"extensions": {"KHR_texture_transform": move}})))
    assert {tuple(corner(part, *at)) for at in ((-1, 1), (1, 1), (-1, -1), (1, -1))} == {(0, 0, 1)}
    small = 0.1 + 0.2 * UV  # within the upper left quarter
    builder = GlbBuilder()
    second = builder.accessor((0.6 + 0.2 * UV).astype(np.float32))
    part = one(read(builder.textured(QUARTERS, {"texCoord": 1}, uv=small, TEXCOORD_1=second)))
    assert corner(part, -1, 1) == [1, 1, 1]
    builder = GlbBuilder()
    second = builder.accessor(np.round(65535 * (0.6 + 0.2 * UV)).astype(np.uint16), normalized=True)
    move = {"KHR_texture_transform": {"texCoord": 1}}
    part = one(read(builder.textured(QUARTERS, {"extensions": move}, uv=small, TEXCOORD_1=second)))
    assert corner(part, -1, 1) == [1, 1, 1]


def test_parts_share_what_they_share(read):
    builder = GlbBuilder()
    skin = {"pbrMetallicRoughness": {"baseColorTexture": {"index": builder.texture(plain(9, 9, 9))}}}
    coordinates = builder.accessor(UV)
    for _ in range(3):
        builder.place(builder.part(skin, TEXCOORD_0=coordinates))
    parts, _ = read(builder)
    assert len({id(part.texture.pixels) for part in parts}) == 1


def test_nodes_place_their_meshes(read):
    builder = GlbBuilder()
    builder.place(builder.part(), scale=[-2, 1, 1], translation=[5, 0, 0], rotation=[0, 0, np.sqrt(0.5), np.sqrt(0.5)])
    parent = builder.add("nodes", children=[0], matrix=np.diag([10.0, 10, 10, 1]).T.reshape(-1).tolist())
    builder.tree["scenes"][0]["nodes"] = [parent]
    part = one(read(builder))
    points = part.corners.reshape(-1, 3)
    # mirrored, long in x, turned by 90 degrees about z, moved, ten times as large
    assert np.allclose(points.min(0), [40, -20, 0], atol=1e-4) and np.allclose(points.max(0), [60, 20, 0], atol=1e-4)
    builder.tree["nodes"][0]["children"] = [parent]
    with pytest.raises(BadMesh, match="two parents"):
        read(builder)


def test_a_mesh_is_drawn_once_for_each_node_within_the_limit(read):
    builder = GlbBuilder()
    builder.place(builder.part())
    for _ in range(4):
        builder.tree["scenes"][0]["nodes"].append(builder.add("nodes", mesh=0))
    assert len(read(builder)[0]) == 5
    with pytest.raises(BadMesh, match="huge: 8 faces, the limit is 7"):
        read(builder, max_faces=7)


def test_skins_morphs_strips_and_sparse_numbers(read):
    builder = GlbBuilder()
    part = builder.part(
        JOINTS_0=builder.accessor(np.tile(np.array([0, 1, 0, 0], np.uint8), (4, 1))),
        WEIGHTS_0=builder.accessor(np.tile(np.array([0.5, 0.5, 0, 0], np.float32), (4, 1))),
    )
    part["targets"] = [{"POSITION": builder.accessor(np.tile(np.array([0, 0, 4], np.float32), (4, 1)))}]
    builder.place(part, skin=0, translation=[99, 0, 0], weights=[0.5])
    joints = [builder.add("nodes", translation=at) for at in ([2, 0, 0], [4, 0, 0])]
    builder.tree["scenes"][0]["nodes"] += joints
    inverse = np.tile(np.eye(4, dtype=np.float32).reshape(-1), (2, 1))
    builder.add("skins", joints=joints, inverseBindMatrices=builder.accessor(inverse))
    assert np.allclose(one(read(builder)).corners.mean((0, 1))[[0, 2]], [3, 2], atol=0.5)

    builder = GlbBuilder()
    strip = builder.part() | {"mode": 5, "indices": builder.accessor(np.array([0, 1, 3, 2], np.uint8))}
    assert np.allclose(one(read(builder.place(strip))).corners[1], SQUARE[[1, 3, 2]])
    moved = {
        "count": 1,
        "indices": {"bufferView": builder.view(np.array([2], np.uint8).tobytes()), "componentType": 5121},
    }
    moved["values"] = {"bufferView": builder.view(np.array([7, 7, 7], np.float32).tobytes())}
    builder.tree["accessors"][0]["sparse"] = moved
    assert one(read(builder)).corners.max() == 7


def test_gltf_with_files_beside_it(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "my skin.png")
    builder = GlbBuilder()
    texture = builder.add("textures", source=builder.add("images", uri="my%20skin.png"))
    skin = {"pbrMetallicRoughness": {"baseColorTexture": {"index": texture}}}
    builder.place(builder.part(skin, TEXCOORD_0=builder.accessor(UV)))
    data = "data:application/octet-stream;base64," + base64.b64encode(builder.binary).decode()
    for uri in ("a.bin", data):
        builder.tree["buffers"] = [{"uri": uri, "byteLength": len(builder.binary)}]
        (tmp_path / "a.gltf").write_text(json.dumps(builder.tree))
        if uri == "a.bin":
            with pytest.raises(BadMesh, match="a.bin is absent"):
                gltf.read(tmp_path / "a.gltf", 10, [])
            (tmp_path / uri).write_bytes(builder.binary)
        assert shown(gltf.read(tmp_path / "a.gltf", 10, [])[0]) == pytest.approx([1, 0, 0, 1])


def draco(builder):
    builder.place(builder.part())
    empty = {"componentType": 5126, "count": 4, "type": "VEC3"}
    part = {"attributes": {"POSITION": builder.add("accessors", **empty)}}
    part["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": builder.view(bytes(64))}}
    builder.place(part)


def meshopt(builder):
    builder.place(builder.part())
    builder.place(builder.part())
    view = builder.tree["bufferViews"][builder.tree["accessors"][2]["bufferView"]]
    view["extensions"], view["buffer"] = {"EXT_meshopt_compression": {}}, 1
    builder.second_buffer = {"byteLength": 99, "extensions": {"EXT_meshopt_compression": {"fallback": True}}}


def lines(builder):
    builder.place(builder.part(), builder.part() | {"mode": 1})


def ktx2(builder):
    image = builder.picture(b"\xabKTX 20\xbb" + bytes(90), "ktx2")
    texture = builder.add("textures", extensions={"KHR_texture_basisu": {"source": image}})
    skin = {"pbrMetallicRoughness": {"baseColorTexture": {"index": texture}}}
    builder.place(builder.part(skin, TEXCOORD_0=builder.accessor(UV)))


def damaged_picture(builder):
    builder.textured(b"\x89PNG is what it is not")


def missing_picture(builder):
    texture = builder.add("textures", source=builder.add("images", uri="gone.png"))
    builder.place(
        builder.part(
            {"pbrMetallicRoughness": {"baseColorTexture": {"index": texture}}}, TEXCOORD_0=builder.accessor(UV)
        )
    )


def no_coordinates(builder):
    skin = {"pbrMetallicRoughness": {"baseColorTexture": {"index": builder.texture(plain(1, 2, 3))}}}
    builder.place(builder.part(skin))


def unknown_extension(builder):
    builder.place(builder.part())
    builder.tree["extensionsRequired"] = ["ACME_shape"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (draco, "KHR_draco_mesh_compression"),
        (meshopt, "EXT_meshopt_compression"),
        (lines, "points or lines"),
        (ktx2, "KHR_texture_basisu"),
        (damaged_picture, "a texture is left out: image .*image/png.* cannot be read"),
        (missing_picture, "gone.png .*absent"),
        (no_coordinates, "no TEXCOORD_0"),
        (unknown_extension, "ACME_shape is not read"),
    ],
)
def test_what_is_not_read_is_named_and_the_rest_is_there(tmp_path, make, says):
    builder, notes = GlbBuilder(), []
    make(builder)
    file = builder.save(tmp_path / "a.glb")
    if builder.second_buffer:
        data = file.read_bytes()
        tree, binary = read_glb(data)
        tree["buffers"].append(builder.second_buffer)
        (tmp_path / "a.bin").write_bytes(binary)
        tree["buffers"][0]["uri"], file = "a.bin", tmp_path / "a.gltf"
        file.write_text(json.dumps(tree))
    parts = gltf.read(file, 100, notes)
    assert len(parts) == 1 and len(parts[0].corners) == 2 and parts[0].texture is None
    assert len(notes) == 1
    assert re.search(says, notes[0]), notes


def test_a_plain_fallback_beside_ktx2_or_webp_is_taken(read):
    builder = GlbBuilder()
    webp = builder.picture(plain(188, 188, 188), "WEBP")
    texture = builder.add("textures", extensions={"EXT_texture_webp": {"source": webp}})
    skin = {"pbrMetallicRoughness": {"baseColorTexture": {"index": texture}}}
    builder.place(builder.part(skin, TEXCOORD_0=builder.accessor(UV)))
    assert shown(one(read(builder)))[0] == pytest.approx(0.503, abs=0.02)
    builder.tree["textures"][0] = {
        "source": builder.picture(plain(255, 255, 255)),
        "extensions": {"KHR_texture_basisu": {"source": webp}},
    }
    assert shown(one(read(builder)))[0] == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: tree["accessors"][0].update(count=10**12),
        lambda tree: tree["accessors"][0].update(count=-1),
        lambda tree: tree["accessors"][0].update(type="VEC9"),
        lambda tree: tree["accessors"][0].update(byteOffset=-4),
        lambda tree: tree["bufferViews"][0].update(buffer=7),
        lambda tree: tree["accessors"].clear(),
        lambda tree: tree.update(nodes="none"),
        lambda tree: tree.update(meshes=[{}]),
        lambda tree: tree.update(asset={"version": "1.0"}),
        lambda tree: tree.pop("asset"),
        lambda tree: tree["nodes"][0].update(matrix=[1, 2]),
        lambda tree: tree["meshes"][0]["primitives"][0].update(material=3),
    ],
)
def test_a_file_that_contradicts_itself_is_a_bad_mesh(read, spoil):
    builder = GlbBuilder()
    builder.place(builder.part())
    spoil(builder.tree)
    with pytest.raises(BadMesh):
        read(builder)


def test_padding_of_other_writers_is_no_damage(tmp_path):
    builder = GlbBuilder()
    file = builder.place(builder.part()).save(tmp_path / "a.glb")
    file.write_bytes(file.read_bytes() + bytes(8))
    assert len(gltf.read(file, 10, [])) == 1
