"""A GLB made small enough to be sent thirty times in one page: quantised attributes, and faces only up to a limit.

Knows the meshes that `scenes.export.write_mesh` writes (one triangle list with vertex colours); any other GLB
that is whole comes back as it is. The container is that of glTF 2.0 section 4.4, the number formats those of the
extension KHR_mesh_quantization, which needs no decoder: a browser hands the integers to the GPU as they are.
"""

import struct

import numpy as np
import trimesh
from scipy.spatial import KDTree

from jointdreamer.errors import UserError
from jointdreamer.formats.glb import normalised, read_accessor, read_glb, write_glb


def thin_glb(data: bytes, max_faces: int = 40_000) -> bytes:
    """The same object in fewer bytes, of `max_faces` triangles or fewer.

    Positions become 16-bit and normals 8-bit integers (an error of a 65,000th of the object's size, and of half a
    degree); vertex colours 16-bit ones, linear as glTF wants. Simplified surfaces take the nearest old vertex's colour.
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
    if len(color) != len(vertices) or color.dtype not in (np.uint8, np.uint16, np.float32):
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
    """vertices, normals: (M, 3) floats. color: (M, 3 or 4) linear. faces: (T, 3). A GLB with a matt material."""
    center = (vertices.min(0) + vertices.max(0)) / 2
    scale = float(np.abs(vertices - center).max()) or 1.0  # one for all axes: normals need no correction
    position = np.round((vertices - center) / scale * 32767).astype("<i2")
    normal = np.round(np.clip(normals, -1, 1) * 127).astype("<i1")
    attributes = {"POSITION": position, "COLOR_0": to_short(color), "NORMAL": normal}
    node = {"scale": [scale] * 3, "translation": center.tolist()}
    faces = faces.astype("<u2" if len(vertices) < 65535 else "<u4")
    return write_glb(attributes, faces, node, ("KHR_mesh_quantization",))


def to_short(color: np.ndarray) -> np.ndarray:
    """Linear colours, as GLB stores them, as 16-bit integers."""
    return np.round(normalised(color).clip(0, 1) * 65535).astype("<u2")
