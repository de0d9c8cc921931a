"""A GLB made small enough to be sent thirty times in one page: quantised attributes, and faces only up to a limit.

Knows the meshes that `scenes.export.write_mesh` writes (one triangle list with a texture or vertex colours); any other
GLB that is whole comes back as it is. The container is that of glTF 2.0 section 4.4, the number formats those of the
extension KHR_mesh_quantization, which needs no decoder: a browser hands the integers to the GPU as they are.
"""

import io
import struct

import numpy as np
import trimesh
from PIL import Image
from scipy.spatial import KDTree

from jointdreamer.errors import UserError
from jointdreamer.formats.glb import normalised, read_accessor, read_glb, write_glb
from jointdreamer.formats.surface import Texture, load_texture

MAX_TEXTURE = 1024  # pixels along a side: a viewer of the report is smaller


def thin_glb(data: bytes, max_faces: int = 40_000) -> bytes:
    """The same object in fewer bytes, of `max_faces` triangles or fewer.

    Positions become 16-bit and normals 8-bit integers (an error of a 65,000th of the object's size, and of half a
    degree); vertex colours 16-bit ones, linear as glTF wants; a texture a JPEG of MAX_TEXTURE pixels or fewer.
    Simplified surfaces have colours at their vertices, those of the nearest old vertex.
    Returns `data` itself for a GLB that is whole but not what `write_mesh` writes.

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
        textured = "TEXCOORD_0" in attributes
        color = read_accessor(tree, binary, attributes["TEXCOORD_0" if textured else "COLOR_0"])
        normals = read_accessor(tree, binary, attributes["NORMAL"]) if textured else None
        picture = picture_of(tree, binary) if textured else None
        if not len(faces) or not np.isfinite(vertices).all() or faces.max() >= len(vertices):
            raise ValueError("it holds no triangles, or ones with corners that are missing or not finite")
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise UserError(
            f"damaged mesh: wanted a GLB, but {error}; export it anew (the command of the run again)"
        ) from error
    if len(color) != len(vertices) or color.dtype not in (np.uint8, np.uint16, np.float32):
        return data
    if picture is not None and normals is not None:
        if len(faces) <= max_faces:
            return write_quantised(vertices, normals, color, faces, picture)
        vertices, faces, color = without_seams(vertices, faces, Texture(picture).sample(normalised(color))[:, :3])
    if len(faces) > max_faces:
        vertices, faces, color = simplify(vertices, faces, color, max_faces)
    normals = np.asarray(trimesh.Trimesh(vertices, faces, process=False).vertex_normals)
    return write_quantised(vertices, normals, color, faces)


def ours(tree: dict, primitive: dict) -> bool:
    """Whether the primitive is what `write_mesh` writes: indexed triangles, colours at the vertices or one texture in
    the file, nothing placed."""
    attributes, textures = set(primitive["attributes"]), tree.get("textures", [])
    painted = attributes == {"POSITION", "NORMAL", "TEXCOORD_0"} and len(textures) == 1 == len(tree["images"])
    if textures and not (painted and "bufferView" in tree["images"][0] and len(tree["materials"]) == 1):
        return False
    placed = any(
        key in node for node in tree.get("nodes", []) for key in ("matrix", "scale", "rotation", "translation")
    )
    return (
        primitive.get("mode", 4) == 4
        and "indices" in primitive
        and (painted or {"POSITION", "COLOR_0"} <= attributes <= {"POSITION", "COLOR_0", "NORMAL"})
        and not (placed or tree.get("extensionsRequired") or tree.get("animations"))
    )


def picture_of(tree: dict, binary: bytes) -> np.ndarray:
    """The pixels of the one picture, (h, w, 3) uint8. Raises ValueError or LookupError where there is none."""
    view = tree["bufferViews"][tree["images"][0]["bufferView"]]
    start = view.get("byteOffset", 0)
    return load_texture(binary[start : start + view["byteLength"]], opaque=True)


def without_seams(
    vertices: np.ndarray, faces: np.ndarray, color: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same surface with one vertex in each place."""
    _, first, which = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
    return vertices[first], which.reshape(-1)[faces], color[first]


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


def write_quantised(
    vertices: np.ndarray,  # (M, 3)
    normals: np.ndarray,  # (M, 3)
    color: np.ndarray,  # (M, 3 or 4) linear, or (M, 2) where in `picture`, v down
    faces: np.ndarray,  # (T, 3)
    picture: np.ndarray | None = None,  # (h, w, 3) uint8
) -> bytes:
    """A GLB with a matt material."""
    center = (vertices.min(0) + vertices.max(0)) / 2
    scale = float(np.abs(vertices - center).max()) or 1.0  # one for all axes: normals need no correction
    position = np.round((vertices - center) / scale * 32767).astype("<i2")
    flat = np.linalg.norm(normals, axis=1, keepdims=True) < 0.5  # none has length 0, section 3.7.2.1
    normal = np.round(np.where(flat, (0.0, 1.0, 0.0), np.clip(normals, -1, 1)) * 127).astype("<i1")
    name = "COLOR_0" if picture is None else "TEXCOORD_0"
    attributes = {"POSITION": position, name: to_short(color), "NORMAL": normal}
    node = {"scale": [scale] * 3, "translation": center.tolist()}
    faces = faces.astype("<u2" if len(vertices) < 65535 else "<u4")
    return write_glb(attributes, faces, node, ("KHR_mesh_quantization",), None if picture is None else jpeg(picture))


def jpeg(pixels: np.ndarray) -> bytes:
    """A texture as a JPEG with full colour resolution, no larger than MAX_TEXTURE."""
    image, stream = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) > MAX_TEXTURE:
        width, height = (max(1, round(side * MAX_TEXTURE / max(image.size))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    image.save(stream, format="JPEG", quality=90, subsampling=0)
    return stream.getvalue()


def to_short(color: np.ndarray) -> np.ndarray:
    """Linear colours or places in a picture, as GLB stores them, as 16-bit integers."""
    return np.round(normalised(color).clip(0, 1) * 65535).astype("<u2")
