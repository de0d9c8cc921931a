"""Wavefront OBJ and its MTL, read and written: Kd times map_Kd times vertex colours, all in sRGB as programs show them.

What is named in a file and cannot be had (a material, a picture) is named in `notes` and left out.
"""

import re
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jointdreamer.formats.surface import (
    GREY,
    LARGEST_MESH,
    BadMesh,
    Part,
    Texture,
    companion,
    decode,
    face_colors,
    load_texture,
    srgb_to_linear,
    unit,
)
from jointdreamer.reading import Unreadable, read_bytes

# options of a map and how many words follow; of -o, -s and -t the second and third may be missing
OPTIONS = {"blendu": 1, "blendv": 1, "boost": 1, "mm": 2, "o": 3, "s": 3, "t": 3, "texres": 1, "clamp": 1}
OPTIONS |= {"bm": 1, "imfchan": 1, "type": 1, "cc": 1, "colorspace": 1}
MATERIAL = "surface"  # as it is written
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


@dataclass
class Material:
    color: np.ndarray | None = None  # (3,) sRGB
    opacity: float = 1.0
    texture: Texture | None = None
    scale: np.ndarray | None = None  # (2,) of uv
    offset: np.ndarray | None = None


def read(path: Path, max_faces: int, notes: list[str]) -> list[Part]:
    """The surfaces of an .obj, one part for each material; y up. Raises: BadMesh, Unreadable."""
    try:
        return _read(path, max_faces, notes)
    except Unreadable:
        raise
    except (ValueError, IndexError, OverflowError) as error:
        raise BadMesh(f"it cannot be read ({' '.join(str(error).split())[:120]})") from error


def _read(path: Path, max_faces: int, notes: list[str]) -> list[Part]:
    text = decode(read_bytes(path, LARGEST_MESH)).replace("\\\r\n", " ").replace("\\\n", " ").replace("\t", " ")
    position, color, uv = array("d"), array("d"), array("d")
    materials: dict[str, Material] = {}
    corners: dict[str, tuple[array, array]] = {}  # of each material: of each corner, its vertex, and its uv or -1
    now = corners.setdefault("", (array("q"), array("q")))
    n_faces = 0
    for line in text.splitlines():
        key, _, rest = line.strip().partition(" ")
        if key == "v":
            numbers = [float(word) for word in rest.split()]
            position.extend(numbers[:3] if len(numbers) > 2 else [np.nan] * 3)
            color.extend(numbers[3:6] if len(numbers) > 5 else [np.nan] * 3)  # with four, the last is a weight
        elif key == "vt":
            words = rest.split()
            uv.extend((float(words[0]), float(words[1]) if len(words) > 1 else 0.0))
        elif key == "f":
            found = [_corner(word, len(position) // 3, len(uv) // 2) for word in rest.partition("#")[0].split()]
            for k in range(1, len(found) - 1):  # a polygon as a fan
                for vertex, mapped in (found[0], found[k], found[k + 1]):
                    now[0].append(vertex)
                    now[1].append(mapped)
            n_faces += max(0, len(found) - 2)
            if n_faces > max_faces:
                raise BadMesh(f"it is huge: {n_faces} faces, the limit is {max_faces}")
        elif key == "usemtl":
            now = corners.setdefault(rest.strip(), (array("q"), array("q")))
        elif key == "mtllib":
            _read_libraries(path.parent, rest.strip(), materials, notes)
        elif key in ("curv", "curv2", "surf"):
            note = "free-form curves and surfaces are not read"
            notes += [note] if note not in notes else []
    vertices, mapped = np.array(position).reshape(-1, 3), np.array(uv, np.float32).reshape(-1, 2)
    painted = np.array(color).reshape(-1, 3)
    painted = None if np.isnan(painted).all() else unit(np.nan_to_num(painted, nan=1.0))
    parts = []
    for name, (of_vertex, of_uv) in corners.items():
        if not len(of_vertex):
            continue
        faces, uvs = np.array(of_vertex).reshape(-1, 3), np.array(of_uv).reshape(-1, 3)
        if faces.max() >= len(vertices) or uvs.max() >= len(mapped) or faces.min() < 0:
            raise BadMesh("it is broken (a face names a corner that is not there)")
        if name and name not in materials:
            notes.append(f"material {name[:60]} is not there")
        material = materials.get(name, Material())
        textured = material.texture is not None and bool((uvs >= 0).all())
        if material.texture is not None and not textured:
            notes.append(f"material {name[:60]} has a texture, its faces have no texture coordinates")
        parts.append(_part(vertices[faces], None if painted is None else painted[faces], material, textured))
        if textured:
            moved = mapped[uvs]
            moved = moved if material.scale is None else moved * material.scale
            moved = moved if material.offset is None else moved + material.offset
            parts[-1].uv = np.stack([moved[..., 0], 1 - moved[..., 1]], -1).astype(np.float32)
    return parts


def _part(corners: np.ndarray, painted: np.ndarray | None, material: Material, textured: bool) -> Part:
    factor = material.color
    if textured and (factor is None or not factor.any()):
        factor = np.ones(3)  # exporters that write a map leave Kd out, or black
    if factor is None:
        factor = np.full(3, GREY if painted is None else 1.0)
    color = face_colors(len(corners), factor)
    if painted is not None:
        color[..., :3] *= srgb_to_linear(painted)
    color[..., 3] = material.opacity
    return Part(corners, color, texture=material.texture if textured else None)


def _corner(word: str, n_vertices: int, n_uv: int) -> tuple[int, int]:
    """`7/3/1`, `7//1`, `-1`: (vertex, uv or -1), from 0; negative ones count back from the last that was read."""
    words = word.split("/")
    vertex = int(words[0])
    mapped = int(words[1]) if len(words) > 1 and words[1] else 0
    vertex = vertex - 1 if vertex > 0 else n_vertices + vertex if vertex else -1
    return vertex, mapped - 1 if mapped > 0 else max(-1, n_uv + mapped) if mapped else -1


def _read_libraries(folder: Path, rest: str, materials: dict[str, Material], notes: list[str]) -> None:
    """What mtllib names: one file, whose name may have spaces, or several."""
    missing = ""
    for names in ([rest], rest.split()):
        texts = []
        for name in names:
            try:
                texts.append(decode(companion(folder, name)))
            except Unreadable as error:
                missing = f"material file {name[:60]} is {error.why}"
        for text in texts:
            _read_materials(folder, text, materials, notes)
        if len(texts) == len(names):
            return
    notes.append(missing)


def _read_materials(folder: Path, text: str, materials: dict[str, Material], notes: list[str]) -> None:
    pixels: dict[str, np.ndarray] = {}
    now = Material()
    for line in text.replace("\t", " ").splitlines():
        key, _, rest = line.strip().partition(" ")
        key, rest = key.lower(), rest.strip()
        if key == "newmtl":
            now = materials[rest] = Material()
        elif key == "kd":
            words = rest.split()
            if words and all(NUMBER.match(word) for word in words[:3]):
                numbers = np.array([float(word) for word in words[:3]])
                now.color = unit(numbers if len(numbers) == 3 else np.full(3, numbers[0]))
            else:
                notes.append(f"Kd {rest[:30]} is not read")
        elif key == "d" and NUMBER.match(rest.split()[-1] if rest else ""):
            now.opacity = min(1.0, max(0.0, float(rest.split()[-1])))
        elif key == "map_d":
            notes.append(f"map_d {rest[:60]} (where it is transparent) is not read")
        elif key == "map_kd":
            picture, options = _map(rest)
            try:
                if picture not in pixels:
                    pixels[picture] = load_texture(companion(folder, picture), opaque=True)
                wrap = "clamp" if options.get("clamp", [""])[0].lower() == "on" else "repeat"
                now.texture = Texture(pixels[picture], (wrap, wrap))
                now.scale, now.offset = (_pair(options.get(name), one) for name, one in (("s", 1.0), ("o", 0.0)))
            except ValueError as error:
                reason = error.why if isinstance(error, Unreadable) else error
                notes.append(f"a texture is left out: {picture[:60]} cannot be read ({reason})")


def _map(rest: str) -> tuple[str, dict[str, list[str]]]:
    """`-s 2 2 1 -clamp on my picture.png` -> the name, which may have spaces, and the options."""
    options: dict[str, list[str]] = {}
    while match := re.match(r"-(\w+)\s+", rest):
        name = match[1].lower()
        if name not in OPTIONS:
            break
        rest, values = rest[match.end() :], []
        for k in range(OPTIONS[name]):
            word = rest.split(maxsplit=1)
            if not word or (k and name in "ost" and not NUMBER.match(word[0])):
                break
            values.append(word[0])
            rest = word[1] if len(word) > 1 else ""
        options[name] = values
    return rest.strip(), options


def _pair(words: list[str] | None, default: float) -> np.ndarray | None:
    if not words:
        return None
    numbers = [float(word) for word in words[:2]]
    return np.array([numbers[0], numbers[1] if len(numbers) > 1 else default])


def obj_text(
    vertices: np.ndarray,  # (N, 3) y up
    normals: np.ndarray,  # (N, 3)
    faces: np.ndarray,  # (F, 3)
    uv: np.ndarray,  # (M, 2) v up
    mapped: np.ndarray,  # (F, 3) rows of uv
    library: str,  # name of the MTL beside it
) -> str:
    """A textured OBJ. Vertices are shared across the seams of the map: what is closed stays closed."""
    lines = [f"mtllib {library}", f"usemtl {MATERIAL}"]
    for key, rows in (("v", vertices), ("vn", normals), ("vt", uv)):
        form = " ".join([key, *["{:.8g}"] * rows.shape[1]])
        lines += [form.format(*row) for row in rows.tolist()]
    corners = np.stack([faces, mapped, faces], -1).reshape(len(faces), 9) + 1  # v/vt/vn
    lines += ["f {}/{}/{} {}/{}/{} {}/{}/{}".format(*row) for row in corners.tolist()]
    return "\n".join(lines) + "\n"


def mtl_text(picture: str) -> str:
    """The MTL of `obj_text`: matt, and as bright as the picture (some programs multiply it by Kd)."""
    return f"newmtl {MATERIAL}\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nNs 0\nd 1\nillum 1\nmap_Kd {picture}\n"
