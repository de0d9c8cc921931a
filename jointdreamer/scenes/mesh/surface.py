"""What a triangle mesh says of itself: normals, smoothness, and what of a level function is the object."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Vertices (N, 3) in world units; faces (F, 3) int64, counter-clockwise seen from outside.


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """(F, 3), as long as twice the face's area."""
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """(N, 3), unit length: the mean of the faces' around each vertex, weighted by area; (0, 0, 1) without any area."""
    normal = face_normals(vertices, faces)
    total = torch.zeros_like(vertices).index_add(0, faces.reshape(-1), normal.repeat_interleave(3, 0))
    flat = total.square().sum(1, keepdim=True) <= 1e-20
    return F.normalize(torch.where(flat, total.new_tensor([0.0, 0.0, 1.0]), total), dim=1)


def unique_edges(faces: Tensor) -> tuple[Tensor, Tensor]:
    """The edges (E, 2), smaller vertex first, sorted; and the row of each of the faces' edges (F, 3).

    Edge k of a face lies between its corners k and k + 1.
    """
    pairs = torch.stack([faces, faces.roll(-1, 1)], -1).sort(-1).values  # (F, 3, 2)
    n = int(faces.max()) + 1 if len(faces) else 1
    keys, rows = torch.unique(pairs[..., 0] * n + pairs[..., 1], return_inverse=True)
    return torch.stack([keys // n, keys % n], 1), rows


def normal_consistency(vertices: Tensor, faces: Tensor) -> Tensor:
    """threestudio's: the mean over edges of 1 - cos of the angle between the normals of the edge's two vertices."""
    edges, _ = unique_edges(faces)
    normal = vertex_normals(vertices, faces)[edges]
    return (1 - (normal[:, 0] * normal[:, 1]).sum(1)).mean()


def face_consistency(vertices: Tensor, faces: Tensor) -> Tensor:
    """ProlificDreamer's and Magic123's: 1 - cos between the normals of the two faces at an edge, the mean over edges.

    Edges with other than two faces are left out.
    """
    _, rows = unique_edges(faces)
    order = rows.flatten().argsort(stable=True)
    edge, face = rows.flatten()[order], order // 3
    n_faces = torch.bincount(edge)
    first = (n_faces.cumsum(0) - n_faces)[n_faces == 2]  # the place of each such edge's first face
    normal = F.normalize(face_normals(vertices, faces), dim=1, eps=1e-10)
    return (1 - (normal[face[first]] * normal[face[first + 1]]).sum(1)).mean()


def laplacian(vertices: Tensor, faces: Tensor) -> Tensor:
    """threestudio's: the mean over vertices of |degree v - sum of its neighbours|, in fp32.

    Not divided by the degree, and not squared.
    """
    with torch.autocast(vertices.device.type, enabled=False):  # its weight is 10,000: half precision would overflow
        edges, _ = unique_edges(faces)
        difference = vertices.float()[edges[:, 0]] - vertices.float()[edges[:, 1]]
        total = torch.zeros_like(vertices, dtype=torch.float32).index_add(
            0, edges.t().reshape(-1), torch.cat([difference, -difference])
        )
        return norm(total).mean()


def norm(x: Tensor) -> Tensor:
    """|x| along the last axis, whose gradient at 0 is 0."""
    squared = x.square().sum(-1)
    return torch.where(squared > 0, squared.clamp_min(1e-30).sqrt(), squared)


MESH_REGULARIZERS = {
    "normal_consistency": normal_consistency,
    "face_consistency": face_consistency,
    "laplacian": laplacian,
}


def smoothed(level: Tensor, edges: Tensor, times: int) -> Tensor:
    """A level (N,) half way to the mean of its neighbours, so many times."""
    a, b = edges.t()
    degree = torch.bincount(edges.flatten(), minlength=len(level)).clamp_min(1)
    for _ in range(times):
        total = torch.zeros_like(level).index_add(0, a, level[b]).index_add(0, b, level[a])
        level = (level + total / degree) / 2
    return level


def main_pieces(
    level: Tensor,  # (N,) positive outside
    edges: Tensor,  # (E, 2) between neighbours
    outer: Tensor,  # (N,) bool: outside whatever their level
    min_share: float = 0.05,
) -> Tensor:
    """The level with all of `outer` outside, without hollows and floaters: (N,), magnitudes kept.

    Of the separate pieces the largest stays and those of at least `min_share` of its vertices; enclosed outside becomes
    inside, where no camera sees it.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    inside = (level <= 0) & ~outer
    a, b = edges[inside[edges[:, 0]] == inside[edges[:, 1]]].t().cpu().numpy()
    graph = coo_matrix((torch.ones(len(a)).numpy(), (a, b)), shape=(len(level), len(level)))
    piece = torch.from_numpy(connected_components(graph, directed=False)[1]).long().to(level.device)
    size = torch.bincount(piece)
    solid = torch.zeros_like(size, dtype=torch.bool)
    solid[piece[inside]] = True
    kept = solid & (size >= min_share * max(int(size[solid].max()), 1)) if bool(solid.any()) else solid
    hollow = ~solid
    hollow[piece[outer]] = False
    now_inside = kept[piece] | hollow[piece]
    size_of = level.abs().clamp_min(1e-3)  # nothing lies on the surface itself
    return torch.where(now_inside, torch.where(level <= 0, level, -size_of), torch.where(level > 0, level, size_of))
