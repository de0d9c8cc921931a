"""The rasteriser against a loop over pixels in exact arithmetic, closed forms, and shapes fitted by their masks."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.scenes.mesh import raster_torch
from jointdreamer.scenes.mesh.raster import (
    Raster,
    across_edges,
    antialias,
    backend_for,
    interpolate,
    opposite_vertices,
    rasterize,
    sample_texture,
)

both = pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=pytest.mark.kernels)])
INFINITE = float("inf")


def from_pixels(points: list, resolution: int, w: float = 1.0) -> Tensor:
    """Clip coordinates (N, 4) of points (column, row, z) in pixels from the upper left corner, or with a w each."""
    rows = [(*point, w)[:4] for point in points]
    return torch.tensor([((2 * x / resolution - 1) * w, (1 - 2 * y / resolution) * w, z * w, w) for x, y, z, w in rows])


def icosphere(subdivisions: int) -> tuple[Tensor, Tensor]:
    import trimesh

    made = trimesh.creation.icosphere(subdivisions=subdivisions)
    return torch.tensor(made.vertices, dtype=torch.float32), torch.tensor(made.faces, dtype=torch.int64)


def perspective(points: Tensor, n_views: int = 1, distance: float = 3.0) -> Tensor:
    """Clip coordinates (M, N, 4) of points (N, 3) for cameras around the origin that see 60 degrees of it."""
    views = []
    for azimuth in torch.arange(n_views) * 2 * math.pi / n_views:
        forward = torch.stack([azimuth.cos(), azimuth.sin(), torch.zeros(())]).to(points)
        right = torch.stack([-azimuth.sin(), azimuth.cos(), torch.zeros(())]).to(points)
        away = distance - points @ forward
        focal = 1 / math.tan(math.pi / 6)
        z = (11 * away - 20) / 9  # near 1, far 10
        views.append(torch.stack([focal * points @ right, focal * points[:, 2], z, away], dim=-1))
    return torch.stack(views)


# ---- which face a pixel sees


def brute_force(clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Triangle, depth and barycentric coordinates of one image: every pixel and every face, in whole fractions."""
    height, width = resolution
    triangle = torch.zeros(height, width, dtype=torch.int64)
    depth, barycentric = torch.zeros(height, width), torch.zeros(height, width, 2)
    for row in range(height):
        for column in range(width):
            fx, fy = Fraction(2 * column + 1, width) - 1, 1 - Fraction(2 * row + 1, height)
            best = None
            for number, face in enumerate(faces.tolist()):
                corners = [clip[i].tolist() for i in face]
                if not all(math.isfinite(value) for corner in corners for value in corner):
                    continue
                x, y, z, w = zip(*[map(Fraction, corner) for corner in corners], strict=True)
                if min(w) <= Fraction(1, 10**6):
                    continue
                q = [(x[k] - fx * w[k], y[k] - fy * w[k]) for k in range(3)]
                a = [q[i][0] * q[j][1] - q[i][1] * q[j][0] for i, j in ((1, 2), (2, 0), (0, 1))]
                if sum(a) == 0 or not (min(a) >= 0 or max(a) <= 0):
                    continue
                key = sum(map(Fraction.__mul__, z, a)) / sum(map(Fraction.__mul__, w, a)), number
                if best is None or key < best:
                    best = key
                    triangle[row, column], depth[row, column] = number + 1, float(key[0])
                    barycentric[row, column] = torch.tensor([float(a[0] / sum(a)), float(a[1] / sum(a))])
    return triangle, depth, barycentric


def soup(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    w = 0.5 + 2 * torch.rand(3 * n, 1, generator=generator)
    points = 2.6 * torch.rand(3 * n, 3, generator=generator) - 1.3
    return torch.cat([points * w, w], dim=1), torch.arange(3 * n).view(n, 3)


def random_soup() -> tuple[Tensor, Tensor]:
    return soup(12, torch.Generator().manual_seed(0))


def random_slivers() -> tuple[Tensor, Tensor]:
    clip, faces = soup(14, torch.Generator().manual_seed(1))
    clip[2::3] = (clip[0::3] + clip[1::3]) / 2 + 0.02
    return clip, faces


def grid_on_pixel_centres() -> tuple[Tensor, Tensor]:
    """Every vertex and most edges pass exactly through pixel centres, in two layers that are equally near."""
    clip = from_pixels([(x + 0.5, y + 0.5, 0.25) for y in range(0, 9, 2) for x in range(0, 9, 2)], 8)
    cells = [5 * y + x for y in range(4) for x in range(4)]
    faces = [face for i in cells for face in ((i, i + 1, i + 6), (i, i + 6, i + 5))]
    return clip, torch.tensor([*faces[::-1], *faces])


def fan_in_perspective() -> tuple[Tensor, Tensor]:
    """Tilted faces around one vertex at a pixel centre, with different w, that can be told exactly in float32."""
    ring = [(0, 0, 0.0, 1.0), (8, 0, 0.5, 2.0), (8, 8, 0.0, 1.0), (0, 8, 0.5, 2.0)]
    clip = from_pixels([(3.5, 4.5, 0.25, 1.0), *ring], 8)
    return clip, torch.tensor([(0, 1, 2), (0, 3, 2), (0, 3, 4), (0, 1, 4), (1, 2, 3)])


def around_the_camera() -> tuple[Tensor, Tensor]:
    """One face in front; the others reach the plane of the camera, lie behind it, or are not numbers."""
    good = from_pixels([(1, 1, 0.5), (7, 2, 0.5), (3, 7, 0.5)], 8)
    bad = []
    for w in (0.0, 1e-6, -1.0, -1e-30, float("nan"), INFINITE, -INFINITE):
        bad.append(good.clone())
        bad[-1][1, 3] = w
    bad += [-good, good * torch.tensor([INFINITE, 1, 1, 1]), good * torch.tensor([1, 1, float("nan"), 1])]
    return torch.cat([*bad, good]), torch.arange(33).view(11, 3)


def off_screen() -> tuple[Tensor, Tensor]:
    corners = [(1, 1, 0.5), (7, 2, 0.5), (3, 7, 0.5)]
    moves = [(20, 0), (-20, 0), (0, 20), (0, -20), (6, 5), (-5, -4), (3e7, 3e7)]
    points = [(x + dx, y + dy, z) for dx, dy in moves for x, y, z in corners]
    around = [(-100, -100, 0.75), (300, -100, 0.75), (-100, 300, 0.75)]
    return from_pixels([*points, *around], 8), torch.arange(24).view(8, 3)


def zero_area() -> tuple[Tensor, Tensor]:
    clip = from_pixels([(0.5, 0.5, 0), (3.5, 3.5, 0), (7.5, 7.5, 0), (0.5, 7.5, 1), (7.5, 4.5, 1), (0.5, 3.5, 0)], 8)
    faces = [(0, 1, 2), (1, 1, 4), (2, 2, 2), (0, 2, 0), (5, 1, 5), (3, 4, 1)]
    return clip, torch.tensor(faces)


def no_faces() -> tuple[Tensor, Tensor]:
    return torch.zeros(0, 4), torch.zeros(0, 3, dtype=torch.int64)


WORLDS = (random_soup, random_slivers, grid_on_pixel_centres, fan_in_perspective, around_the_camera, off_screen,
          zero_area, no_faces)  # fmt: skip


@both
@pytest.mark.parametrize("world", WORLDS)
def test_every_pixel_sees_what_a_loop_over_pixels_and_faces_finds(backend, world):
    clip, faces = world()
    resolution = (11, 13) if "random" in world.__name__ else (8, 8)
    triangle, depth, barycentric = brute_force(clip, faces, resolution)
    found = rasterize(clip[None], faces, resolution, backend)
    assert torch.equal(found.triangle[0], triangle)
    torch.testing.assert_close(found.depth[0], depth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.barycentric[0], barycentric, atol=1e-5, rtol=1e-5)
    assert (triangle > 0).any() == (world is not no_faces)


def test_the_reference_finds_the_same_a_few_candidates_at_a_time(monkeypatch):
    clip, faces = random_soup()
    whole = rasterize(clip[None], faces, (11, 13), "torch")
    monkeypatch.setattr(raster_torch, "CANDIDATES", 7)
    parts = rasterize(clip[None], faces, (11, 13), "torch")
    assert torch.equal(whole.triangle, parts.triangle) and torch.equal(whole.depth, parts.depth)


@both
def test_just_beyond_its_end_a_sliver_covers_nothing(backend):
    """Its corners are in line with the middle pixel's centre, (0, 0), but for one last bit, which a product loses."""
    end, infinity = 2.0**-10, torch.tensor(math.inf)  # 1/66 of a pixel
    for a, b in 0.1 + 0.7 * torch.rand(60, 2, generator=torch.Generator().manual_seed(10)):
        corners = torch.tensor([[end, end], [a, a], [b, torch.nextafter(b, infinity)]])
        clip = torch.cat([corners, torch.tensor([[0.5, 1.0]]).expand(3, 2)], dim=1)[None]
        raster = rasterize(clip, torch.tensor([[0, 1, 2]]), (31, 31), backend)
        assert not raster.triangle[0, 15, 15]


@both
def test_images_do_not_influence_each_other(backend):
    (one, faces), (other, _) = soup(9, torch.Generator().manual_seed(3)), soup(9, torch.Generator().manual_seed(4))
    together = rasterize(torch.stack([one, other]), faces, (9, 14), backend)
    for image, clip in enumerate((one, other)):
        alone = rasterize(clip[None], faces, (9, 14), backend)
        assert torch.equal(together.triangle[image], alone.triangle[0])
        assert torch.equal(together.barycentric[image], alone.barycentric[0])


@both
def test_row_0_is_the_top_and_b0_belongs_to_the_first_corner(backend):
    clip = from_pixels([(1, 0, 0), (6, 0, 0), (1, 5, 0)], 8)[None]  # points down from the upper left
    raster = rasterize(clip, torch.tensor([[0, 1, 2]]), (8, 8), backend)
    assert (raster.triangle[0] > 0).sum(1).tolist() == [5, 4, 3, 2, 1, 0, 0, 0]
    assert (raster.triangle[0] > 0).sum(0).tolist() == [0, 5, 4, 3, 2, 1, 0, 0]
    torch.testing.assert_close(raster.barycentric[0, 0, 1], torch.tensor([0.8, 0.1]))


@both
def test_between_faces_of_a_surface_no_pixel_sees_through(backend):
    vertices, faces = icosphere(3)
    clip = perspective(vertices, 3, distance=1.2)  # larger than the image
    assert (rasterize(clip, faces, (64, 64), backend).triangle > 0).all()


# ---- values and gradients inside of faces


@both
def test_attributes_are_perspective_correct(backend):
    """A plane that is tilted away: its points, found again from their pixels."""
    corners = torch.tensor([[-1.0, -1.0, 1.0], [1.0, -1.0, 0.0], [0.0, 1.0, -1.0]])
    faces = torch.tensor([[0, 1, 2]])
    clip = perspective(corners)
    found = interpolate(corners, raster := rasterize(clip, faces, (32, 32), backend), faces, backend)
    seen = raster.triangle[0] > 0
    again = perspective(found[0][seen])[0]
    pixel = again[:, :2] / again[:, 3:]
    row, column = seen.nonzero().unbind(1)
    torch.testing.assert_close(pixel[:, 0], (2 * column + 1) / 32 - 1, atol=1e-5, rtol=0)
    torch.testing.assert_close(pixel[:, 1], 1 - (2 * row + 1) / 32, atol=1e-5, rtol=0)
    torch.testing.assert_close(raster.depth[0][seen], again[:, 2] / again[:, 3], atol=1e-5, rtol=0)
    assert seen.sum() > 100 and (found[0][~seen] == 0).all()


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_interpolated_attributes(shared):
    g = torch.Generator().manual_seed(5)
    clips = [soup(3, g) for _ in range(2)]
    clip, faces = torch.stack([clip for clip, _ in clips]).double().requires_grad_(), clips[0][1]
    attributes = torch.randn(*(() if shared else (2,)), 9, 2, generator=g).double().requires_grad_()

    def image(clip: Tensor, attributes: Tensor) -> Tensor:
        return interpolate(attributes, rasterize(clip, faces, (5, 6)), faces)

    assert (image(clip, attributes) != 0).sum() > 20
    torch.autograd.gradcheck(image, (clip, attributes), eps=1e-7, atol=1e-5, rtol=1e-4)


@both
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e18])
def test_gradients_are_finite_whatever_the_mesh(backend, size):
    meshes = [world() for world in WORLDS[:-1]]
    offsets = torch.tensor([0, *(len(clip) for clip, _ in meshes)]).cumsum(0)
    clip = (torch.cat([clip for clip, _ in meshes]) * torch.tensor([size, size, size, 1]))[None].requires_grad_()
    faces = torch.cat([faces + start for (_, faces), start in zip(meshes, offsets, strict=False)])
    attributes = torch.randn(clip.shape[1], 3).requires_grad_()
    raster = rasterize(clip, faces, (16, 12), backend)
    color = interpolate(attributes, raster, faces, backend)
    image = antialias(color, raster, clip, faces, opposite_vertices(faces), backend)
    image.square().sum().backward()
    assert clip.grad is not None and attributes.grad is not None
    assert all(x.isfinite().all() for x in (raster.barycentric, raster.depth, image, clip.grad, attributes.grad))


@both
def test_no_faces_send_back_zeros(backend):
    clip, faces = torch.zeros(2, 5, 4, requires_grad=True), torch.zeros(0, 3, dtype=torch.int64)
    attributes = torch.zeros(5, 3, requires_grad=True)
    raster = rasterize(clip, faces, (4, 6), backend)
    image = interpolate(attributes, raster, faces, backend)
    image = antialias(image, raster, clip, faces, opposite_vertices(faces), backend)
    assert image.shape == (2, 4, 6, 3) and not image.any()
    image.sum().backward()
    assert clip.grad is not None and attributes.grad is not None and not clip.grad.any() and not attributes.grad.any()


# ---- silhouettes


def test_what_lies_across_an_edge():
    square = torch.tensor([[0, 1, 2], [2, 1, 3]])
    assert opposite_vertices(square).tolist() == [[3, -1, -1], [-1, -1, 0]]
    vertices, sphere = icosphere(1)
    opposite = opposite_vertices(sphere)
    for face, across in zip(sphere.tolist(), opposite.tolist(), strict=True):
        for k in range(3):
            edge = {face[k - 2], face[k - 1]}
            (other,) = [set(f) for f in sphere.tolist() if edge < set(f) and set(f) != set(face)]
            assert other - edge == {across[k]}
    assert opposite_vertices(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3)


def test_an_edge_of_three_faces_has_nothing_across_it():
    fins = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4], [2, 1, 5]])
    assert opposite_vertices(fins).tolist() == [[5, -1, -1], [-1] * 3, [-1] * 3, [-1, -1, 0]]


def mask(clip: Tensor, faces: Tensor, resolution: tuple[int, int], backend: str = "auto") -> Tensor:
    """Antialiased opacity (M, H, W)."""
    raster = rasterize(clip, faces, resolution, backend)
    hard = (raster.triangle > 0).to(clip)[..., None]
    return antialias(hard, raster, clip, faces, opposite_vertices(faces), backend)[..., 0]


@both
def test_an_edge_between_two_centres_blends_by_its_distance(backend):
    faces = torch.tensor([[0, 1, 2], [2, 1, 3]])
    for shift in (0.0, 0.2, 0.5, 0.7, 0.95):
        # from column 2.5 to beyond the last, from above the first row to below the last
        x = 2.5 - shift
        clip = from_pixels([(x, -9, 0.5), (x, 20, 0.5), (30, -9, 0.5), (30, 20, 0.5)], 8)[None]
        row = mask(clip, faces, (8, 8), backend)[0, 4]
        torch.testing.assert_close(row, torch.tensor([0, max(2 - x, 0), min(3 - x, 1), 1, 1, 1, 1, 1]))


@both
def test_the_mask_of_a_triangle_has_its_area_and_so_has_its_gradient(backend):
    g = torch.Generator().manual_seed(6)
    corners = torch.tensor([[11.0, 9.0], [51.0, 21.0], [23.0, 52.0]])
    slopes, closed_form = [], []
    for shift in torch.rand(24, 1, 2, generator=g):
        points = (corners + shift).requires_grad_()
        ones = torch.ones(3, 1)
        clip = torch.cat([points[:, :1] / 32 - 1, 1 - points[:, 1:] / 32, 0.5 * ones, ones], dim=1)[None]
        area = mask(clip, torch.tensor([[0, 1, 2]]), (64, 64), backend).sum()
        u, v = points[1] - points[0], points[2] - points[0]
        true = (u[0] * v[1] - u[1] * v[0]).abs() / 2
        assert abs(area - true) < 1e-2 * true
        slopes.append(torch.autograd.grad(area, points, retain_graph=True)[0])
        closed_form.append(torch.autograd.grad(true, points)[0])
    ours, theirs = torch.stack(slopes).mean(0), torch.stack(closed_form).mean(0)
    assert (ours - theirs).abs().max() < 0.03 * theirs.abs().max()


def test_gradients_of_antialiased_colours():
    g = torch.Generator().manual_seed(7)
    clip = from_pixels(
        [(1.23, 1.31, 0.5), (12.42, 3.17, 0.5), (4.64, 11.71, 0.5), (0.38, 6.13, 0.7), (12.29, 8.93, 0.8)], 13
    )
    w = torch.tensor([1.0, 1.5, 2.0, 1.2, 0.8])[:, None]
    clip, faces = (clip * w)[None].double().requires_grad_(), torch.tensor([[0, 1, 2], [3, 4, 2]])
    color = torch.rand(1, 13, 13, 2, generator=g).double().requires_grad_()

    def image(color: Tensor, clip: Tensor) -> Tensor:
        return antialias(color, rasterize(clip, faces, (13, 13)), clip, faces, opposite_vertices(faces))

    assert (image(color, clip) != color).sum() > 40
    # |dy| is larger by 1e-3 pixels in the gradient
    torch.autograd.gradcheck(image, (color, clip), eps=1e-7, atol=1e-4, rtol=2e-3)


def grown(opacity, subdivisions: int, backend: str) -> float:
    """The radius of a sphere after 50 steps from 0.5 towards what `opacity` shows of one of 0.8."""
    vertices, faces = icosphere(subdivisions)
    radius = torch.tensor(0.5, requires_grad=True)
    optimizer = torch.optim.Adam([radius], lr=0.03)
    with torch.no_grad():
        target = opacity(perspective(0.8 * vertices, 2), faces, (96, 96), backend)
    for step in range(50):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 50)
        optimizer.zero_grad()
        (opacity(perspective(radius * vertices, 2), faces, (96, 96), backend) - target).square().mean().backward()
        optimizer.step()
    return radius.item()


@both
def test_a_sphere_grows_by_its_mask_alone(backend):
    # finer ones have faces at the contour that no pixel sees
    assert grown(mask, 1, backend) == pytest.approx(0.8, abs=5e-3)


def walked_mask(clip: Tensor, faces: Tensor, resolution: tuple[int, int], backend: str = "auto") -> Tensor:
    """`mask`, its outline looked for across the neighbouring faces."""
    raster, (opposite, beyond) = rasterize(clip, faces, resolution, backend), across_edges(faces)
    hard = (raster.triangle > 0).to(clip)[..., None]
    return antialias(hard, raster, clip, faces, opposite, backend, beyond)[..., 0]


@both
@pytest.mark.parametrize("subdivisions", [3, 5])
def test_the_outline_of_a_fine_sphere_is_found_by_walking(backend, subdivisions):
    """Its area in pixels, and how it grows with the radius, are those of the disc that a camera sees."""
    vertices, faces = icosphere(subdivisions)
    radius = torch.tensor(0.6, requires_grad=True)
    area = walked_mask(perspective(radius * vertices), faces, (64, 64), backend).sum()
    focal = 32 / math.tan(math.pi / 6)
    disc = math.pi * focal**2 * radius**2 / (9 - radius**2)
    assert area.item() == pytest.approx(disc.item(), rel=0.01)
    grown, closed_form = (torch.autograd.grad(one, radius)[0].item() for one in (area, disc))
    assert grown == pytest.approx(closed_form, rel=0.08)
    without = mask(perspective(radius * vertices), faces, (64, 64), backend).sum()
    lost = torch.autograd.grad(without, radius)[0].item() if without.requires_grad else 0.0
    assert lost < 0.25 * closed_form


@both
def test_a_fine_sphere_grows_by_its_walked_mask_alone(backend):
    assert grown(walked_mask, 4, backend) == pytest.approx(0.8, abs=5e-3)


@both
def test_walking_blends_nothing_inside_of_a_smooth_surface(backend):
    vertices, faces = icosphere(4)
    clip, g = perspective(0.6 * vertices), torch.Generator().manual_seed(11)
    raster, (opposite, beyond) = rasterize(clip, faces, (48, 48), backend), across_edges(faces)
    color = torch.rand(1, 48, 48, 3, generator=g)
    image = antialias(color, raster, clip, faces, opposite, backend, beyond)
    inside = (raster.triangle > 0).float()[:, None]
    inside = -torch.nn.functional.max_pool2d(-inside, 5, 1, 2) > 0  # two pixels away from the outline
    assert inside.sum() > 90 and torch.equal(image[inside[:, 0]], color[inside[:, 0]])


def test_faces_across_edges_are_each_other_s():
    _, faces = icosphere(2)
    opposite, beyond = across_edges(faces)
    assert torch.equal(opposite, opposite_vertices(faces))
    for k in range(3):
        there = faces[beyond[:, k]]
        ends = faces[:, [(k + 1) % 3, (k + 2) % 3]]
        assert ((there[:, :, None] == ends[:, None]).any(1)).all()  # both ends of the edge belong to the face across
        assert (there == opposite[:, k : k + 1]).any(1).all()
    with pytest.raises(UserError, match="no faces across the edges"):
        clip = perspective(icosphere(2)[0])
        raster = rasterize(clip, faces, (8, 8))
        antialias(torch.zeros(1, 8, 8, 1), raster, clip, faces, opposite, "torch", beyond[:3])


@both
def test_moved_by_one_pixel_the_image_is_the_same_bit_for_bit(backend):
    g = torch.Generator().manual_seed(8)
    points = torch.cat([torch.randint(30, 200, (30, 2), generator=g) / 8, torch.rand(30, 1, generator=g)], dim=1)
    faces = torch.randint(30, (20, 3), generator=g)
    images = []
    for dx, dy in ((0, 0), (1, 0), (0, 1)):
        clip = from_pixels([(x + dx, y + dy, z) for x, y, z in points.tolist()], 32)[None]
        raster = rasterize(clip, faces, (32, 32), backend)
        color = interpolate(points, raster, faces, backend)
        image = antialias(color, raster, clip, faces, opposite_vertices(faces), backend)
        images.append(torch.cat([image, raster.barycentric, raster.triangle[..., None]], dim=-1))
    still, right, down = images
    assert (still[..., -1] > 0).float().mean() > 0.2
    assert torch.equal(right[:, :, 1:], still[:, :, :-1]) and torch.equal(down[:, 1:], still[:, :-1])


@both
def test_a_constant_colour_pulls_at_the_silhouette_alone(backend):
    vertices, faces = icosphere(2)
    clip = perspective(0.9 * vertices).requires_grad_()
    (mask(clip, faces, (96, 96), backend) * torch.linspace(0, 1, 96)).sum().backward()
    assert clip.grad is not None
    pulled = clip.grad[0].abs().sum(-1) > 0
    facing = vertices[:, 0]  # to the camera; the contour is where it is 0.9 / 3
    assert pulled.sum() > 20 and not pulled[(facing - 0.3).abs() > 0.3].any()
    assert clip.grad[..., 2].abs().max() == 0


@both
def test_inside_of_a_surface_nothing_is_blended(backend):
    vertices, faces = icosphere(1)
    clip = perspective(0.9 * vertices)
    raster = rasterize(clip, faces, (96, 96), backend)
    color = torch.rand(1, 96, 96, 3)
    image = antialias(color, raster, clip, faces, opposite_vertices(faces), backend)
    changed = (image != color).any(-1)[0]
    hard = (raster.triangle > 0).float()
    near = torch.nn.functional.max_pool2d(hard, 3, 1, 1) + torch.nn.functional.max_pool2d(-hard, 3, 1, 1) > 0
    assert changed.sum() > 50 and not (changed & ~near[0]).any()


@both
def test_the_nearer_face_owns_the_border(backend):
    """A near square before a far one: the pixels blend where the near one ends, wherever the far one's edges are."""
    near = [(2.3, -9, 0.1), (2.3, 20, 0.1), (30, -9, 0.1), (30, 20, 0.1)]
    far = [(-9, -9, 0.9), (-9, 20, 0.9), (30, -9, 0.9), (30, 20, 0.9)]
    faces = torch.tensor([[4, 5, 6], [6, 5, 7], [0, 1, 2], [2, 1, 3]])
    clip = from_pixels([*near, *far], 8)[None]
    raster = rasterize(clip, faces, (8, 8), backend)
    color = (raster.triangle > 2).float()[..., None]
    image = antialias(color, raster, clip, faces, opposite_vertices(faces), backend)
    torch.testing.assert_close(image[0, 3, :, 0], torch.tensor([0, 0, 0.7, 1, 1, 1, 1, 1]))


@both
def test_a_crease_is_an_edge_where_the_surface_folds_back(backend):
    """Two faces that meet in an edge: opened flat it is inside of the surface, folded shut its silhouette."""
    for across, blended in ((1.0, False), (14.0, True)):
        clip = from_pixels([(5.2, -9, 0.5), (5.2, 25, 0.5), (20, 8, 0.5), (across, 8, 0.8)], 16)[None]
        faces = torch.tensor([[0, 1, 2], [1, 0, 3]])
        raster = rasterize(clip, faces, (16, 16), backend)
        color = (raster.triangle == 1).float()[..., None]
        image = antialias(color, raster, clip, faces, opposite_vertices(faces), backend)
        assert (image[0, 8, 4:6, 0] != color[0, 8, 4:6, 0]).any() == blended


@both
def test_an_edge_just_past_the_other_centre_pulls_at_nothing(backend):
    """It blends as one through that centre would, by a half, and where exactly it is makes no difference."""
    slanted = [(3.53, -20, 0.5), (3.53, 30, 0.5), (-20, 5, -4.2)]  # nearer to the left
    right = [(3.0, -20, 0.4), (3.0, 30, 0.4), (60, 5, 0.4)]  # in front of its right end
    clip = from_pixels([*slanted, *right], 8)[None].requires_grad_()
    faces = torch.arange(6).view(2, 3)
    raster = rasterize(clip, faces, (8, 8), backend)
    assert raster.triangle[0, 4].tolist() == [1, 1, 1, 2, 2, 2, 2, 2]
    color = (raster.triangle == 1).float()[..., None]
    image = antialias(color, raster, clip, faces, opposite_vertices(faces), backend)
    assert image[0, 4, :, 0].tolist() == [1, 1, 1, 0.5, 0, 0, 0, 0]
    image[0, 4, 3].sum().backward()
    assert clip.grad is not None and not clip.grad.any()


@both
def test_composite_first_then_antialias(backend):
    """With constant colours that is the blend by the antialiased opacity; the other order lets light through."""
    vertices, faces = icosphere(1)
    clip, front, behind = perspective(0.9 * vertices), 0.25, 0.75
    raster, opposite = rasterize(clip, faces, (96, 96), backend), opposite_vertices(faces)
    hard = (raster.triangle > 0).float()[..., None]
    image = antialias(front * hard + behind * (1 - hard), raster, clip, faces, opposite, backend)
    opacity = antialias(hard, raster, clip, faces, opposite, backend)
    torch.testing.assert_close(image, front * opacity + behind * (1 - opacity))
    wrong = opacity * antialias(front * hard, raster, clip, faces, opposite, backend) + behind * (1 - opacity)
    assert (wrong - image).abs().max() > 0.05


# ---- textures


def test_a_texture_is_bilinear_with_its_top_at_v_1():
    texture = torch.arange(6.0).view(2, 3, 1)
    centres = torch.tensor([[[1 / 6, 0.75], [0.5, 0.75], [5 / 6, 0.75]], [[1 / 6, 0.25], [0.5, 0.25], [5 / 6, 0.25]]])
    torch.testing.assert_close(sample_texture(texture, centres), texture)
    between = torch.tensor([[1 / 3, 0.75], [0.5, 0.5], [2 / 3, 0.4]])
    torch.testing.assert_close(sample_texture(texture, between)[:, 0], torch.tensor([0.5, 2.5, 3.6]))
    corners = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(sample_texture(texture, corners)[:, 0], torch.tensor([0.0, 2.0, 3.0, 5.0]))
    assert sample_texture(texture, torch.zeros(0, 4, 2)).shape == (0, 4, 1)


def test_gradients_of_a_texture():
    g = torch.Generator().manual_seed(9)
    texture = torch.rand(3, 4, 2, generator=g, dtype=torch.float64).requires_grad_()
    uv = torch.rand(7, 2, generator=g, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(sample_texture, (texture, uv))


# ---- bad input


def test_what_does_not_fit_is_one_line():
    clip, faces = random_soup()
    clip = clip[None]
    raster = rasterize(clip, faces, (4, 4))
    opposite = opposite_vertices(faces)
    for said, call in (
        (r"vertices are \(M, N, channels\) floats, got \(36, 4\)", lambda: rasterize(clip[0], faces, (4, 4))),
        (r"faces are \(F, 3\) int64, got \(12, 3\) torch.int32", lambda: rasterize(clip, faces.int(), (4, 4))),
        ("faces name vertices 0 to 35, and there are 35", lambda: rasterize(clip[:, 1:], faces, (4, 4))),
        ("faces name vertices -1 to 34", lambda: rasterize(clip, faces - 1, (4, 4))),
        ("from 1 pixel up", lambda: rasterize(clip, faces, (0, 4))),
        ("'cuda'.*auto, torch, numba, nvdiffrast", lambda: rasterize(clip, faces, (4, 4), "cuda")),
        ("numba takes float32 on cpu, got float64", lambda: rasterize(clip.double(), faces, (4, 4), "numba")),
        ("nvdiffrast takes float32 on cuda, got float32 on cpu", lambda: rasterize(clip, faces, (4, 4), "nvdiffrast")),
        (r"attributes are .* M = 1 images", lambda: interpolate(torch.zeros(2, 36, 1), raster, faces)),
        ("the raster sees face", lambda: interpolate(torch.zeros(36, 1), raster, faces[:1])),
        (r"colours of this raster are \(1, 4, 4", lambda: antialias(clip, raster, clip, faces, opposite)),
        ("no opposite vertices", lambda: antialias(torch.zeros(1, 4, 4, 1), raster, clip, faces, opposite[1:])),
        ("no opposite vertices", lambda: antialias(torch.zeros(1, 4, 4, 1), raster, clip, faces, faces + 1)),
        ("same images and dtype", lambda: antialias(torch.zeros(1, 4, 4, 1).double(), raster, clip, faces, opposite)),
        (
            "same images and dtype",
            lambda: antialias(torch.zeros(1, 4, 4, 1), raster, clip.expand(2, -1, -1), faces, opposite),
        ),
        ("attributes are torch.float32", lambda: interpolate(torch.zeros(36, 1).half(), raster, faces)),
        ("a texture is", lambda: sample_texture(torch.zeros(4, 4), torch.zeros(3, 2))),
    ):
        with pytest.raises(UserError, match=said):
            call()


def test_the_automatic_backend(monkeypatch):
    single, double = torch.zeros(1), torch.zeros(1).double()
    monkeypatch.setattr("jointdreamer.scenes.mesh.raster.enabled", lambda: True)
    assert backend_for("auto", single) == "numba" and backend_for("auto", double) == "torch"
    monkeypatch.setattr("jointdreamer.scenes.mesh.raster.enabled", lambda: False)
    assert backend_for("auto", single) == "torch"


def test_a_raster_cannot_be_changed():
    raster = Raster(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(AttributeError):
        raster.depth = torch.ones(1, 2, 2)  # pyright: ignore[reportAttributeAccessIssue]
