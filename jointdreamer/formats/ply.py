"""PLY: plain or binary, vertex or face colours of any type in sRGB, texture coordinates of vertices or faces.

It has no axes of its own: y up, as in OBJ and glTF, unless a comment says `z up`, as those that this program writes do.
Their front is -y, as Blender has it of every other format; it was +x until 2026-11-30.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jointdreamer.formats.surface import (
    LARGEST_MESH,
    WORLD_TO_Y_UP,
    Y_UP_TO_Z_UP,
    BadMesh,
    Part,
    Texture,
    companion,
    face_colors,
    load_texture,
    unit,
)
from jointdreamer.reading import Unreadable, read_bytes

Z_UP = "comment z up, front -y"
TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"}
TYPES |= {"double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
TYPES |= {"float32": "f4", "float64": "f8", "int64": "i8", "uint64": "u8"}
COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
COORDINATES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))
CORNERS = ("vertex_indices", "vertex_index")


@dataclass
class _Property:
    name: str
    dtype: str
    length: str | None = None  # of a list: the type of its length


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)


def mark_z_up(data: bytes) -> bytes:
    """The PLY with the comment that says in which axes it lies."""
    first, second, rest = data.split(b"\n", 2)
    return b"\n".join([first, second, Z_UP.encode(), rest])


def read(path: Path, max_faces: int, notes: list[str]) -> list[Part]:
    """The surface of a .ply; y up. Raises: BadMesh, Unreadable."""
    try:
        return _read(path, max_faces, notes)
    except Unreadable:
        raise
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, LookupError) else str(error)
        raise BadMesh(f"it cannot be read ({' '.join(reason.split())[:120]})") from error


def _read(path: Path, max_faces: int, notes: list[str]) -> list[Part]:
    kind, elements, comments, body = _header(read_bytes(path, LARGEST_MESH))
    table: dict[str, dict[str, np.ndarray | list[np.ndarray]]] = {}
    counts = {element.name: element.count for element in elements}
    if counts.get("face", 0) > max_faces:
        raise BadMesh(f"it is huge: {counts['face']} faces, the limit is {max_faces}")
    if "tristrips" in counts:
        notes.append("triangle strips are not read")
    types = {(element.name, prop.name): np.dtype(prop.dtype) for element in elements for prop in element.properties}
    order = ">" if kind == "binary_big_endian" else "<"
    if kind == "ascii":  # as if it were binary, of doubles only
        body = np.array(body.split(), np.float64).tobytes()
    at = 0
    for element in elements:
        table[element.name], at = _rows(body, at, element, order, kind == "ascii")
    vertex, face = table.get("vertex", {}), table.get("face", {})
    listed = next((face[name] for name in CORNERS if name in face), None)
    if listed is None or not counts.get("face"):
        raise BadMesh("it is empty: no faces")
    points = np.stack([np.asarray(vertex[axis], dtype=np.float64) for axis in "xyz"], 1)
    faces, of_face, of_corner = _fans(listed)
    if len(faces) > max_faces:
        raise BadMesh(f"it is huge: {len(faces)} faces, the limit is {max_faces}")
    if len(faces) and not 0 <= faces.min() <= faces.max() < len(points):
        raise BadMesh("it is broken (a face names a corner that is not there)")
    if axes := next((comment for comment in comments if "z up" in comment), None):
        y_up = WORLD_TO_Y_UP if "front +x" in axes else np.linalg.inv(Y_UP_TO_Z_UP)
        points = points @ y_up[:3, :3].T

    def colors(name: str) -> np.ndarray | None:
        for names in COLORS:
            if all(channel in table.get(name, {}) for channel in names):
                stored = np.stack([np.asarray(table[name][channel]) for channel in names], 1)
                return unit(stored.astype(types[name, names[0]]))
        return None

    uv = _coordinates(vertex, face, faces, of_face, of_corner)
    texture = None
    for name in [comment[11:].strip() for comment in comments if comment.lower().startswith("texturefile")]:
        if texture is not None:
            notes.append(f"a texture is left out: {name[:60]}, only the first is read")
            continue
        try:
            if uv is None:
                raise ValueError("no texture coordinates")
            texture = Texture(load_texture(companion(path.parent, name), opaque=True))
        except ValueError as error:
            reason = error.why if isinstance(error, Unreadable) else error
            notes.append(f"a texture is left out: {name[:60]} cannot be read ({reason})")
    of_vertices, of_faces = colors("vertex"), colors("face")
    if of_vertices is not None:
        color = face_colors(len(faces), of_vertices[faces])
    elif of_faces is not None:
        color = face_colors(len(faces), of_faces[of_face][:, None])
    else:
        color = face_colors(len(faces), 1.0) if texture is not None else face_colors(len(faces))
    return [Part(points[faces], color, None if texture is None else uv, texture)]


def _header(data: bytes) -> tuple[str, list[_Element], list[str], bytes]:
    """The kind, the elements, the comments (without the word), and what follows."""
    kind, elements, comments, at = "", [], [], 0
    if data[:3] != b"ply":
        raise ValueError("it does not begin as a PLY does")
    while True:
        end = data.find(b"\n", at)
        if end < 0:
            raise ValueError("its header has no end")
        line, at = data[at:end].decode("utf-8", "replace").strip(), end + 1
        words = line.split()
        if line == "end_header":
            break
        if words[:1] == ["format"]:
            kind = words[1]
        elif words[:1] in (["comment"], ["obj_info"]):
            comments.append(line.partition(" ")[2].strip())
        elif words[:1] == ["element"]:
            elements.append(_Element(words[1], int(words[2])))
        elif words[:1] == ["property"]:
            length = TYPES[words[2]] if words[1] == "list" else None
            elements[-1].properties.append(_Property(words[-1], TYPES[words[-2]], length))
    if kind not in ("ascii", "binary_little_endian", "binary_big_endian") or any(e.count < 0 for e in elements):
        raise ValueError(f"format {kind or 'missing'}")
    return kind, elements, comments, data[at:]


def _rows(
    body: bytes, at: int, element: _Element, order: str, doubles: bool
) -> tuple[dict[str, np.ndarray | list[np.ndarray]], int]:
    """The columns of an element, a list's as (count, n) where all are of one length, else one by one; and its end."""

    def typed(dtype: str) -> np.dtype:
        return np.dtype("<f8" if doubles else order + dtype)

    if not element.count:
        return {}, at
    # as if all rows were like the first: true of most files, and then it is one array
    fields, first = [], at
    for prop in element.properties:
        if prop.length is None:
            fields.append((prop.name, typed(prop.dtype)))
            first += typed(prop.dtype).itemsize
        else:
            n = int(np.frombuffer(body, typed(prop.length), 1, first)[0])
            fields += [(f"n {prop.name}", typed(prop.length)), (prop.name, typed(prop.dtype), (n,))]
            first += typed(prop.length).itemsize + n * typed(prop.dtype).itemsize
    row = np.dtype(fields)
    lists = [prop.name for prop in element.properties if prop.length is not None]
    if at + row.itemsize * element.count <= len(body):
        rows = np.frombuffer(body, row, element.count, at)
        if all((rows[f"n {name}"] == row[name].shape[0]).all() for name in lists):
            return {prop.name: rows[prop.name] for prop in element.properties}, at + rows.nbytes
    if not lists:
        raise ValueError(f"it is cut off in its element {element.name}")
    columns: dict[str, list[np.ndarray]] = {prop.name: [] for prop in element.properties}
    for _ in range(element.count):
        for prop in element.properties:
            n = 1
            if prop.length is not None:
                n = int(np.frombuffer(body, typed(prop.length), 1, at)[0])
                at += typed(prop.length).itemsize
            columns[prop.name].append(np.frombuffer(body, typed(prop.dtype), n, at))
            at += n * typed(prop.dtype).itemsize
    found: dict[str, np.ndarray | list[np.ndarray]] = {}
    for prop in element.properties:
        found[prop.name] = np.concatenate(columns[prop.name]) if prop.length is None else columns[prop.name]
    return found, at


def _fans(listed: np.ndarray | list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Polygons as triangles (F, 3); the polygon of each (F,); and which of its corners they are (F, 3)."""
    if isinstance(listed, np.ndarray):
        n = listed.shape[1]
        corner = np.array([(0, k, k + 1) for k in range(1, n - 1)], np.int64).reshape(-1, 3)
        polygon = np.repeat(np.arange(len(listed)), len(corner))
        corner = np.tile(corner, (len(listed), 1))
        return listed[polygon[:, None], corner].astype(np.int64), polygon, corner
    fans = [(i, (0, k, k + 1)) for i, corners in enumerate(listed) for k in range(1, len(corners) - 1)]
    polygon = np.array([i for i, _ in fans], np.int64)
    corner = np.array([which for _, which in fans], np.int64).reshape(-1, 3)
    start = np.cumsum([0, *(len(corners) for corners in listed)])[:-1]
    return np.concatenate(listed)[start[polygon][:, None] + corner].astype(np.int64), polygon, corner


def _coordinates(vertex: dict, face: dict, faces: np.ndarray, of_face: np.ndarray, of_corner: np.ndarray):
    """Texture coordinates (F, 3, 2), v down, or None."""
    stored = None
    if "texcoord" in face:
        listed = face["texcoord"]
        if isinstance(listed, np.ndarray):
            stored = listed.reshape(len(listed), -1, 2)[of_face[:, None], of_corner]
        else:
            start = np.cumsum([0, *(len(row) // 2 for row in listed)])[:-1]
            stored = np.concatenate(listed).reshape(-1, 2)[start[of_face][:, None] + of_corner]
    for names in COORDINATES:
        if stored is None and all(name in vertex for name in names):
            stored = np.stack([np.asarray(vertex[name]) for name in names], 1)[faces]
    if stored is None:
        return None
    stored = np.asarray(stored, dtype=np.float32)
    return np.stack([stored[..., 0], 1 - stored[..., 1]], -1)
