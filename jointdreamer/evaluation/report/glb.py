"""A GLB made small enough to be sent thirty times in one page: quantised attributes, and faces only up to a limit.

Knows the meshes that `jointdreamer.export.write_mesh` writes (one triangle list with vertex colours); any other GLB
that is whole comes back as it is. The container is that of glTF 2.0 section 4.4, the number formats those of the
extension KHR_mesh_quantization, which needs no decoder: a browser hands the integers to the GPU as they are.
"""

import json
import struct
from typing import Any

import numpy as np
import trimesh
from scipy.spatial import KDTree

from jointdreamer.errors import UserError

MAGIC, JSON_CHUNK, BINARY_CHUNK = b"glTF", b"JSON", b"BIN\0"
DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
CODES = {dtype: code for code, dtype in DTYPES.items()}


def read_glb(data: bytes) -> tuple[dict, bytes]:
    """The JSON tree and the binary chunk of a GLB. Raises ValueError if it is no whole GLB of version 2."""
    if len(data) < 20 or data[:4] != MAGIC:
        raise ValueError("it does not begin as a GLB does")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2 or length != len(data):
        raise ValueError(f"its header says version {version} and {length} bytes, the file has {len(data)}")
    chunks, at = {}, 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, at)
        if at + 8 + size > length:
            raise ValueError("a chunk is cut off")
        chunks.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size
    tree = json.loads(chunks.get(JSON_CHUNK, b""))
    if not isinstance(tree, dict):
        raise ValueError("its JSON is no object")
    return tree, chunks.get(BINARY_CHUNK, b"")


def read_accessor(tree: dict, binary: bytes, index: int) -> np.ndarray:
    """The numbers of an accessor, (count, width), in the type they are stored in: normalised ones are not divided.

    Raises: LookupError, TypeError or ValueError where the file says what cannot be.
    """
    accessor = tree["accessors"][index]
    view = tree["bufferViews"][accessor["bufferView"]]
    dtype, width = np.dtype(DTYPES[accessor["componentType"]]), WIDTHS[accessor["type"]]
    start, stride = view.get("byteOffset", 0) + accessor.get("byteOffset", 0), view.get("byteStride", 0)
    shape = (accessor["count"], width)
    strides = (stride or dtype.itemsize * width, dtype.itemsize)
    return np.ndarray(shape, dtype, binary, start, strides)


def thin_glb(data: bytes, max_faces: int = 40_000) -> bytes:
    """The same object in fewer bytes, of `max_faces` triangles or fewer.

    Positions become 16-bit and normals 8-bit integers (an error of a 65,000th of the object's size, and of half a
    degree); vertex colours stay bytes, linear as glTF wants. Simplified surfaces take the nearest old vertex's colour.
    Returns `data` itself for a GLB that is whole but not one triangle list with vertex colours (a textured one, say).

    Raises: UserError for a damaged GLB or one without a triangle.
    """
    try:
        tree, binary = read_glb(data)
        primitives = [primitive for mesh in tree.get("meshes", []) for primitive in mesh["primitives"]]
        if not primitives:
            raise ValueError("it holds no mesh")
        if len(primitives) > 1 or not ours(tree, primitives[0]):
            return data
        attributes = primitives[0]["attributes"]
        vertices = read_accessor(tree, binary, attributes["POSITION"]).astype(np.float64)
        faces = read_accessor(tree, binary, primitives[0]["indices"]).reshape(-1, 3).astype(np.int64)
        color = read_accessor(tree, binary, attributes["COLOR_0"])
        if not len(faces) or not np.isfinite(vertices).all() or faces.max() >= len(vertices):
            raise ValueError("it holds no triangles, or ones with corners that are missing or not finite")
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise UserError(
            f"damaged mesh: wanted a GLB, but {error}; export it anew (the command of the run again)"
        ) from error
    if len(color) != len(vertices) or color.dtype != np.uint8:
        return data
    if len(faces) > max_faces:
        vertices, faces, color = simplify(vertices, faces, color, max_faces)
    normals = np.asarray(trimesh.Trimesh(vertices, faces, process=False).vertex_normals)
    return write_quantised(vertices, normals, color, faces)


def ours(tree: dict, primitive: dict) -> bool:
    """Whether the primitive is what `write_mesh` writes: indexed triangles, colours at the vertices, nothing placed."""
    placed = any(
        key in node for node in tree.get("nodes", []) for key in ("matrix", "scale", "rotation", "translation")
    )
    return (
        primitive.get("mode", 4) == 4
        and "indices" in primitive
        and {"POSITION", "COLOR_0"} <= set(primitive["attributes"]) <= {"POSITION", "COLOR_0", "NORMAL"}
        and not (placed or tree.get("textures") or tree.get("extensionsRequired") or tree.get("animations"))
    )


def simplify(
    vertices: np.ndarray, faces: np.ndarray, color: np.ndarray, max_faces: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most `max_faces` triangles; each new vertex has the colour of the old one nearest to it."""
    import fast_simplification

    found = fast_simplification.simplify(vertices, faces.astype(np.int32), target_count=max_faces)
    points, triangles = found[:2]
    mesh = trimesh.Trimesh(points, triangles, process=False)
    mesh.remove_unreferenced_vertices()
    points = np.asarray(mesh.vertices)
    return points, np.asarray(mesh.faces), color[KDTree(vertices).query(points)[1]]


def write_quantised(vertices: np.ndarray, normals: np.ndarray, color: np.ndarray, faces: np.ndarray) -> bytes:
    """vertices, normals: (M, 3) floats. color: (M, 3 or 4) linear bytes. faces: (T, 3). A GLB with a matt material."""
    center = (vertices.min(0) + vertices.max(0)) / 2
    scale = float(np.abs(vertices - center).max()) or 1.0  # one for all axes: normals need no correction
    position = np.round((vertices - center) / scale * 32767).astype("<i2")
    normal = np.round(np.clip(normals, -1, 1) * 127).astype("<i1")
    index = faces.reshape(-1, 1).astype("<u2" if len(vertices) < 65535 else "<u4")
    buffer = bytearray()
    views: list[dict] = []
    accessors: list[dict] = []

    def add(array: np.ndarray, kind: str, normalized: bool = False, **more: Any) -> None:
        width = array.shape[1] * array.dtype.itemsize
        # attributes start at multiples of four bytes (section 3.6.2.4): short rows are filled up
        stride = width + -width % 4 if kind != "SCALAR" else width
        rows = np.zeros((len(array), stride), np.uint8)
        rows[:, :width] = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), width)
        target = 34963 if kind == "SCALAR" else 34962
        view = {"buffer": 0, "byteOffset": len(buffer), "byteLength": rows.size, "target": target}
        views.append(view if kind == "SCALAR" else {**view, "byteStride": stride})
        code = CODES[array.dtype.str.replace("|", "<")]
        accessor = {"bufferView": len(views) - 1, "componentType": code, "count": len(array), "type": kind, **more}
        accessors.append({**accessor, "normalized": True} if normalized else accessor)
        buffer.extend(rows.tobytes())
        buffer.extend(bytes(-len(buffer) % 4))

    add(index, "SCALAR")
    extent = {"min": position.min(0).tolist(), "max": position.max(0).tolist()}
    add(position, "VEC3", normalized=True, **extent)
    add(color.astype("u1"), f"VEC{color.shape[1]}", normalized=True)
    add(normal, "VEC3", normalized=True)
    primitive = {"attributes": {"POSITION": 1, "COLOR_0": 2, "NORMAL": 3}, "indices": 0, "mode": 4, "material": 0}
    tree = {
        "asset": {"version": "2.0", "generator": "jointdreamer"},
        "extensionsUsed": ["KHR_mesh_quantization"],
        "extensionsRequired": ["KHR_mesh_quantization"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "scale": [scale] * 3, "translation": center.tolist()}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(buffer)}],
    }
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(buffer)
    header = MAGIC + struct.pack("<II", 2, length) + struct.pack("<I", len(text)) + JSON_CHUNK
    return header + text + struct.pack("<I", len(buffer)) + BINARY_CHUNK + bytes(buffer)
