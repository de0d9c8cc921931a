"""What Blender makes of a mesh file: `PYTHON benchmarks/in_blender.py FILE OUT.npz POINTS`, with a PYTHON that has bpy.

Knows nothing of this project. OUT.npz gets `facts`, a JSON text, and for each way of sampling the corners (N, 3, 3) of
the triangles, weights (N, 3) of the points in them, and the colours (N, 3) that Blender has there, sRGB to 255.
"""

import json
import sys
from pathlib import Path
from typing import Any

import bpy  # type: ignore[import-not-found]
import numpy as np


def numbers(of: Any, name: str, width: int, dtype: Any = np.float32) -> np.ndarray:
    found = np.empty(len(of) * width, dtype)
    of.foreach_get(name, found)
    return found.reshape(-1, width)


def main(file: Path, out: Path, count: int) -> None:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    importers = {".glb": bpy.ops.import_scene.gltf, ".obj": bpy.ops.wm.obj_import}
    importers |= {".ply": bpy.ops.wm.ply_import, ".usdz": bpy.ops.wm.usd_import}
    importers[file.suffix](filepath=str(file))
    objects = [one for one in bpy.context.scene.objects if one.type == "MESH"]
    [thing] = objects
    mesh = thing.data
    mesh.calc_loop_triangles()
    world = np.array(thing.matrix_world)
    vertices = numbers(mesh.vertices, "co", 3).astype(np.float64) @ world[:3, :3].T + world[:3, 3]
    triangles = numbers(mesh.loop_triangles, "vertices", 3, np.int32)
    loops = numbers(mesh.loop_triangles, "loops", 3, np.int32)
    facts: dict[str, Any] = {"objects": len(objects), "vertices": len(vertices), "triangles": len(triangles)}
    image, facts["material"] = material_of(mesh)
    rng = np.random.default_rng(0)
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = rng.choice(len(triangles), count, p=area / area.sum())
    weights = rng.dirichlet((1, 1, 1), count)
    samples = {}
    if image is None:
        attribute = mesh.color_attributes.active_color
        facts["colors"] = None if attribute is None else {"domain": attribute.domain, "type": attribute.data_type}
        if attribute is not None:
            stored = 255 * numbers(attribute.data, "color_srgb", 4)[:, :3]
            weights = np.eye(3)[rng.integers(0, 3, count)]
            where = (triangles if attribute.domain == "POINT" else loops)[chosen]
            samples["vertices"] = (chosen, weights, (stored[where] * weights[..., None]).sum(1))
    else:
        pixels = np.empty(len(image.pixels), np.float32)
        image.pixels.foreach_get(pixels)
        width, height = image.size
        pixels = 255 * pixels.reshape(height, width, -1)[..., :3]  # row 0 is v = 0
        facts["image"] = {"size": [width, height], "colorspace": image.colorspace_settings.name}
        uv = numbers(mesh.uv_layers.active.data, "uv", 2).astype(np.float64)[loops[chosen]]
        samples["anywhere"] = (chosen, weights, bilinear(pixels, (uv * weights[..., None]).sum(1)))
        texel = (np.floor((uv * weights[..., None]).sum(1) * (width, height)) + 0.5) / (width, height)
        centred, inside = weights_of(uv, texel)
        samples["texels"] = (chosen[inside], centred[inside], bilinear(pixels, texel[inside]))
    arrays: dict[str, Any] = {"facts": json.dumps(facts)}
    for name, (which, weight, color) in samples.items():
        arrays |= {f"{name}_corners": vertices[triangles[which]], f"{name}_weights": weight, f"{name}_colors": color}
    np.savez(out, **arrays)


def material_of(mesh) -> tuple[Any, dict[str, Any] | None]:
    """The image that its base colour comes from, if any, and what is said of its material."""
    materials = [one for one in mesh.materials if one is not None]
    if not materials or not materials[0].use_nodes:
        return None, None
    tree = materials[0].node_tree
    [shader] = [node for node in tree.nodes if node.type == "BSDF_PRINCIPLED"]
    about = {name.lower(): shader.inputs[name].default_value for name in ("Metallic", "Roughness", "Alpha")}
    about["one_sided"] = materials[0].use_backface_culling
    color = shader.inputs["Base Color"]
    if not color.is_linked:
        return None, about
    source = color.links[0].from_node
    image = source.image if source.type == "TEX_IMAGE" else None
    about["texture_found"] = image is not None and len(image.pixels) > 0  # asks for them: read when they are wanted
    return (image if about["texture_found"] else None), about


def bilinear(pixels: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Texels (h, w, 3), row 0 at v = 0, at uv (N, 2), beyond the edges as at them."""
    height, width = pixels.shape[:2]
    at = uv * (width, height) - 0.5
    low = np.floor(at).astype(int)
    share = at - low
    found = np.zeros((len(uv), 3))
    for dx in (0, 1):
        for dy in (0, 1):
            weight = np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1])
            row, column = (low[:, 1] + dy).clip(0, height - 1), (low[:, 0] + dx).clip(0, width - 1)
            found += weight[:, None] * pixels[row, column]
    return found


def weights_of(uv: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, Any]:
    """Barycentric weights (N, 3) of points (N, 2) in triangles (N, 3, 2), and which points are inside."""
    (ax, ay), (bx, by), (cx, cy) = uv.transpose(1, 2, 0)
    x, y = point.T
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    area = np.where(np.abs(area) > 1e-12, area, np.nan)
    first = ((bx - x) * (cy - y) - (cx - x) * (by - y)) / area
    second = ((cx - x) * (ay - y) - (ax - x) * (cy - y)) / area
    weights = np.stack([first, second, 1 - first - second], 1)
    return weights, np.all(np.nan_to_num(weights, nan=-1) >= 0, axis=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
