"""Numba kernels of the rasteriser (CPU, float32). `scenes/mesh/raster.py` explains the operations and wraps them.

In here the vertices of all images stand below each other, and so do their pixels:

    clip (M N, 4), screen (M N, 2)   vertices, in clip space and in pixels from the image's centre (y down)
    faces (F, 3) int64;  triangle (M H W,) int64, face + 1 or 0;  depth (M H W,);  barycentric (M H W, 2)
    begin, end                       what a call does, begin to end - 1, of what its docstring says

The arithmetic is that of `scenes/mesh/raster_torch.py` in the same order and unfused, so that both find the same
triangles. A thread has rows of pixels to itself. Where many pixels add to one vertex, they do so in PARTS that do not
depend on the number of threads, each with sums of its own: results are the same bit for bit whatever that is.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import int32, int64, njit, uint8
from torch import Tensor

from jointdreamer.kernels.compiled import array, cached_njit, in_shares
from jointdreamer.kernels.raster import LEAST_AREA, LEAST_HEIGHT, LEAST_W, MARGIN, SLACK, STEPS, centres

PARTS = 8  # at least so many sums over pixels, if there are enough rows: a constant, for the sake of the bits
UNKNOWN = np.uint8(255)

ZERO, HALF, ONE, INFINITY = np.float32(0), np.float32(0.5), np.float32(1), np.float32(np.inf)
least_w, least_area, least_height = np.float32(LEAST_W), np.float32(LEAST_AREA), np.float32(LEAST_HEIGHT)
margin, slack = np.float32(MARGIN), np.float32(SLACK)

compiled = cached_njit(error_model="numpy")  # a division by zero is infinite, and not an exception
inlined = njit(error_model="numpy", forceinline=True)


def rasterize(clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """`raster.Twin.rasterize`."""
    (m, n, _), (height, width) = clip.shape, resolution
    barycentric, depth = clip.new_empty(m, height, width, 2), clip.new_empty(m, height, width)
    triangle = torch.empty(m, height, width, dtype=torch.int64)
    rows = np.empty((m * len(faces), 4), np.int32)
    share(find_boxes, m * len(faces), project(clip, resolution), faces, n, height, width, rows)
    fx, fy = centres(width, clip.dtype), -centres(height, clip.dtype)
    out = barycentric.view(-1, 2), depth.view(-1), triangle.view(-1)
    share(find_nearest, m * height, clip.view(-1, 4), faces, n, rows, fx, fy, *out)
    return barycentric, depth, triangle


def rasterize_backward(clip: Tensor, faces: Tensor, barycentric: Tensor, triangle: Tensor, grad: Tensor) -> Tensor:
    """`raster.Twin.rasterize_backward`."""
    m, height, width = triangle.shape
    parts = parts_of(m, height)
    sums = np.zeros((m, parts, clip.shape[1], 4), np.float32)
    fx, fy = centres(width, clip.dtype), -centres(height, clip.dtype)
    pixels = triangle.view(-1), barycentric.view(-1, 2), grad.view(-1, 2)
    share(rasterize_gradients, m * parts, clip.view(-1, 4), faces, fx, fy, *pixels, sums)
    return total(sums, 1)


def interpolate(attributes: Tensor, barycentric: Tensor, triangle: Tensor, faces: Tensor) -> Tensor:
    """`raster.Twin.interpolate`."""
    out = attributes.new_empty(*triangle.shape, attributes.shape[-1])
    pixels = triangle.view(-1), barycentric.view(-1, 2), triangle[0].numel() if len(triangle) else 0
    share(values, triangle.numel(), attributes, faces, *pixels, out.view(-1, out.shape[-1]))
    return out


def interpolate_backward(
    attributes: Tensor, barycentric: Tensor, triangle: Tensor, faces: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """`raster.Twin.interpolate_backward`."""
    m, height, _ = triangle.shape
    parts = parts_of(m, height)
    sums = np.zeros((m, parts, *attributes.shape[1:]), np.float32)
    grad_barycentric = torch.empty_like(barycentric)
    pixels = triangle.view(-1), barycentric.view(-1, 2), grad.view(-1, grad.shape[-1]), grad_barycentric.view(-1, 2)
    share(value_gradients, m * parts, attributes, faces, *pixels, sums)
    if len(attributes) < m:
        return total(sums.reshape(1, m * parts, *attributes.shape[1:]), 1), grad_barycentric
    return total(sums, 1), grad_barycentric


def find_crossings(
    clip: Tensor, faces: Tensor, opposite: Tensor, beyond: Tensor, triangle: Tensor, depth: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`raster.Twin.find_crossings`."""
    m, height, width = triangle.shape
    rows, most = m * height, 2 * m * height * width
    # Room for all pairs that there are: the system gives memory only where something is written
    pair, edge, alpha = np.empty(most, np.int64), np.empty((most, 2), np.int64), np.empty(most, np.float32)
    start, count = np.empty(rows, np.int64), np.empty(rows, np.int64)
    known = np.full((m, len(faces)), UNKNOWN)
    mesh = project(clip, (height, width)), faces, opposite, beyond, clip.shape[1], height, width
    pixels = triangle.view(-1), depth.view(-1)
    share(crossings, rows, *mesh, *pixels, known, pair, edge, alpha, start, count)
    n = int(count.sum())
    packed = np.empty(n, np.int64), np.empty((n, 2), np.int64), np.empty(n, np.float32)
    share(pack, rows, start, count, count.cumsum() - count, pair, edge, alpha, *packed)
    pair, edge, alpha = map(torch.from_numpy, packed)
    return pair, edge, alpha


def antialias(color: Tensor, pair: Tensor, alpha: Tensor) -> Tensor:
    """`raster.Twin.antialias`."""
    out = color.clone()
    before, after = (x.view(-1, x.shape[-1]) for x in (color, out))
    blend(color.shape[2], *arrays(pair, alpha, before, after))
    return out


def antialias_backward(
    color: Tensor, clip: Tensor, pair: Tensor, edge: Tensor, alpha: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """`raster.Twin.antialias_backward`."""
    _, height, width, channels = color.shape
    grad_color, grad_clip = grad.clone(), torch.zeros_like(clip)
    pixels = (x.view(-1, channels) for x in (color, grad, grad_color))
    vertices = clip.view(-1, 4), grad_clip.view(-1, 4)
    blend_gradients(height, width, *arrays(pair, edge, alpha, *pixels, *vertices))
    return grad_color, grad_clip


def project(clip: Tensor, resolution: tuple[int, int]) -> np.ndarray:
    screen = np.empty((clip.shape[0] * clip.shape[1], 2), np.float32)
    share(to_pixels, len(screen), clip.view(-1, 4), *resolution, screen)
    return screen


def arrays(*tensors: Any) -> list[Any]:
    return [x.detach().contiguous().numpy() if isinstance(x, Tensor) else x for x in tensors]


def share(kernel: Any, n: int, *arguments: Any) -> None:
    """Call a kernel for a range of n, with tensors as arrays, on as many threads as torch uses."""
    in_shares(kernel, n, *arrays(*arguments), per_thread=4)  # some rows see more than others


def parts_of(m: int, height: int) -> int:
    """Parts that the rows of each image are split into."""
    return min(-(-PARTS // max(m, 1)), height)


def total(sums: np.ndarray, axis: int) -> Tensor:
    return torch.from_numpy(sums.reshape(len(sums), *sums.shape[2:]) if sums.shape[axis] == 1 else sums.sum(axis))


@compiled
def to_pixels(begin, end, clip, height, width, screen):
    """Vertices, NaN where w is too small or a coordinate is not finite."""
    half_width, half_height = np.float32(width) * HALF, np.float32(height) * HALF
    for i in range(begin, end):
        x, y, z, w = clip[i, 0], clip[i, 1], clip[i, 2], clip[i, 3]
        if w > least_w and abs(x) < INFINITY and abs(y) < INFINITY and abs(z) < INFINITY and w < INFINITY:
            screen[i, 0], screen[i, 1] = x / w * half_width, -(y / w) * half_height
        else:
            screen[i, 0] = screen[i, 1] = np.nan


@compiled
def find_boxes(begin, end, screen, faces, n, height, width, box):
    """Faces of all images: the first and last row and column (M F, 4) that may see them; none for those not drawn."""
    middle_x, middle_y = np.float32(width) * HALF - HALF, np.float32(height) * HALF - HALF
    last_column, last_row = np.float32(width - 1), np.float32(height - 1)
    for i in range(begin, end):
        first, face = i // len(faces) * n, i % len(faces)
        a, b, c = first + faces[face, 0], first + faces[face, 1], first + faces[face, 2]
        ax, bx, cx, ay, by, cy = screen[a, 0], screen[b, 0], screen[c, 0], screen[a, 1], screen[b, 1], screen[c, 1]
        if ax != ax or bx != bx or cx != cx:
            box[i, 0], box[i, 1], box[i, 2], box[i, 3] = 0, -1, 0, -1
            continue
        top, bottom = min(ay, by, cy) + middle_y - margin, max(ay, by, cy) + middle_y + margin
        left, right = min(ax, bx, cx) + middle_x - margin, max(ax, bx, cx) + middle_x + margin
        box[i, 0] = np.int32(math.ceil(min(max(top, ZERO), last_row + ONE)))
        box[i, 1] = np.int32(math.floor(max(min(bottom, last_row), -ONE)))
        box[i, 2] = np.int32(math.ceil(min(max(left, ZERO), last_column + ONE)))
        box[i, 3] = np.int32(math.floor(max(min(right, last_column), -ONE)))


@compiled
def find_nearest(begin, end, clip, faces, n, box, fx, fy, barycentric, depth, triangle):
    """Rows of all images. A thread looks at every face of an image, for the rows of it that it has."""
    height, width = len(fy), len(fx)
    row = begin
    while row < end:
        image = row // height
        first, last = row - image * height, min(height, end - image * height) - 1
        pixels = image * height * width
        for p in range(pixels + first * width, pixels + (last + 1) * width):
            depth[p], triangle[p], barycentric[p, 0], barycentric[p, 1] = INFINITY, 0, ZERO, ZERO
        for face in range(len(faces)):
            at = np.uintp(image * len(faces) + face)
            top, bottom = max(np.int64(box[at, 0]), first), min(np.int64(box[at, 1]), last)
            if top > bottom:
                continue
            left, right = np.int64(box[at, 2]), np.int64(box[at, 3])
            i, j, k = image * n + faces[face, 0], image * n + faces[face, 1], image * n + faces[face, 2]
            x0, y0, z0, w0 = clip[i, 0], clip[i, 1], clip[i, 2], clip[i, 3]
            x1, y1, z1, w1 = clip[j, 0], clip[j, 1], clip[j, 2], clip[j, 3]
            x2, y2, z2, w2 = clip[k, 0], clip[k, 1], clip[k, 2], clip[k, 3]
            for y in range(top, bottom + 1):
                q0y, q1y, q2y = y0 - fy[y] * w0, y1 - fy[y] * w1, y2 - fy[y] * w2
                if min(q0y, q1y, q2y) > ZERO or max(q0y, q1y, q2y) < ZERO:
                    continue
                for x in range(left, right + 1):
                    q0x, q1x, q2x = x0 - fx[x] * w0, x1 - fx[x] * w1, x2 - fx[x] * w2
                    a0, a1, a2 = q1x * q2y - q1y * q2x, q2x * q0y - q2y * q0x, q0x * q1y - q0y * q1x
                    if not (min(a0, a1, a2) >= ZERO or max(a0, a1, a2) <= ZERO):
                        continue
                    area = a0 + a1 + a2
                    if area == ZERO or not abs(area) < INFINITY:
                        continue
                    if min(q0x, q1x, q2x) > ZERO or max(q0x, q1x, q2x) < ZERO:
                        continue
                    z = (z0 * a0 + z1 * a1 + z2 * a2) / (w0 * a0 + w1 * a1 + w2 * a2)
                    p = np.uintp(pixels + y * width + x)
                    if z < depth[p] and z > -INFINITY:
                        depth[p], triangle[p] = z, face + 1
                        barycentric[p, 0], barycentric[p, 1] = a0 / area, a1 / area
        for p in range(pixels + first * width, pixels + (last + 1) * width):
            if triangle[p] == 0:
                depth[p] = ZERO
        row = image * height + last + 1


@inlined
def corners_of(faces, face):
    """A face's vertices. Unsigned, here and below: no test for numbers from the end."""
    f = np.uintp(face)
    return np.uintp(faces[f, 0]), np.uintp(faces[f, 1]), np.uintp(faces[f, 2])


@inlined
def range_of(part, parts, size):
    """The image of a part, and the begin and end of what is its own of images of this size, one behind the other."""
    image = part // parts
    number = part - image * parts
    return image, image * size + number * size // parts, image * size + (number + 1) * size // parts


@compiled
def rasterize_gradients(begin, end, clip, faces, fx, fy, triangle, barycentric, grad, sums):
    """Parts. sums (M, parts, N, 4): gradients of clip, zeros before."""
    height, width, parts = len(fy), len(fx), sums.shape[1]
    for part in range(begin, end):
        image, first, last = range_of(part, parts, height)
        out = sums[image, part - image * parts]
        vertices = clip[image * sums.shape[2] : (image + 1) * sums.shape[2]]
        for row in range(first, last):
            y = fy[row - image * height]
            for column in range(width):
                p = np.uintp(row * width + column)
                if triangle[p] == 0:
                    continue
                g0, g1 = grad[p, 0], grad[p, 1]
                if g0 == ZERO and g1 == ZERO:
                    continue
                x = fx[column]
                i, j, k = corners_of(faces, triangle[p] - 1)
                q0x, q0y = vertices[i, 0] - x * vertices[i, 3], vertices[i, 1] - y * vertices[i, 3]
                q1x, q1y = vertices[j, 0] - x * vertices[j, 3], vertices[j, 1] - y * vertices[j, 3]
                q2x, q2y = vertices[k, 0] - x * vertices[k, 3], vertices[k, 1] - y * vertices[k, 3]
                area = (q1x * q2y - q1y * q2x) + (q2x * q0y - q2y * q0x) + (q0x * q1y - q0y * q1x)
                by_area = ONE / (area + math.copysign(least_area, area))
                g0, g1 = g0 * by_area, g1 * by_area
                both = g0 * barycentric[p, 0] + g1 * barycentric[p, 1]
                add(out, i, x, y, both * (q2y - q1y) - g1 * q2y, both * (q1x - q2x) + g1 * q2x)
                add(out, j, x, y, both * (q0y - q2y) + g0 * q2y, both * (q2x - q0x) - g0 * q2x)
                dx, dy = both * (q1y - q0y) - g0 * q1y + g1 * q0y, both * (q0x - q1x) + g0 * q1x - g1 * q0x
                add(out, k, x, y, dx, dy)


@inlined
def add(out, i, x, y, dx, dy):
    """A gradient of q to that of its vertex."""
    out[i, 0] += dx
    out[i, 1] += dy
    out[i, 3] -= x * dx + y * dy


@compiled
def values(begin, end, attributes, faces, triangle, barycentric, per_image, out):
    """Pixels. attributes (M or 1, N, K), per_image = H W, out (M H W, K)."""
    channels = attributes.shape[2]
    while begin < end:
        image = begin // per_image
        table = attributes[image if len(attributes) > 1 else 0]
        for pixel in range(begin, min(end, (image + 1) * per_image)):
            p = np.uintp(pixel)
            if triangle[p] == 0:
                for c in range(channels):
                    out[p, c] = ZERO
                continue
            b0, b1 = barycentric[p, 0], barycentric[p, 1]
            b2 = ONE - b0 - b1
            i, j, k = corners_of(faces, triangle[p] - 1)
            for c in range(channels):
                out[p, c] = table[i, c] * b0 + table[j, c] * b1 + table[k, c] * b2
        begin = (image + 1) * per_image


@compiled
def value_gradients(begin, end, attributes, faces, triangle, barycentric, grad, grad_barycentric, sums):
    """Parts. sums (M, parts, N, K): gradients of the attributes, zeros before."""
    m, parts, channels = len(sums), sums.shape[1], attributes.shape[2]
    for part in range(begin, end):
        image, first, last = range_of(part, parts, len(triangle) // m)
        out, table = sums[image, part - image * parts], attributes[image if len(attributes) > 1 else 0]
        for pixel in range(first, last):
            p = np.uintp(pixel)
            grad0 = grad1 = ZERO
            if triangle[p] != 0:
                b0, b1 = barycentric[p, 0], barycentric[p, 1]
                b2 = ONE - b0 - b1
                i, j, k = corners_of(faces, triangle[p] - 1)
                for c in range(channels):
                    g = grad[p, c]
                    grad0 += g * (table[i, c] - table[k, c])
                    grad1 += g * (table[j, c] - table[k, c])
                    out[i, c] += b0 * g
                    out[j, c] += b1 * g
                    out[k, c] += b2 * g
            grad_barycentric[p, 0], grad_barycentric[p, 1] = grad0, grad1


@inlined
def cross(ax, ay, bx, by):
    return ax * by - ay * bx


@inlined
def outline(screen, faces, opposite, first, face):
    """A face's silhouette edges as bits: the face across it lies on the same side, or there is none."""
    i, j, k = first + faces[face, 0], first + faces[face, 1], first + faces[face, 2]
    whole = cross(
        screen[j, 0] - screen[i, 0], screen[j, 1] - screen[i, 1],
        screen[k, 0] - screen[i, 0], screen[k, 1] - screen[i, 1],
    )  # fmt: skip
    bits = 0
    for number in range(3):
        wing = opposite[face, number]
        one, other = (j, k) if number == 0 else ((k, i) if number == 1 else (i, j))
        if wing >= 0:
            x, y = screen[first + wing, 0], screen[first + wing, 1]
            if x == x and y == y:
                folded = cross(screen[one, 0] - x, screen[one, 1] - y, screen[other, 0] - x, screen[other, 1] - y)
                if (folded < ZERO) != (whole < ZERO):
                    continue
        bits |= 1 << number
    return np.uint8(bits)


@compiled
def crossings(
    begin,
    end,
    screen,
    faces,
    opposite,
    beyond,
    n,
    height,
    width,
    triangle,
    depth,
    known,
    pair,
    edge,
    alpha,
    start,
    count,
):
    """Rows of all images: their pairs with the pixel to the right and the one below, in that order.

    beyond (F, 3), or (0, 3) not to walk: the face across each edge.
    known (M, F): outlines, UNKNOWN before. Two threads may find one at once, and find the same. Row by row, a call
    fills pair, edge and alpha (2 M H W, ...) from where its first row has room for all pairs; start, count (M H,) say
    which of them are a row's.
    """
    half_width, half_height = np.float32(width) * HALF, np.float32(height) * HALF
    at = 2 * width * begin
    for row in range(begin, end):
        image, start[row] = row // height, at
        y = row - image * height
        for x in range(width):
            p = np.uintp(row * width + x)
            for vertical in range(2):
                if (y if vertical else x) + 1 == (height if vertical else width):
                    continue
                second = np.uintp(row * width + x + (width if vertical else 1))
                if triangle[p] == triangle[second]:
                    continue
                second_owns = triangle[p] == 0 or (triangle[second] != 0 and depth[second] <= depth[p])
                face = (triangle[second] if second_owns else triangle[p]) - 1
                other = (triangle[p] if second_owns else triangle[second]) - 1
                sign = -ONE if second_owns else ONE
                cx, cy = np.float32(x) + HALF - half_width, np.float32(y) + HALF - half_height
                if second_owns and vertical:
                    cy += ONE
                elif second_owns:
                    cx += ONE
                entry = -1  # the edge by which a face was entered
                for _ in range(STEPS if len(beyond) else 1):
                    if known[image, face] == UNKNOWN:
                        known[image, face] = outline(screen, faces, opposite, image * n, face)
                    bits = known[image, face]
                    if bits == 0 and len(beyond) == 0:
                        break
                    farthest, distance, upright = -1, -INFINITY, False
                    for number in range(3):
                        if number == entry:
                            continue
                        i = image * n + faces[face, (number + 1) % 3]
                        j = image * n + faces[face, (number + 2) % 3]
                        if vertical:
                            x1, x2 = screen[i, 1] - cy, screen[j, 1] - cy
                            y1, y2 = screen[i, 0] - cx, screen[j, 0] - cx
                        else:
                            x1, x2 = screen[i, 0] - cx, screen[j, 0] - cx
                            y1, y2 = screen[i, 1] - cy, screen[j, 1] - cy
                        if (y1 < ZERO) != (y2 < ZERO):
                            dx, dy = x2 - x1, y2 - y1
                            d = sign * (x1 * dy - y1 * dx) / dy
                            if d > distance:
                                farthest, distance, upright = number, d, abs(dy) >= abs(dx)
                    if farthest < 0:
                        break
                    if bits >> farthest & 1:
                        if upright and -slack < distance and distance < ONE + slack:
                            pair[at] = 2 * (row * width + x) + vertical
                            edge[at, 0] = image * n + faces[face, (farthest + 1) % 3]
                            edge[at, 1] = image * n + faces[face, (farthest + 2) % 3]
                            alpha[at] = sign * (HALF - min(max(distance, ZERO), ONE))
                            at += 1
                        break
                    if len(beyond) == 0 or not distance < ONE + slack:
                        break
                    after = beyond[face, farthest]
                    if after < 0 or after == other:
                        break
                    for number in range(3):
                        if beyond[after, number] == face:
                            entry = number
                            break
                    face = after
        count[row] = at - start[row]


@compiled
def pack(begin, end, start, count, to, pair, edge, alpha, packed_pair, packed_edge, packed_alpha):
    """Rows of all images: what was found in them, moved to where it begins without gaps."""
    for row in range(begin, end):
        for i in range(count[row]):
            source, target = start[row] + i, to[row] + i
            packed_pair[target], packed_alpha[target] = pair[source], alpha[source]
            packed_edge[target, 0], packed_edge[target, 1] = edge[source, 0], edge[source, 1]


@compiled
def blend(width, pair, alpha, color, out):
    """All pairs, one after the other: they are few, and a pixel may be in four."""
    for c in range(len(pair)):
        first = pair[c] // 2
        second = first + (width if pair[c] % 2 else 1)
        target = first if alpha[c] > ZERO else second
        for k in range(color.shape[1]):
            out[target, k] += alpha[c] * (color[second, k] - color[first, k])


@compiled
def blend_gradients(height, width, pair, edge, alpha, color, grad, grad_color, clip, grad_clip):
    """All pairs, one after the other. grad_color: a copy of grad before; grad_clip: zeros."""
    half_width, half_height = np.float32(width) * HALF, np.float32(height) * HALF
    for c in range(len(pair)):
        first, vertical = pair[c] // 2, pair[c] % 2 == 1
        second = first + (width if vertical else 1)
        target = first if alpha[c] > ZERO else second
        slope = ZERO
        for k in range(color.shape[1]):
            g = grad[target, k]
            slope -= g * (color[second, k] - color[first, k])
            grad_color[first, k] -= alpha[c] * g
            grad_color[second, k] += alpha[c] * g
        if not abs(alpha[c]) < HALF:
            continue
        i, j = edge[c, 0], edge[c, 1]
        w1, w2 = clip[i, 3], clip[j, 3]
        cx = np.float32(first % width) + HALF - half_width
        cy = np.float32(first // width % height) + HALF - half_height
        x1, x2 = clip[i, 0] / w1 * half_width - cx, clip[j, 0] / w2 * half_width - cx
        y1, y2 = -(clip[i, 1] / w1) * half_height - cy, -(clip[j, 1] / w2) * half_height - cy
        if vertical:
            x1, x2, y1, y2 = y1, y2, x1, x2
        dy = y2 - y1
        slope /= dy + math.copysign(least_height, dy)
        crossing = (x1 * y2 - y1 * x2) / dy
        add_edge(vertical, slope * y2, slope * (crossing - x2), half_width, half_height, clip, i, grad_clip)
        add_edge(vertical, -slope * y1, -slope * (crossing - x1), half_width, half_height, clip, j, grad_clip)


@inlined
def add_edge(vertical, along, across, half_width, half_height, clip, i, grad_clip):
    """A gradient in pixels, along and across the line of a pair, to that of the vertex i."""
    dx, dy = (across, along) if vertical else (along, across)
    w = clip[i, 3]
    dx, dy = dx / w * half_width, dy / w * -half_height
    grad_clip[i, 0] += dx
    grad_clip[i, 1] += dy
    grad_clip[i, 3] -= (clip[i, 0] * dx + clip[i, 1] * dy) / w


def signatures() -> list[tuple[Any, tuple[Any, ...]]]:
    """The kernels, in the order in which a step needs them, and the types that they are called with."""
    one, two, three, four, share = array(1), array(2), array(3), array(4), (int64, int64)
    whole, pairs, mesh = array(1, int64), array(2, int64), (array(2, int64), array(2, int64))
    boxes, size, found = array(2, int32), (int64, int64), (whole, pairs, one)
    return [
        (to_pixels, (*share, two, *size, two)),
        (find_boxes, (*share, two, pairs, int64, *size, boxes)),
        (find_nearest, (*share, two, pairs, int64, boxes, one, one, two, one, whole)),
        (values, (*share, three, pairs, whole, two, int64, two)),
        (crossings, (*share, two, *mesh, pairs, int64, *size, whole, one, array(2, uint8), *found, whole, whole)),
        (pack, (*share, whole, whole, whole, *found, *found)),
        (blend, (int64, whole, one, two, two)),
        (blend_gradients, (*size, whole, pairs, one, two, two, two, two, two)),
        (value_gradients, (*share, three, pairs, whole, two, two, two, four)),
        (rasterize_gradients, (*share, two, pairs, one, one, whole, two, two, four)),
    ]
