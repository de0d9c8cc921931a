"""The rasteriser's equations in torch: the reference, on any device, in float32 and float64. `raster.py` explains them.

Sums are written out in a fixed order, and nothing is fused: the compiled twin does the same arithmetic, bit for bit,
and so finds the same triangles.
"""

import torch
from torch import Tensor
from torch.nn import functional

from jointdreamer.kernels.raster import LEAST_AREA, LEAST_HEIGHT, LEAST_W, MARGIN, SLACK, STEPS, centres

CANDIDATES = 2**18  # faces x pixels of their boxes at a time: some 80 MB
NEXT, LAST = [1, 2, 0], [2, 0, 1]  # corners k + 1 and k + 2: the ends of edge k


def rasterize(clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """`kernels.raster.Twin.rasterize`."""
    shape = (len(clip), *resolution)
    depth, triangle = nearest(clip, faces, resolution)
    pixel = triangle.nonzero().squeeze(1)
    _, corners, fx, fy = seen(clip, faces, triangle.view(shape), pixel)
    _, _, a, area = edge_functions(corners, fx, fy)
    barycentric = clip.new_zeros(len(triangle), 2)
    barycentric[pixel] = a[:, :2] / area[:, None]
    return barycentric.view(*shape, 2), depth.view(shape), triangle.view(shape)


def nearest(clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Depth and triangle, both (M * H * W,): every pixel of every face's box is tried, CANDIDATES at a time."""
    height, width = resolution
    fx, fy = device_coordinates(clip, resolution)
    depth = clip.new_full((len(clip) * height * width,), torch.inf)
    nearest_face = torch.full_like(depth, len(faces), dtype=torch.long)  # a number that no face has
    left, top, columns, rows = boxes(clip, faces, resolution)
    sizes = columns * rows
    ends = sizes.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, CANDIDATES):
        candidate = torch.arange(start, min(start + CANDIDATES, total), device=clip.device)
        box = torch.searchsorted(ends, candidate, right=True)
        inside = candidate - (ends - sizes)[box]
        x, y = left[box] + inside % columns[box], top[box] + inside // columns[box]
        image, face = box // len(faces), box % len(faces)
        corners = clip[image[:, None], faces[face]]
        qx, qy, a, area = edge_functions(corners, fx[x], fy[y])
        z = weighted(corners[..., 2], a) / weighted(corners[..., 3], a)

        covered = (a >= 0).all(1) | (a <= 0).all(1)
        # a sliver that the pixel is in line with: rounding may leave no sign to tell by
        for q in (qx, qy):
            covered &= ~((q > 0).all(1) | (q < 0).all(1))
        covered &= (area != 0) & area.isfinite() & z.isfinite()
        pixel, z, face = ((image * height + y) * width + x)[covered], z[covered], face[covered]
        before = depth[pixel]
        depth.scatter_reduce_(0, pixel, z, "amin")
        now = depth[pixel]
        nearest_face[pixel[now < before]] = len(faces)
        wins = z == now
        nearest_face.scatter_reduce_(0, pixel[wins], face[wins], "amin")
    hit = nearest_face < len(faces)
    return torch.where(hit, depth, 0), torch.where(hit, nearest_face + 1, 0)


def boxes(clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left column, top row, number of columns and of rows of every face's pixels in every image, (M * F,) each."""
    corners = project(clip, resolution)[:, faces].flatten(0, 1)  # (M * F, 3, 2)
    low, high = corners.amin(1), corners.amax(1)  # NaN for a face that is not drawn
    first, counts = [], []
    for axis, n in ((0, resolution[1]), (1, resolution[0])):
        middle = n / 2 - 0.5
        start = (low[:, axis] + middle - MARGIN).ceil().clamp(0, n).nan_to_num(n)
        end = (high[:, axis] + middle + MARGIN).floor().clamp(-1, n - 1).nan_to_num(-1)
        first.append(start.long())
        counts.append((end - start + 1).clamp(min=0).long())
    return *first, *counts


def project(clip: Tensor, resolution: tuple[int, int]) -> Tensor:
    """(M, N, 2): pixels to the right of and below the image's centre; NaN for what is not in front of the camera."""
    height, width = resolution
    x, y, w = clip[..., 0], clip[..., 1], clip[..., 3]
    found = torch.stack([x / w * (width / 2), -(y / w) * (height / 2)], dim=-1)
    usable = (w > LEAST_W) & clip.isfinite().all(-1)
    return torch.where(usable[..., None], found, torch.nan)


def edge_functions(corners: Tensor, fx: Tensor, fy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q_k = (x - fx w, y - fy w) by axis, a_k = q_k+1 x q_k+2, all (P, 3), and A = a_0 + a_1 + a_2 (P,)."""
    qx = corners[..., 0] - fx[:, None] * corners[..., 3]
    qy = corners[..., 1] - fy[:, None] * corners[..., 3]
    # An edge seen from its other face has exactly the opposite sign: no pixel falls between two faces
    a = qx[:, NEXT] * qy[:, LAST] - qy[:, NEXT] * qx[:, LAST]
    return qx, qy, a, a[:, 0] + a[:, 1] + a[:, 2]


def weighted(x: Tensor, a: Tensor) -> Tensor:
    terms = x * a
    return terms[:, 0] + terms[:, 1] + terms[:, 2]


def seen(clip: Tensor, faces: Tensor, triangle: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vertices (P, 3), numbered through all images, corners (P, 3, 4), fx and fy (P,) of pixels that see a face."""
    _, height, width = triangle.shape
    x, y, image = pixel % width, pixel // width % height, pixel // (height * width)
    vertices = faces[triangle.view(-1)[pixel] - 1] + (image * clip.shape[1])[:, None]
    fx, fy = device_coordinates(clip, (height, width))
    return vertices, clip.view(-1, 4)[vertices], fx[x], fy[y]


def device_coordinates(clip: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """fx (W,) and fy (H,), normalised, of the centres of columns and rows; y is up and row 0 the top."""
    height, width = resolution
    return centres(width, clip.dtype, clip.device), -centres(height, clip.dtype, clip.device)


def add_rows(n: int, index: Tensor, rows: Tensor) -> Tensor:
    """Sums (n, K) of rows (..., K) that have the same index."""
    return rows.new_zeros(n, rows.shape[-1]).index_add_(0, index.flatten(), rows.reshape(-1, rows.shape[-1]))


def rasterize_backward(clip: Tensor, faces: Tensor, barycentric: Tensor, triangle: Tensor, grad: Tensor) -> Tensor:
    """`kernels.raster.Twin.rasterize_backward`."""
    pixel = triangle.view(-1).nonzero().squeeze(1)
    vertices, corners, fx, fy = seen(clip, faces, triangle, pixel)
    qx, qy, _, area = edge_functions(corners, fx, fy)
    b0, b1 = barycentric.view(-1, 2)[pixel].unbind(-1)
    g0, g1 = (grad.reshape(-1, 2)[pixel] / (area + area.sign() * LEAST_AREA)[:, None]).unbind(-1)
    both = g0 * b0 + g1 * b1
    (x0, x1, x2), (y0, y1, y2) = qx.unbind(-1), qy.unbind(-1)
    dx = torch.stack(
        [both * (y2 - y1) - g1 * y2, both * (y0 - y2) + g0 * y2, both * (y1 - y0) - g0 * y1 + g1 * y0], dim=-1
    )
    dy = torch.stack(
        [both * (x1 - x2) + g1 * x2, both * (x2 - x0) - g0 * x2, both * (x0 - x1) + g0 * x1 - g1 * x0], dim=-1
    )
    dw = -fx[:, None] * dx - fy[:, None] * dy
    return add_rows(clip[..., 0].numel(), vertices, torch.stack([dx, dy, torch.zeros_like(dx), dw], -1)).view_as(clip)


def interpolate(attributes: Tensor, barycentric: Tensor, triangle: Tensor, faces: Tensor) -> Tensor:
    """`kernels.raster.Twin.interpolate`."""
    pixel, vertices, b = weights(attributes, barycentric, triangle, faces)
    values = attributes.new_zeros(triangle.numel(), attributes.shape[-1])
    terms = attributes.view(-1, attributes.shape[-1])[vertices] * b[..., None]
    values[pixel] = terms[:, 0] + terms[:, 1] + terms[:, 2]
    return values.view(*triangle.shape, -1)


def interpolate_backward(
    attributes: Tensor, barycentric: Tensor, triangle: Tensor, faces: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """`kernels.raster.Twin.interpolate_backward`."""
    channels = attributes.shape[-1]
    pixel, vertices, b = weights(attributes, barycentric, triangle, faces)
    g = grad.reshape(-1, channels)[pixel]
    corners = attributes.view(-1, channels)[vertices]
    grad_barycentric = torch.zeros_like(barycentric).view(-1, 2)
    grad_barycentric[pixel] = (g[:, None] * (corners[:, :2] - corners[:, 2:])).sum(-1)
    grad_attributes = add_rows(attributes[..., 0].numel(), vertices, b[..., None] * g[:, None])
    return grad_attributes.view_as(attributes), grad_barycentric.view_as(barycentric)


def weights(attributes: Tensor, barycentric: Tensor, triangle: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (P,) that see a face, their rows (P, 3) of the attributes, and b_0, b_1, b_2 (P, 3)."""
    pixel = triangle.view(-1).nonzero().squeeze(1)
    vertices = faces[triangle.view(-1)[pixel] - 1]
    if len(attributes) > 1:
        vertices = vertices + (pixel // triangle[0].numel() * attributes.shape[1])[:, None]
    b0, b1 = barycentric.view(-1, 2)[pixel].unbind(-1)
    return pixel, vertices, torch.stack([b0, b1, 1 - b0 - b1], dim=-1)


def find_crossings(
    clip: Tensor, faces: Tensor, opposite: Tensor, beyond: Tensor, triangle: Tensor, depth: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`kernels.raster.Twin.find_crossings`."""
    _, height, width = triangle.shape
    screen = project(clip, (height, width))
    outline = silhouettes(screen, faces, opposite)
    beside = functional.pad(triangle[:, :, 1:] != triangle[:, :, :-1], (0, 1))
    below = functional.pad(triangle[:, 1:] != triangle[:, :-1], (0, 0, 0, 1))
    pair = torch.stack([beside, below], dim=-1).view(-1).nonzero().squeeze(1)

    first, second = ends(pair, width)
    seen, z = triangle.view(-1), depth.view(-1)
    second_owns = (seen[first] == 0) | ((seen[second] != 0) & (z[second] <= z[first]))
    face = torch.where(second_owns, seen[second], seen[first]) - 1
    other = torch.where(second_owns, seen[first], seen[second]) - 1
    image = first // (height * width)
    owner = torch.where(second_owns, second, first)
    sign = 1 - 2 * second_owns.to(clip.dtype)
    entry = torch.full_like(face, -1)  # the edge by which a face was entered
    rows = torch.arange(len(pair), device=pair.device)  # the pairs that are still looked at
    if not len(beyond):
        rows = rows[outline[image, face].any(-1)]  # most pairs lie inside of the surface
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(STEPS if len(beyond) else 1):
        here, at = face[rows], image[rows]
        x, y = from_pixel(screen[at[:, None], faces[here]], owner[rows], pair[rows], (height, width))
        x1, x2, y1, y2 = x[:, NEXT], x[:, LAST], y[:, NEXT], y[:, LAST]
        dx, dy = x2 - x1, y2 - y1
        distance = sign[rows, None] * (x1 * dy - y1 * dx) / dy
        crossed = ((y1 < 0) != (y2 < 0)) & (entry[rows, None] != torch.arange(3, device=rows.device))
        distance = torch.where(crossed, distance, -torch.inf).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        farthest = distance.argmax(1, keepdim=True)
        d = distance.gather(1, farthest).squeeze(1)
        edge_is_outline = outline[at, here].gather(1, farthest).squeeze(1)
        upright = (dy.abs() >= dx.abs()).gather(1, farthest).squeeze(1)
        near = (d > -SLACK) & (d < 1 + SLACK)
        kept = (edge_is_outline & upright & near).nonzero().squeeze(1)
        vertices = (faces[here] + (at * clip.shape[1])[:, None])[kept]
        edge = torch.cat([vertices[:, NEXT].gather(1, farthest[kept]), vertices[:, LAST].gather(1, farthest[kept])], 1)
        found.append((rows[kept], edge, sign[rows[kept]] * (0.5 - d[kept].clamp(0, 1))))
        if not len(beyond):
            break
        after = beyond[here].gather(1, farthest).squeeze(1)
        goes_on = ~edge_is_outline & (d > -torch.inf) & (d < 1 + SLACK) & (after != other[rows]) & (after >= 0)
        face[rows] = after
        entry[rows] = (beyond[after.clamp(min=0)] == here[:, None]).int().argmax(1)
        rows = rows[goes_on]
        if not len(rows):
            break
    which, edge, alpha = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = which.argsort()
    return pair[which[order]], edge[order], alpha[order]


def silhouettes(screen: Tensor, faces: Tensor, opposite: Tensor) -> Tensor:
    """Which edges (M, F, 3) of each face have no other face behind them: it lies on the same side, or there is none."""
    corners = screen[:, faces]
    wing = screen[:, opposite.clamp(min=0)]
    none = (opposite < 0) | wing.isnan().any(-1)
    whole = cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    folded = cross(corners[:, :, NEXT] - wing, corners[:, :, LAST] - wing)
    return none | ((folded < 0) == (whole < 0)[..., None])


def cross(u: Tensor, v: Tensor) -> Tensor:
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def ends(pair: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The first and the second pixel of pairs, (C,) each."""
    first = pair // 2
    return first, first + torch.where(pair % 2 == 1, width, 1)


def from_pixel(screen: Tensor, pixel: Tensor, pair: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Points (C, P, 2) seen from a pixel (C,) of a pair: how far along the line of the pair, and how far across."""
    height, width = resolution
    centre = torch.stack([pixel % width + 0.5 - width / 2, pixel // width % height + 0.5 - height / 2], dim=-1)
    x, y = (screen - centre[:, None].to(screen.dtype)).unbind(-1)
    vertical = (pair % 2 == 1)[:, None]
    return torch.where(vertical, y, x), torch.where(vertical, x, y)


def antialias(color: Tensor, pair: Tensor, alpha: Tensor) -> Tensor:
    """`kernels.raster.Twin.antialias`."""
    first, second = ends(pair, color.shape[2])
    out = color.clone().view(-1, color.shape[-1])
    before = color.view(-1, color.shape[-1])
    target = torch.where(alpha > 0, first, second)
    return out.index_add_(0, target, alpha[:, None] * (before[second] - before[first])).view_as(color)


def antialias_backward(
    color: Tensor, clip: Tensor, pair: Tensor, edge: Tensor, alpha: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """`kernels.raster.Twin.antialias_backward`."""
    _, height, width, channels = color.shape
    first, second = ends(pair, width)
    before, after = color.view(-1, channels), grad.reshape(-1, channels)
    g = after[torch.where(alpha > 0, first, second)]
    grad_color = after.clone()
    grad_color.index_add_(0, first, -alpha[:, None] * g).index_add_(0, second, alpha[:, None] * g)

    slope = -(g * (before[second] - before[first])).sum(-1)  # dL/dXc
    slope = torch.where(alpha.abs() < 0.5, slope, 0)
    corners = clip.view(-1, 4)[edge]  # (C, 2, 4)
    (x1, x2), (y1, y2) = (u.unbind(-1) for u in from_pixel(project(corners, (height, width)), first, pair,
                                                            (height, width)))  # fmt: skip
    dy = y2 - y1
    slope_by_dy = slope / (dy + torch.copysign(torch.full_like(dy, LEAST_HEIGHT), dy))
    crossing = (x1 * y2 - y1 * x2) / dy
    along = torch.stack([slope_by_dy * y2, -slope_by_dy * y1], dim=-1)
    across = torch.stack([slope_by_dy * (crossing - x2), -slope_by_dy * (crossing - x1)], dim=-1)
    vertical = (pair % 2 == 1)[:, None]
    x, y, w = corners[..., 0], corners[..., 1], corners[..., 3]
    grad_x = torch.where(vertical, across, along) / w * (width / 2)
    grad_y = torch.where(vertical, along, across) / w * (-height / 2)
    grad_w = -(x * grad_x + y * grad_y) / w
    rows = torch.stack([grad_x, grad_y, torch.zeros_like(grad_x), grad_w], dim=-1)
    return grad_color.view_as(color), add_rows(clip[..., 0].numel(), edge, rows).view_as(clip)
