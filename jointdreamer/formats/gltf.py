"""Surfaces of a glTF 2.0 scene, placed and with their colours.

What a file holds that is not read here (Draco, meshopt, KTX2, lines, a picture that is not there) is named in `notes`
and left out; a file that contradicts itself is a BadMesh.
"""

import base64
import json
import struct
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from jointdreamer.formats.glb import DTYPES, MAGIC, TRIANGLES, WIDTHS, normalised, read_accessor, read_glb
from jointdreamer.formats.surface import LARGEST_MESH, BadMesh, Part, Texture, companion, decode, load_texture
from jointdreamer.reading import Unreadable, read_bytes

WRAPS = {10497: "repeat", 33071: "clamp", 33648: "mirror"}
STRIP, FAN = 5, 6  # beside TRIANGLES
PACKED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")
PICTURES = ("EXT_texture_webp", "EXT_texture_avif", "MSFT_texture_dds")  # formats that Pillow may know
# what else is read, or changes nothing of the colour that a matt surface has
READ = (*PICTURES, "KHR_texture_transform", "KHR_mesh_quantization", "KHR_texture_basisu", *PACKED)
# a damaged file provokes any of these
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, struct.error)


def read(path: Path, max_faces: int, notes: list[str]) -> list[Part]:
    """The surfaces of the scene of a .glb or .gltf, placed; y up. What is left out is added to `notes`.

    Raises: BadMesh, Unreadable.
    """
    try:
        return _Reader(path, max_faces, notes).parts()
    except Unreadable:
        raise
    except DAMAGED as error:
        reason = f"no {error}" if isinstance(error, LookupError) else str(error)
        raise BadMesh(f"it cannot be read ({' '.join(reason.split())[:120] or type(error).__name__})") from error


class _Left(Exception):
    """Why a part or a texture is left out."""


class _Reader:
    def __init__(self, path: Path, max_faces: int, notes: list[str]):
        self.path, self.max_faces, self.notes = path, max_faces, notes
        data = read_bytes(path, LARGEST_MESH)
        if data[:4] == MAGIC:
            self.tree, self.chunk = read_glb(data)
        else:
            self.tree, self.chunk = json.loads(decode(data)), None
        if not str(self.tree["asset"]["version"]).startswith("2"):
            raise ValueError(f"it is glTF {self.tree['asset']['version']}, wanted 2")
        self.buffers: dict[int, bytes] = {}
        self.images: dict[tuple[int, bool], np.ndarray] = {}
        self.said: set[str] = set()
        self.n_faces = 0
        for name in self.tree.get("extensionsRequired", []):
            if name not in READ and not name.startswith("KHR_materials_"):
                self.note(f"the extension {name} is not read")

    def note(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.notes.append(text)

    def parts(self) -> list[Part]:
        found: list[Part] = []
        for number, matrix in self.placed():
            node = self.tree["nodes"][number] if number is not None else {}
            meshes = [node["mesh"]] if number is not None else range(len(self.tree.get("meshes", [])))
            for mesh in meshes:
                for at, primitive in enumerate(self.tree["meshes"][mesh]["primitives"]):
                    try:
                        found.append(self.part(primitive, node, matrix, mesh))
                    except _Left as why:
                        self.note(f"part {at} of mesh {mesh} is left out: {why}")
        return found

    def placed(self) -> list[tuple[int | None, np.ndarray]]:
        """Nodes that have a mesh, and to where; (None, identity), for all meshes, where there are no nodes."""
        nodes = self.tree.get("nodes", [])
        if not nodes:
            return [(None, np.eye(4))]
        scenes = self.tree.get("scenes", [])
        if scenes:
            roots = scenes[self.tree.get("scene", 0)].get("nodes", [])
        else:
            roots = sorted(set(range(len(nodes))) - {child for node in nodes for child in node.get("children", [])})
        self.world: dict[int, np.ndarray] = {}
        waiting = [(root, np.eye(4)) for root in reversed(roots)]
        while waiting:
            number, above = waiting.pop()
            if number in self.world:
                raise ValueError(f"node {number} has two parents")
            node = nodes[number]
            self.world[number] = above @ _local(node)
            if "EXT_mesh_gpu_instancing" in node.get("extensions", {}):
                self.note("EXT_mesh_gpu_instancing is not read: one instance is drawn")
            waiting += [(child, self.world[number]) for child in reversed(node.get("children", []))]
        return [(number, matrix) for number, matrix in self.world.items() if "mesh" in nodes[number]]

    def part(self, primitive: dict, node: dict, matrix: np.ndarray, mesh: int) -> Part:
        mode, attributes = primitive.get("mode", TRIANGLES), primitive["attributes"]
        if mode not in (TRIANGLES, STRIP, FAN):
            raise _Left("it is of points or lines")
        used = [*attributes.values(), *([primitive["indices"]] if "indices" in primitive else [])]
        for name in primitive.get("extensions", {}):
            # without the packed numbers, plain ones may be there as well
            if name in PACKED and any("bufferView" not in self.tree["accessors"][index] for index in used):
                raise _Left(f"it is compressed with {name}, which is not read")
        if "POSITION" not in attributes:
            raise _Left("it has no positions")
        accessors = self.tree["accessors"]
        count = accessors[primitive["indices"] if "indices" in primitive else attributes["POSITION"]]["count"]
        self.n_faces += count // 3 if mode == TRIANGLES else max(0, count - 2)
        if self.n_faces > self.max_faces:
            raise BadMesh(f"it is huge: {self.n_faces} faces, the limit is {self.max_faces}")
        position = self.numbers(attributes["POSITION"])
        weights = node.get("weights", self.tree["meshes"][mesh].get("weights", []))
        for weight, target in zip(weights, primitive.get("targets", []), strict=False):
            if weight and "POSITION" in target:
                position = position + weight * self.numbers(target["POSITION"])
        position = np.concatenate([position, np.ones((len(position), 1))], 1)
        position = self.skinned(position, attributes, node) if "skin" in node else position @ matrix.T
        index = np.arange(len(position))
        if "indices" in primitive:
            index = self.stored(primitive["indices"]).reshape(-1).astype(np.int64)
        faces = _triangles(index, mode)
        if len(faces) and faces.max() >= len(position):
            raise ValueError(f"corner {faces.max()} of {len(position)}")
        color = np.ones((len(position), 4), np.float32)
        if "COLOR_0" in attributes:
            stored = normalised(self.stored(attributes["COLOR_0"]))
            color[:, : stored.shape[1]] = np.nan_to_num(stored).clip(0, 1)
        part = Part(position[faces, :3], color[faces])
        if "material" in primitive:
            self.paint(part, self.tree["materials"][primitive["material"]], attributes, faces)
        else:
            part.color[..., 3] = 1
        return part

    def paint(self, part: Part, material: dict, attributes: dict, faces: np.ndarray) -> None:
        """Factor and texture of a material; alpha as its mode says."""
        old = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
        pbr = material.get("pbrMetallicRoughness", {}) if old is None else old
        names = ("baseColorFactor", "baseColorTexture") if old is None else ("diffuseFactor", "diffuseTexture")
        part.color *= np.asarray(pbr.get(names[0], (1, 1, 1, 1)), np.float32).clip(0, 1)
        mode = material.get("alphaMode", "OPAQUE")
        if mode == "MASK":
            part.cutoff = float(material.get("alphaCutoff", 0.5))
        opaque = mode == "OPAQUE" or (mode == "MASK" and part.cutoff <= 0)
        if any(material.get("emissiveFactor", ())):
            self.note("light that a material emits is not drawn")
        if names[1] in pbr:
            try:
                self.texture(part, pbr[names[1]], attributes, faces, opaque)
            except _Left as why:
                self.note(f"a texture is left out: {why}")
        if opaque:
            part.color[..., 3] = 1

    def texture(self, part: Part, info: dict, attributes: dict, faces: np.ndarray, opaque: bool) -> None:
        moved = info.get("extensions", {}).get("KHR_texture_transform", {})
        name = f"TEXCOORD_{moved.get('texCoord', info.get('texCoord', 0))}"
        if name not in attributes:
            raise _Left(f"the part has no {name}")
        texture = self.tree["textures"][info["index"]]
        sampler = self.tree["samplers"][texture["sampler"]] if "sampler" in texture else {}
        wrap = (WRAPS[sampler.get("wrapS", 10497)], WRAPS[sampler.get("wrapT", 10497)])
        part.texture = Texture(self.image(texture, opaque), wrap)
        uv = self.numbers(attributes[name])
        cos, sin = np.cos(moved.get("rotation", 0.0)), np.sin(moved.get("rotation", 0.0))
        uv = uv * moved.get("scale", (1, 1)) @ np.array([[cos, -sin], [sin, cos]]) + moved.get("offset", (0, 0))
        part.uv = uv[faces].astype(np.float32)

    def image(self, texture: dict, opaque: bool) -> np.ndarray:
        """The pixels of a texture, once for all parts that share them."""
        others = texture.get("extensions", {})
        sources = [others[name]["source"] for name in PICTURES if name in others]
        sources += [texture["source"]] if "source" in texture else []
        if not sources:
            raise _Left(f"its picture is in {' or '.join(others) or 'no file'}, which is not read")
        why = ""
        for source in sources:
            if (source, opaque) in self.images:
                return self.images[source, opaque]
            image = self.tree["images"][source]
            called = str(image.get("name") or image.get("uri", "")[:60] or f"image {source}")
            try:
                data = self.view(image["bufferView"]) if "bufferView" in image else self.file(image["uri"])
                self.images[source, opaque] = load_texture(data, opaque)
                return self.images[source, opaque]
            except ValueError as error:
                reason = error.why if isinstance(error, Unreadable) else error
                why = why or f"image {called} ({image.get('mimeType', 'of a file')}) cannot be read ({reason})"
        raise _Left(why)

    def skinned(self, position: np.ndarray, attributes: dict, node: dict) -> np.ndarray:
        """Section 3.7.3: where the joints take the vertices; the node's own place does not count."""
        skin = self.tree["skins"][node["skin"]]
        joints = np.stack([self.world.get(joint, np.eye(4)) for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            stored = self.numbers(skin["inverseBindMatrices"])[: len(joints)]
            joints = joints @ stored.reshape(-1, 4, 4).transpose(0, 2, 1)  # stored column by column
        moved = np.zeros_like(position)
        for which in range(8):
            if f"JOINTS_{which}" not in attributes or f"WEIGHTS_{which}" not in attributes:
                break
            joint = self.stored(attributes[f"JOINTS_{which}"]).astype(np.int64)
            weight = normalised(self.stored(attributes[f"WEIGHTS_{which}"]))
            for k in range(4):
                moved += weight[:, k, None] * (joints[joint[:, k]] @ position[..., None])[..., 0]
        if not np.abs(moved[:, 3]).min(initial=1) > 1e-6:
            raise ValueError("vertices of a skin without weights")
        return moved / moved[:, 3:]

    def stored(self, index: int) -> np.ndarray:
        """The numbers of an accessor, sparse ones included, in the type they are stored in."""
        accessor = self.tree["accessors"][index]
        count = accessor["count"]
        if count > 3 * self.max_faces + 3 and count > 3_000_000:
            raise BadMesh(f"it is huge: {count} numbers in one list")
        if "bufferView" in accessor:
            view = self.tree["bufferViews"][accessor["bufferView"]]
            packed = [name for name in PACKED if name in view.get("extensions", {})]
            if packed and self.tree["buffers"][view["buffer"]].get("extensions", {}).get(packed[0], {}).get("fallback"):
                raise _Left(f"it is compressed with {packed[0]}, which is not read")
            numbers = read_accessor(self.tree, self.buffer(view["buffer"]), index)
        else:
            numbers = np.zeros((count, WIDTHS[accessor["type"]]), DTYPES[accessor["componentType"]])
        if "sparse" in accessor:
            numbers = numbers.copy()
            some, width = accessor["sparse"], numbers.shape[1]
            n = some["count"]
            where = np.frombuffer(
                self.view(some["indices"]["bufferView"]),
                DTYPES[some["indices"]["componentType"]],
                n,
                some["indices"].get("byteOffset", 0),
            )
            values = np.frombuffer(
                self.view(some["values"]["bufferView"]), numbers.dtype, n * width, some["values"].get("byteOffset", 0)
            )
            numbers[where] = values.reshape(n, width)
        return numbers

    def numbers(self, index: int) -> np.ndarray:
        stored = self.stored(index)
        return normalised(stored) if self.tree["accessors"][index].get("normalized") else stored.astype(np.float64)

    def view(self, number: int) -> bytes:
        view = self.tree["bufferViews"][number]
        start = view.get("byteOffset", 0)
        data = self.buffer(view["buffer"])[start : start + view["byteLength"]]
        if start < 0 or len(data) != view["byteLength"]:
            raise ValueError(f"buffer view {number} is cut off")
        return data

    def buffer(self, number: int) -> bytes:
        if number not in self.buffers:
            uri = self.tree["buffers"][number].get("uri")
            if uri is None and (self.chunk is None or number):
                raise _Left(f"buffer {number} has no data")
            try:
                self.buffers[number] = self.file(uri) if uri is not None else self.chunk or b""
            except Unreadable as error:
                raise BadMesh(f"it cannot be read (its buffer {str(uri)[:60]} is {error.why})") from error
        return self.buffers[number]

    def file(self, uri: str) -> bytes:
        if uri.startswith("data:"):
            head, _, body = uri.partition(",")
            return base64.b64decode(unquote_to_bytes(body)) if head.endswith(";base64") else unquote_to_bytes(body)
        return companion(self.path.parent, unquote(uri))


def _local(node: dict) -> np.ndarray:
    """A node's own matrix (4, 4)."""
    if "matrix" in node:
        return np.asarray(node["matrix"], dtype=np.float64).reshape(4, 4).T  # stored column by column
    matrix = np.eye(4)
    x, y, z, w = np.asarray(node.get("rotation", (0, 0, 0, 1)), dtype=np.float64) / max(
        np.linalg.norm(node.get("rotation", (0, 0, 0, 1))), 1e-12
    )
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= np.asarray(node.get("scale", (1, 1, 1)), dtype=np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _triangles(index: np.ndarray, mode: int) -> np.ndarray:
    """(F, 3): each three, or a strip or fan; the winding is of no use here."""
    if mode == TRIANGLES:
        return index[: len(index) // 3 * 3].reshape(-1, 3)
    if mode == STRIP:
        return np.stack([index[:-2], index[1:-1], index[2:]], 1) if len(index) > 2 else index[:0].reshape(0, 3)
    return np.stack([np.full(max(0, len(index) - 2), index[0]), index[1:-1], index[2:]], 1)
