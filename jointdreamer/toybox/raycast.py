"""A small ray caster for the toybox: affinely placed spheres, boxes, cylinders and cones, hit exactly.

It uses the cameras of `jointdreamer.cameras` (OpenGL camera-to-world, world z up, row 0 on top), so an image made
here and one made by the volume renderer from the same camera show the object at the same pixels.
"""

import math
from dataclasses import dataclass

import numpy as np

from jointdreamer.kernels import compiled_loop

SPHERE, BOX, CYLINDER, CONE = range(4)
PLAIN, STRIPED, SPOTTED, CHECKERED, PATCHED = range(5)
FAR = 1e9


@dataclass
class Solid:
    """One primitive: a unit shape (sphere of radius 1, box or cylinder of half size 1, cone with its tip at z = 1)."""

    shape: int
    center: tuple[float, float, float]
    size: tuple[float, float, float]  # half extents along the solid's own axes, world units
    color: tuple[float, float, float]  # albedo in [0, 1]
    tilt: tuple[float, float, float] = (0.0, 0.0, 0.0)  # rotation about x, then y, then z, radians
    pattern: int = PLAIN


def pack(solids: list[Solid]) -> np.ndarray:
    """(P, 20) float64 rows: shape, pattern, centre 3, world-to-unit matrix 9, colour 3, bounding radius, 2 unused."""
    rows = np.zeros((len(solids), 20))
    for row, solid in zip(rows, solids, strict=True):
        to_unit = _rotation(solid.tilt).T / np.asarray(solid.size)[:, None]
        corner = np.asarray(solid.size) if solid.shape != SPHERE else np.full(3, max(solid.size) / math.sqrt(3))
        row[0], row[1], row[2:5] = solid.shape, solid.pattern, solid.center
        row[5:14], row[14:17], row[17] = to_unit.ravel(), solid.color, np.linalg.norm(corner)
    return rows


def _rotation(tilt: tuple[float, float, float]) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(tilt), np.sin(tilt)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def render(
    packed: np.ndarray,  # (P, 20) from `pack`
    c2w: np.ndarray,  # (V, 4, 4)
    fovy: np.ndarray,  # (V,) radians
    resolution: int = 64,
    supersample: int = 2,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rgba (V, R, R, 4) with straight colour in [0, 1], depth (V, R, R) along the unit ray, normal (V, R, R, 3).

    Depth and normal are averages over the sub-rays that hit; both are 0 where nothing is hit.
    """
    out = np.zeros((len(c2w), resolution, resolution, 8), dtype=np.float32)
    _render(packed, np.ascontiguousarray(c2w, dtype=np.float64), np.asarray(fovy, dtype=np.float64), supersample, out)
    return out[..., :4], out[..., 4], out[..., 5:]


@compiled_loop
def _hit(solid, ox, oy, oz, dx, dy, dz):
    """First hit of a ray with one solid: (t, nx, ny, nz) in world space (normal not normalised); t = FAR on a miss."""
    # In the solid's own frame the ray stays a ray and keeps its t, so every shape is the unit shape.
    px, py, pz = ox - solid[2], oy - solid[3], oz - solid[4]
    along = px * dx + py * dy + pz * dz
    if px * px + py * py + pz * pz - along * along > solid[17] * solid[17]:
        return FAR, 0.0, 0.0, 0.0
    ax = solid[5] * px + solid[6] * py + solid[7] * pz
    ay = solid[8] * px + solid[9] * py + solid[10] * pz
    az = solid[11] * px + solid[12] * py + solid[13] * pz
    bx = solid[5] * dx + solid[6] * dy + solid[7] * dz
    by = solid[8] * dx + solid[9] * dy + solid[10] * dz
    bz = solid[11] * dx + solid[12] * dy + solid[13] * dz
    best, nx, ny, nz = FAR, 0.0, 0.0, 0.0
    shape = int(solid[0])
    if shape == SPHERE:
        a, b, c = bx * bx + by * by + bz * bz, ax * bx + ay * by + az * bz, ax * ax + ay * ay + az * az - 1.0
        disc = b * b - a * c
        if disc > 0.0:
            t = (-b - math.sqrt(disc)) / a
            if t > 1e-6:
                best, nx, ny, nz = t, ax + t * bx, ay + t * by, az + t * bz
    elif shape == BOX:
        enter, leave, axis = -FAR, FAR, 0
        for k in range(3):
            p, d = (ax, bx) if k == 0 else ((ay, by) if k == 1 else (az, bz))
            if abs(d) < 1e-12:
                if abs(p) > 1.0:
                    return FAR, 0.0, 0.0, 0.0
                continue
            t0, t1 = (-1.0 - p) / d, (1.0 - p) / d
            if t0 > t1:
                t0, t1 = t1, t0
            if t0 > enter:
                enter, axis = t0, k
            leave = min(leave, t1)
        if enter < leave and enter > 1e-6:
            best = enter
            nx = -math.copysign(1.0, bx) if axis == 0 else 0.0
            ny = -math.copysign(1.0, by) if axis == 1 else 0.0
            nz = -math.copysign(1.0, bz) if axis == 2 else 0.0
    else:
        # Side: x^2 + y^2 = r(z)^2 with r = 1 (cylinder) or (1 - z) / 2 (cone); then the caps.
        slope = 0.0 if shape == CYLINDER else -0.5
        r0 = 1.0 if shape == CYLINDER else 0.5 - 0.5 * az
        dr = slope * bz
        a, b, c = bx * bx + by * by - dr * dr, ax * bx + ay * by - r0 * dr, ax * ax + ay * ay - r0 * r0
        disc = b * b - a * c
        if disc > 0.0 and abs(a) > 1e-12:
            root = math.sqrt(disc)
            for sign in (-1.0, 1.0):
                t = (-b + sign * root) / a
                z = az + t * bz
                if 1e-6 < t < best and -1.0 <= z <= 1.0:
                    radius = r0 + t * dr
                    best, nx, ny, nz = t, ax + t * bx, ay + t * by, -slope * radius
        if abs(bz) > 1e-12:
            for cap in (-1.0, 1.0):
                if shape == CONE and cap > 0.0:
                    continue
                t = (cap - az) / bz
                x, y = ax + t * bx, ay + t * by
                if 1e-6 < t < best and x * x + y * y <= 1.0:
                    best, nx, ny, nz = t, 0.0, 0.0, cap
    # A normal goes back to the world by the transpose of the world-to-unit matrix.
    return (
        best,
        solid[5] * nx + solid[8] * ny + solid[11] * nz,
        solid[6] * nx + solid[9] * ny + solid[12] * nz,
        solid[7] * nx + solid[10] * ny + solid[13] * nz,
    )


@compiled_loop
def _pattern(kind, x, y, z):
    """How much of the pattern's white shows at a point of the surface: 0 or 1."""
    if kind == STRIPED:
        return 1.0 if math.sin(z * 28.0) > 0.35 else 0.0
    if kind == SPOTTED:
        cell = 0.21
        u, v, w = x / cell - math.floor(x / cell), y / cell - math.floor(y / cell), z / cell - math.floor(z / cell)
        return 1.0 if (u - 0.5) ** 2 + (v - 0.5) ** 2 + (w - 0.5) ** 2 < 0.16 else 0.0
    if kind == CHECKERED:
        return 1.0 if math.sin(x * 17.0) * math.sin(y * 17.0) * math.sin(z * 17.0) > 0.0 else 0.0
    if kind == PATCHED:
        return 1.0 if math.sin(x * 8.0 + 1.0) + math.sin(y * 8.0 + 2.0) + math.sin(z * 8.0) > 0.55 else 0.0
    return 0.0


@compiled_loop
def _render(packed, c2w, fovy, supersample, out):
    views, resolution = out.shape[0], out.shape[1]
    fine = resolution * supersample
    nearest = np.empty((fine, fine))
    which = np.empty((fine, fine), dtype=np.int64)
    normal = np.empty((fine, fine, 3))
    for v in range(views):
        focal = 0.5 * fine / math.tan(0.5 * fovy[v])
        m = c2w[v]
        nearest[:], which[:] = FAR, -1
        for k in range(len(packed)):
            solid = packed[k]
            # Only the pixels that the solid's bounding sphere can cover: (x +- r) / (depth +- r), whichever is wider.
            px, py, pz = solid[2] - m[0, 3], solid[3] - m[1, 3], solid[4] - m[2, 3]
            x = px * m[0, 0] + py * m[1, 0] + pz * m[2, 0]
            y = px * m[0, 1] + py * m[1, 1] + pz * m[2, 1]
            depth, r = -(px * m[0, 2] + py * m[1, 2] + pz * m[2, 2]), solid[17]
            left, right, top, bottom = 0, fine, 0, fine
            if depth > r + 1e-3:
                near, far = depth - r, depth + r
                left = max(0, int(0.5 * fine + focal * min((x - r) / near, (x - r) / far) - 1))
                right = min(fine, int(0.5 * fine + focal * max((x + r) / near, (x + r) / far) + 2))
                top = max(0, int(0.5 * fine - focal * max((y + r) / near, (y + r) / far) - 1))
                bottom = min(fine, int(0.5 * fine - focal * min((y - r) / near, (y - r) / far) + 2))
            for row in range(top, bottom):
                for col in range(left, right):
                    dx, dy, dz = _direction(m, focal, fine, row, col)
                    t, a, b, c = _hit(solid, m[0, 3], m[1, 3], m[2, 3], dx, dy, dz)
                    if t < nearest[row, col]:
                        nearest[row, col], which[row, col] = t, k
                        normal[row, col, 0], normal[row, col, 1], normal[row, col, 2] = a, b, c
        for row in range(fine):
            for col in range(fine):
                k = which[row, col]
                if k >= 0:
                    _shade(
                        packed[k],
                        m,
                        nearest[row, col],
                        normal[row, col],
                        _direction(m, focal, fine, row, col),
                        out[v, row // supersample, col // supersample],
                    )
        for row in range(resolution):
            for col in range(resolution):
                pixel = out[v, row, col]
                if pixel[3] > 0:
                    hits = pixel[3]
                    for c in range(8):
                        pixel[c] /= hits
                    pixel[3] = hits / (supersample * supersample)


@compiled_loop
def _direction(m, focal, resolution, row, col):
    """Unit direction through a pixel's centre (docs/conventions.md, Cameras)."""
    u, w = (col + 0.5 - 0.5 * resolution) / focal, -(row + 0.5 - 0.5 * resolution) / focal
    dx = m[0, 0] * u + m[0, 1] * w - m[0, 2]
    dy = m[1, 0] * u + m[1, 1] * w - m[1, 2]
    dz = m[2, 0] * u + m[2, 1] * w - m[2, 2]
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    return dx / length, dy / length, dz / length


@compiled_loop
def _shade(solid, m, t, normal, ray, pixel):
    """Add one sub-ray's colour, hit, depth and normal to its pixel."""
    dx, dy, dz = ray
    nx, ny, nz = normal
    length = math.sqrt(nx * nx + ny * ny + nz * nz)
    nx, ny, nz = nx / length, ny / length, nz / length
    white = 0.85 * _pattern(int(solid[1]), m[0, 3] + t * dx, m[1, 3] + t * dy, m[2, 3] + t * dz)
    # Light from above that is fixed to the world, and a weak headlight that draws the outlines.
    shade = 0.66 + 0.2 * nz + 0.18 * max(0.0, -(nx * dx + ny * dy + nz * dz))
    for c in range(3):
        pixel[c] += min(1.0, shade * ((1.0 - white) * solid[14 + c] + white))
    pixel[3] += 1.0
    pixel[4] += t
    pixel[5] += nx
    pixel[6] += ny
    pixel[7] += nz
