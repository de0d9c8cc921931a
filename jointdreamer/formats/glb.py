"""The container of glTF 2.0: a JSON tree, a binary chunk, and the numbers in it; read and written."""

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

PNG = b"\x89PNG"
MAGIC, JSON_CHUNK, BINARY_CHUNK = b"glTF", b"JSON", b"BIN\0"
DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
CODES = {dtype: code for code, dtype in DTYPES.items()}
TRIANGLES = 4  # the mode of a list of triangles
VERTICES, INDICES = 34962, 34963  # what a buffer view is for
LINEAR, TRILINEAR, CLAMP = 9729, 9987, 33071  # of a sampler: magnified, made smaller, beyond the edges


def read_glb(data: bytes) -> tuple[dict, bytes]:
    """The JSON tree and the binary chunk of a GLB. Raises ValueError if it is no whole GLB of version 2."""
    if len(data) < 20 or data[:4] != MAGIC:
        raise ValueError("it does not begin as a GLB does")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2 or length > len(data):  # what follows is no part of it
        raise ValueError(f"its header says version {version} and {length} bytes, the file has {len(data)}")
    chunks, at = {}, 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, at)
        if at + 8 + size > length:
            raise ValueError("a chunk is cut off")
        chunks.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size
    tree = json.loads(chunks.get(JSON_CHUNK, b"").rstrip(b"\0"))
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


def normalised(stored: np.ndarray) -> np.ndarray:
    """Integers that stand for [0, 1] or [-1, 1] -> float64 (section 3.6.2.2); floats as they are."""
    if stored.dtype.kind == "f":
        return stored.astype(np.float64)
    return np.maximum(stored / np.iinfo(stored.dtype).max, -1.0)


def write_glb(
    attributes: dict[str, np.ndarray],  # name -> (M, width): integers are normalised; POSITION and others
    faces: np.ndarray,  # (F, 3) of 16 or 32 unsigned bits
    node: dict | None = None,
    extensions: Sequence[str] = (),
    picture: bytes | None = None,  # a PNG or JPEG, sRGB, for TEXCOORD_0, which has v down
    double_sided: bool = False,
) -> bytes:
    """A GLB of one triangle list with a matt material (without one its default is metal).

    COLOR_0 wants linear RGB. In floats or 16 bits: 8 linear bits leave three levels of the darkest 25 that sRGB has.
    """
    buffer = bytearray()
    views: list[dict] = []
    accessors: list[dict] = []

    def add(array: np.ndarray, kind: str, target: int, **more: Any) -> int:
        width = array.shape[1] * array.dtype.itemsize
        # attributes start at multiples of four bytes (section 3.6.2.4): short rows are filled up
        stride = width + -width % 4 if kind != "SCALAR" else width
        rows = np.zeros((len(array), stride), np.uint8)
        rows[:, :width] = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), width)
        view = {"buffer": 0, "byteOffset": len(buffer), "byteLength": rows.size, "target": target}
        views.append(view if kind == "SCALAR" else {**view, "byteStride": stride})
        code = CODES[array.dtype.str.replace("|", "<")]
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": code, "count": len(array), "type": kind, **more}
        )
        buffer.extend(rows.tobytes())
        buffer.extend(bytes(-len(buffer) % 4))
        return len(accessors) - 1

    indices = add(faces.reshape(-1, 1), "SCALAR", INDICES)
    numbers = {}
    for name, array in attributes.items():
        more: dict[str, Any] = {} if array.dtype.kind == "f" else {"normalized": True}
        if name == "POSITION":
            more |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        numbers[name] = add(array, f"VEC{array.shape[1]}", VERTICES, **more)
    material: dict[str, Any] = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}
    if double_sided:
        material["doubleSided"] = True
    painted: dict[str, Any] = {}
    if picture is not None:
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
        sampler = {"magFilter": LINEAR, "minFilter": TRILINEAR, "wrapS": CLAMP, "wrapT": CLAMP}
        painted = {
            "textures": [{"sampler": 0, "source": 0}],
            "images": [{"mimeType": "image/png" if picture[:4] == PNG else "image/jpeg", "bufferView": len(views)}],
            "samplers": [sampler],
        }
        views.append({"buffer": 0, "byteOffset": len(buffer), "byteLength": len(picture)})
        buffer.extend(picture + bytes(-len(picture) % 4))
    tree: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "jointdreamer"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, **(node or {})}],
        "meshes": [{"primitives": [{"attributes": numbers, "indices": indices, "mode": TRIANGLES, "material": 0}]}],
        "materials": [material],
        **painted,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(buffer)}],
    }
    if extensions:
        tree |= {"extensionsUsed": list(extensions), "extensionsRequired": list(extensions)}
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    header = MAGIC + struct.pack("<II", 2, 12 + 8 + len(text) + 8 + len(buffer))
    chunk = struct.pack("<I", len(text)) + JSON_CHUNK + text
    return header + chunk + struct.pack("<I", len(buffer)) + BINARY_CHUNK + bytes(buffer)
