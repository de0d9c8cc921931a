"""USDZ as it is written: a zip archive of one USD layer in text and its picture (what iOS shows in place).

The archive is that of the USDZ specification: nothing compressed, the layer first, each file's content at a multiple of
64 bytes.
"""

import io
import zipfile
from collections.abc import Iterable

import numpy as np

ALIGNMENT = 64
HEADER = 30  # bytes of a local file header, less its name and its extra field
PADDING_FIELD = 0x1986  # of an extra field whose content means nothing
LAYER, PICTURE = "surface.usda", "texture.png"
DATE = (1980, 1, 1, 0, 0, 0)  # the same object is the same file

LAYER_TEXT = """#usda 1.0
(
    defaultPrim = "Object"
    metersPerUnit = 1
    upAxis = "Y"
)

def Xform "Object" (
    kind = "component"
)
{
    def Mesh "Surface" (
        prepend apiSchemas = ["MaterialBindingAPI"]
    )
    {
        uniform bool doubleSided = %(double_sided)d
        float3[] extent = [%(extent)s]
        int[] faceVertexCounts = [%(counts)s]
        int[] faceVertexIndices = [%(faces)s]
        rel material:binding = </Object/Material>
        normal3f[] normals = [%(normals)s] (
            interpolation = "vertex"
        )
        point3f[] points = [%(points)s]
        texCoord2f[] primvars:st = [%(uv)s] (
            interpolation = "faceVarying"
        )
        int[] primvars:st:indices = [%(mapped)s]
        uniform token subdivisionScheme = "none"
    }

    def Material "Material"
    {
        token outputs:surface.connect = </Object/Material/Shader.outputs:surface>

        def Shader "Shader"
        {
            uniform token info:id = "UsdPreviewSurface"
            color3f inputs:diffuseColor.connect = </Object/Material/Picture.outputs:rgb>
            float inputs:metallic = 0
            float inputs:roughness = 1
            token outputs:surface
        }

        def Shader "Picture"
        {
            uniform token info:id = "UsdUVTexture"
            asset inputs:file = @%(picture)s@
            token inputs:sourceColorSpace = "sRGB"
            float2 inputs:st.connect = </Object/Material/Coordinates.outputs:result>
            token inputs:wrapS = "clamp"
            token inputs:wrapT = "clamp"
            float3 outputs:rgb
        }

        def Shader "Coordinates"
        {
            uniform token info:id = "UsdPrimvarReader_float2"
            string inputs:varname = "st"
            float2 outputs:result
        }
    }
}
"""


def write_usdz(
    vertices: np.ndarray,  # (N, 3) y up
    normals: np.ndarray,  # (N, 3)
    faces: np.ndarray,  # (F, 3)
    uv: np.ndarray,  # (M, 2) v up
    mapped: np.ndarray,  # (F, 3) rows of uv
    picture: bytes,  # a PNG, sRGB
    double_sided: bool = False,
) -> bytes:
    """A USDZ of one triangle mesh with a matt UsdPreviewSurface. Vertices are shared across the seams of the map."""
    layer = LAYER_TEXT % {
        "double_sided": double_sided,
        "extent": _tuples([vertices.min(0), vertices.max(0)]),
        "counts": ", ".join(["3"] * len(faces)),
        "faces": ", ".join(map(str, faces.reshape(-1).tolist())),
        "normals": _tuples(normals),
        "points": _tuples(vertices),
        "uv": _tuples(uv),
        "mapped": ", ".join(map(str, mapped.reshape(-1).tolist())),
        "picture": PICTURE,
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in ((LAYER, layer.encode()), (PICTURE, picture)):
            info = zipfile.ZipInfo(name, DATE)
            fill = -(stream.tell() + HEADER + len(name) + 4) % ALIGNMENT
            info.extra = PADDING_FIELD.to_bytes(2, "little") + fill.to_bytes(2, "little") + bytes(fill)
            archive.writestr(info, data)
    return stream.getvalue()


def _tuples(rows: Iterable[np.ndarray]) -> str:
    return ", ".join("(" + ", ".join(f"{number:.8g}" for number in row) + ")" for row in rows)
