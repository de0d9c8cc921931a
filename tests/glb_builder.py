"""A binary glTF put together by hand, independent of the code that is tested."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SQUARE = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)  # faces the file's +z
UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
CODES = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}


class GlbBuilder:
    def __init__(self):
        self.tree: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}
        self.binary = b""
        self.second_buffer: dict | None = None  # for a .gltf

    def add(self, kind: str, **entry) -> int:
        self.tree.setdefault(kind, []).append(entry)
        return len(self.tree[kind]) - 1

    def view(self, data: bytes) -> int:
        self.binary += bytes(-len(self.binary) % 4)
        number = self.add("bufferViews", buffer=0, byteOffset=len(self.binary), byteLength=len(data))
        self.binary += data
        return number

    def accessor(self, array, **more) -> int:
        array = np.ascontiguousarray(array)
        kind = "SCALAR" if array.ndim == 1 else {16: "MAT4"}.get(array.shape[1], f"VEC{array.shape[1]}")
        entry = {"componentType": CODES[array.dtype.str[1:]], "count": len(array), "type": kind, **more}
        return self.add("accessors", bufferView=self.view(array.tobytes()), **entry)

    def picture(self, pixels, kind="PNG", **more) -> int:
        """An image of an array, a PIL image or bytes."""
        if not isinstance(pixels, bytes):
            image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
            stream = io.BytesIO()
            image.save(stream, kind)
            pixels = stream.getvalue()
        return self.add("images", bufferView=self.view(pixels), **{"mimeType": f"image/{kind.lower()}", **more})

    def texture(self, pixels, **more) -> int:
        return self.add("textures", source=self.picture(pixels), **more)

    def part(self, material: dict | None = None, **attributes) -> dict:
        """A square as a primitive."""
        attributes = {"POSITION": self.accessor(SQUARE)} | attributes
        part = {"attributes": attributes, "indices": self.accessor(np.array([0, 1, 2, 0, 2, 3], np.uint16))}
        return part if material is None else {**part, "material": self.add("materials", **material)}

    def place(self, *parts: dict, **node) -> "GlbBuilder":
        number = self.add("nodes", mesh=self.add("meshes", primitives=list(parts)), **node)
        self.tree["scenes"][0]["nodes"].append(number)
        return self

    def textured(self, pixels, info=None, pbr=None, material=None, uv=UV, texture=None, **attributes) -> "GlbBuilder":
        """A square with a texture."""
        skin = {"baseColorTexture": {"index": self.texture(pixels, **(texture or {})), **(info or {})}, **(pbr or {})}
        mapped = {"TEXCOORD_0": self.accessor(np.asarray(uv, np.float32)), **attributes}
        return self.place(self.part({"pbrMetallicRoughness": skin, **(material or {})}, **mapped))

    def save(self, path: Path) -> Path:
        self.tree["buffers"] = [{"byteLength": len(self.binary)}]
        text = json.dumps(self.tree).encode()
        text += b" " * (-len(text) % 4)
        binary = self.binary + bytes(-len(self.binary) % 4)
        body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)
        return path


def plain(*color: int) -> np.ndarray:
    """A picture of one colour, 8 x 8."""
    return np.tile(np.array(color, np.uint8), (8, 8, 1))
