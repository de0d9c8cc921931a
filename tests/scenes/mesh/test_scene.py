"""DMTet as a scene: what cameras see of a ball, what it takes over from a NeRF or a mesh, and what it refuses."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from torch import nn

from jointdreamer.cameras import Rig, orbit_cameras, rays, sample_cameras
from jointdreamer.distillation.reference import ReferenceView
from jointdreamer.errors import UserError
from jointdreamer.reference import ImageCamera, Reference
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.base import check_render
from jointdreamer.scenes.mesh.inside import samples
from jointdreamer.scenes.mesh.raster import rasterize
from jointdreamer.scenes.mesh.scene import EMPTY_STEPS, DMTet, to_clip
from jointdreamer.scenes.nerf.base import Field, FieldOutput
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.scene import NeRF
from jointdreamer.scenes.nerf.volume import VolumeRenderer
from jointdreamer.scenes.registry import build_scene

NOW = SimpleNamespace(shading=False, loss=SimpleNamespace())
SMALL = {"encoding": {"n_levels": 4, "log2_table_size": 10, "backend": "torch"}, "hidden": 16}


class Ball(Field):
    """Density 100 in a ball, red towards +x and blue towards -x."""

    radius = 1.0

    def __init__(self, size=0.4, density=100.0, center=(0.0, 0.0, 0.0)):
        super().__init__()
        self.size, self.peak = size, density
        self.center: torch.Tensor
        self.register_buffer("center", torch.tensor(center))
        self.one = nn.Parameter(torch.zeros(1))

    def density(self, x):
        far = (x - self.center).norm(dim=-1)
        return self.peak * torch.sigmoid((self.size - far) / 0.02)

    def forward(self, x, normals=False, features=None):
        red = (x[:, :1] > 0).to(x)
        return FieldOutput(self.density(x), torch.cat([red, 0 * red, 1 - red], 1) + 0 * self.one, None)

    def parameter_groups(self):
        return {"geometry": [], "appearance": [self.one]}


def mesh_scene(field=None, **options):
    torch.manual_seed(0)
    return DMTet(field or Ball(), SphericalBackground(eval_color=(0.0, 1.0, 0.0)), **{"resolution": 32, **options})


def nerf(field):
    return NeRF(field, SphericalBackground(), VolumeRenderer(grid_resolution=8, n_samples=32))


def surface(scene):
    vertices, faces = scene.surface()
    return trimesh.Trimesh(vertices.detach().numpy(), faces.numpy(), process=False)


@pytest.mark.parametrize("projection", ["perspective", "orthographic"])
def test_clip_coordinates_are_those_of_the_rays(projection):
    """Points along the ray through a pixel fall on that pixel, the far one behind the near one."""
    cameras = sample_cameras(Rig(n_rigs=2, projection=projection), 16, torch.Generator().manual_seed(0))
    rays_o, rays_d = rays(cameras.c2w, cameras.fovy, 16, cameras.orthographic)
    depths = []
    for t in (1.0, 2.0):
        points = rays_o + t * rays_d
        for b in range(2):
            for v in range(4):
                clip = to_clip(points[b, v].reshape(-1, 3), cameras.select(torch.tensor([[v]] * 2)))[b, 0]
                x, y, z = (clip[:, :3] / clip[:, 3:]).unbind(1)
                row, column = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
                assert torch.allclose(x, ((2 * column + 1) / 16 - 1).flatten(), atol=1e-4)
                assert torch.allclose(y, (1 - (2 * row + 1) / 16).flatten(), atol=1e-4)
                depths.append(z)
    assert (torch.stack(depths[8:]) > torch.stack(depths[:8])).all()


@pytest.mark.parametrize("projection", ["perspective", "orthographic"])
def test_depth_is_in_the_range_that_nvdiffrast_draws_and_the_same_faces_are_seen(projection):
    cameras = sample_cameras(Rig(n_rigs=2, projection=projection), 48, torch.Generator().manual_seed(0))
    rays_o, rays_d = rays(cameras.c2w[:1, :1], cameras.fovy[:1, :1], 48, cameras.orthographic)
    line = rays_o + torch.tensor([0.02, 0.1, 1.0, 2.5, 4.0])[:, None, None, None, None] * rays_d
    clip = to_clip(line.reshape(-1, 3), cameras[:1].select(torch.tensor([[0]])))
    assert (clip[..., 3] > 0).all() and (clip[..., 2].abs() < clip[..., 3]).all()

    ball = trimesh.creation.icosphere(3, radius=0.8)
    vertices, faces = torch.tensor(ball.vertices, dtype=torch.float32), torch.tensor(ball.faces)
    clip = to_clip(vertices, cameras).flatten(0, 1)
    backward, position = cameras.c2w[..., :3, 2].flatten(0, 1), cameras.c2w[..., :3, 3].flatten(0, 1)
    distance = ((position[:, None] - vertices) * backward[:, None]).sum(-1)  # along the axis of the camera
    plain = torch.stack(
        [*clip[..., :2].unbind(-1), distance if cameras.orthographic else distance - 1, clip[..., 3]], -1
    )
    one, two = (rasterize(x, faces, (48, 48)).triangle for x in (clip, plain))
    assert one.any() and torch.equal(one, two)


def test_half_precision_moves_no_vertex():
    cameras, points = orbit_cameras(4, 16), torch.rand(100, 3) - 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = to_clip(points, cameras)
    assert torch.equal(half, to_clip(points, cameras))


def test_a_ball_looks_like_a_ball_from_every_side():
    scene, cameras = mesh_scene(), orbit_cameras(4, 64)
    render = scene.render(cameras)
    check_render(render, cameras, "dmtet")
    rays_o, rays_d = rays(cameras.c2w, cameras.fovy, 64)
    closest = (rays_o - (rays_o * rays_d).sum(-1, keepdim=True) * rays_d).norm(dim=-1)
    seen = render.opacity[:, :, 0] > 0.5
    assert seen[closest < 0.48].all() and not seen[closest > 0.5].any()
    through = closest < 0.4
    height = (0.25 - closest[through].square()).sqrt()
    assert render.depth is not None and render.normal is not None
    depth = render.depth[:, :, 0][through]
    assert (depth - ((rays_o * rays_o).sum(-1)[through] - closest[through].square()).sqrt() + height).abs().max() < 0.02
    normal = render.normal.permute(0, 1, 3, 4, 2)[through]
    assert (normal - 2 * (rays_o[through] + depth[:, None] * rays_d[through])).norm(dim=1).max() < 0.15
    assert (normal.norm(dim=1) - 1).abs().max() < 1e-3
    front, _, back, _ = render.rgb[0, :, :, 32, 32]
    assert torch.allclose(front, torch.tensor([1.0, 0, 0])) and torch.allclose(back, torch.tensor([0.0, 0, 1]))
    assert torch.allclose(render.rgb[0, 0, :, 0, 0], torch.tensor([0.0, 1, 0]))


def test_evaluation_draws_nothing_and_training_only_from_its_generator():
    scene, cameras = mesh_scene(), orbit_cameras(2, 16)
    state = torch.get_rng_state()
    one, two = (scene.render(cameras, NOW, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.rgb, two.rgb) and torch.equal(scene.render(cameras).rgb, scene.render(cameras).rgb)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(scene.render(cameras, chunk=7).rgb, scene.render(cameras).rgb)


def test_a_mask_teaches_the_size_of_the_ball():
    scene, wanted, cameras = mesh_scene(resolution=16), mesh_scene(resolution=16), orbit_cameras(4, 64)
    with torch.no_grad():
        wanted.level.copy_((wanted.grid.vertices.norm(dim=1) - 0.7).clamp(-1, 1))
        target = wanted.render(cameras).opacity
    optimizer, losses = torch.optim.Adam(scene.parameter_groups()["geometry"], lr=0.02), []
    for _ in range(60):
        loss = (scene.render(cameras).opacity - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.05 * losses[0]


def test_the_normals_can_be_what_is_distilled():
    scene, cameras = mesh_scene(distilled="normal"), orbit_cameras(4, 33)
    image = scene.render(cameras, NOW, torch.Generator().manual_seed(0)).rgb
    towards = cameras.c2w[0, :, :3, 3] / cameras.distance[0, :, None]
    assert torch.allclose(image[0, :, :, 16, 16], (towards + 1) / 2, atol=0.05)
    assert torch.equal(image[..., 0, 0], torch.zeros(1, 4, 3))
    assert torch.allclose(scene.render(cameras).rgb[0, 0, :, 16, 16], torch.tensor([1.0, 0, 0]))  # evaluation: colours
    # and a given picture is compared with colours too
    rgba = torch.tensor([1.0, 0, 0, 1])[:, None, None].expand(4, 33, 33)
    term = ReferenceView(Reference(rgba, ImageCamera(elevation_deg=0, azimuth_deg=0, distance=1.2, fovy_deg=20)))
    now = SimpleNamespace(resolution=33, shading=False, loss=SimpleNamespace(rgb=1))
    found = term(scene, scene.render(cameras), cameras, now, torch.Generator().manual_seed(0))
    assert float(found["rgb"].detach()) < 1e-3


def surface_of_ball(size, threshold):
    """The radius at which a Ball has this density; "auto": at which a ray that passes it is half opaque."""
    line = torch.linspace(-1, 1, 101)
    if threshold == "auto":
        past = torch.linspace(size, size + 0.2, 1001)
        points = torch.stack(torch.broadcast_tensors(past[:, None], torch.zeros(1), line), -1)
        depth = Ball(size).density(points.reshape(-1, 3)).view(len(past), -1).sum(1) * (line[1] - line[0])
        return past[(depth - math.log(2)).abs().argmin()].item()
    if threshold is None:
        sigma = Ball(size).density(torch.cartesian_prod(line, line, line))
        threshold = sigma[sigma > 1e-5].mean().item()
    return size + 0.02 * math.log(100 / threshold - 1)


@pytest.mark.parametrize("threshold", ["auto", None, 25.0])
def test_a_nerf_is_taken_over_in_a_tight_box_with_its_colours(threshold):
    first, scene = nerf(Ball(0.3, center=(0.2, 0.0, -0.1))), mesh_scene(Ball(), threshold=threshold)
    with torch.no_grad():
        for parameter in first.background.parameters():
            parameter.fill_(0.5)
    scene.start_from(first)
    ball = surface(scene)
    assert ball.is_watertight
    assert (ball.volume / (4 / 3 * math.pi)) ** (1 / 3) == pytest.approx(surface_of_ball(0.3, threshold), rel=0.05)
    assert ball.center_mass == pytest.approx((0.2, 0, -0.1), abs=0.01)
    assert (scene.box[0] < torch.tensor([-0.1, -0.3, -0.4])).all() and (scene.box[0] > -0.6).all()
    assert (scene.box[1] > torch.tensor([0.5, 0.3, 0.2])).all() and (scene.box[1] < 0.7).all()
    assert all((p == 0.5).all() for p in scene.background.parameters())
    exported = scene.mesh(0)
    red = np.asarray(exported.visual.vertex_colors)[:, 0] > 128
    assert np.array_equal(red, np.asarray(exported.vertices)[:, 0] > 0)  # colours stay where they were in the world


def test_the_surface_does_not_hold_the_steps_of_the_grid():
    """Levels between -1 and 1 without a clamp: the vertices of a dense ball lie on it, not half way between two."""
    scene = mesh_scene()
    scene.start_from(nerf(Ball(0.4, 400.0)))
    radius = np.linalg.norm(surface(scene).vertices, axis=1)
    assert radius.std() < 0.01


class Plate(Ball):
    """Density 400 in a plate as thick as `size`, half as wide as the box."""

    def density(self, x):
        wide = x.new_tensor([0.5, 0.5, self.size / 2])
        return 400 * ((x - self.center).abs() < wide).all(-1).float()


def test_a_thin_plate_is_found_on_a_coarse_grid():
    for resolution in (16, 32):
        scene = mesh_scene(resolution=resolution)
        scene.start_from(nerf(Plate(0.06, center=(0.0, 0.0, 0.05))))
        assert surface(scene).bounds == pytest.approx(
            np.array([[-0.5, -0.5, 0.02], [0.5, 0.5, 0.08]]), abs=1.2 / resolution
        )


def test_a_nerf_that_reaches_its_box_ends_there():
    for size, center in ((3.0, 0.0), (1.0, 0.8)):
        scene = mesh_scene(resolution=16)
        scene.start_from(nerf(Ball(size, center=(center, center, center))))
        found, unit = surface(scene), scene.grid.spacing  # beyond it the grid goes on for two units
        assert found.is_watertight and found.bounds[1] == pytest.approx([1.0] * 3, abs=0.2 * unit)


def test_a_start_of_which_nothing_is_left_is_refused_at_once():
    with pytest.raises(UserError, match="too thin for the grid.*larger scene.resolution than 8"):
        mesh_scene(resolution=8, smoothing=100).start_from(nerf(Ball(0.4)))
    needle = trimesh.creation.box(extents=(0.01, 0.01, 1.0)).apply_translation((0.03, 0.04, 0))
    triangles = np.asarray(needle.triangles)
    with pytest.raises(UserError, match="too thin for the grid.*larger scene.resolution than 16"):
        mesh_scene(resolution=16).start_from_mesh(triangles, triangles[:, 0], np.zeros((12, 3)))


def test_empty_and_foggy_nerfs_are_refused_in_one_line():
    with pytest.raises(UserError, match="empty"):
        mesh_scene().start_from(nerf(Ball(density=1e-5)))
    for threshold in ("auto", None, 0.25):
        with pytest.raises(UserError, match=r"is fog: its densest ray is 33% opaque.*init_from=RUN/mesh/mesh.glb"):
            mesh_scene(threshold=threshold).start_from(nerf(Ball(density=0.5)))
    with pytest.raises(UserError, match=r"no density above scene.threshold=1e\+03"):
        mesh_scene(threshold=1000.0).start_from(nerf(Ball()))


def test_a_mesh_scene_is_taken_over_whole_and_only_on_the_same_grid():
    first, scene = mesh_scene(), mesh_scene()
    with torch.no_grad():
        first.level.add_(0.1)
        first.offset.fill_(0.3)
        first.box.mul_(0.5)
    scene.start_from(first)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), scene.state_dict().values(), strict=True))
    for other, says in (
        ({"resolution": 16}, "resolution=16, .* has 32"),
        ({"max_offset": 1.0}, "max_offset=1.0, .* has 0.44"),
    ):
        with pytest.raises(UserError, match=f"scene.{says}: give the same"):
            mesh_scene(**other).start_from(first)


def test_a_closed_mesh_is_taken_over_with_its_colours():
    box = trimesh.creation.box(extents=(1.0, 0.5, 0.25))
    triangles = np.asarray(box.triangles)
    face, weight = samples(triangles, 20_000)
    points = (triangles[face] * weight[..., None]).sum(1)
    albedo = np.where(points[:, :1] > 0, [[0.9, 0.1, 0.1]], [[0.1, 0.1, 0.9]])
    scene = mesh_scene(HashGridField(**SMALL), resolution=48)
    scene.start_from_mesh(triangles, points, albedo)
    found = surface(scene)
    assert found.is_watertight and found.volume == pytest.approx(1.3**3 * 0.125, rel=0.1)
    assert found.extents == pytest.approx(1.3 * np.array([1, 0.5, 0.25]), abs=0.06)
    exported = scene.mesh(0)
    far = np.abs(np.asarray(exported.vertices)[:, 0]) > 0.2
    red = np.asarray(exported.visual.vertex_colors)[far, 0] > 128
    assert (red == (np.asarray(exported.vertices)[far, 0] > 0)).mean() > 0.98


def test_an_open_mesh_is_refused_in_one_line():
    box = np.asarray(trimesh.creation.box().triangles)[1:]
    with pytest.raises(UserError, match="the mesh is open"):
        mesh_scene().start_from_mesh(box, np.zeros((1, 3)), np.zeros((1, 3)))


def test_a_surface_that_vanishes_stops_training_and_is_never_saved():
    scene, cameras, generator = mesh_scene(), orbit_cameras(1, 8), torch.Generator().manual_seed(0)
    with torch.no_grad():
        kept = scene.level.clone()
        scene.level.fill_(1.0)

    def step():
        for _ in range(2):  # a reference view renders as well
            render = scene.render(cameras, NOW, generator)
        scene.after_step(0, optimizer)
        return render

    optimizer = torch.optim.SGD([scene.level])
    for _ in range(EMPTY_STEPS - 1):
        assert not step().opacity.any()
    with pytest.raises(UserError, match="no checkpoint"):
        scene.check_state()
    with pytest.raises(UserError, match="the surface is gone for 10 steps"):
        step()
    with torch.no_grad():
        scene.level.copy_(kept)
    step()
    scene.check_state()
    with torch.no_grad():
        scene.level.fill_(1.0)
    assert not scene.render(cameras).opacity.any()  # looking at it is no step
    with pytest.raises(UserError, match="no surface"):
        scene.mesh(0)


def test_regularizers_are_those_of_the_mesh_whose_weight_is_not_zero():
    scene, cameras = mesh_scene(), orbit_cameras(1, 8)
    weights = SimpleNamespace(normal_consistency=1.0, laplacian=0.0)
    losses = scene.regularizers(scene.render(cameras), weights, cameras, None)
    assert list(losses) == ["normal_consistency"] and losses["normal_consistency"] > 0
    assert torch.autograd.grad(losses["normal_consistency"], scene.level)[0].abs().sum() > 0


def test_a_scene_is_built_by_name_and_its_state_can_be_read_back():
    groups = {"field": SMALL, "background": {}, "renderer": {"n_samples": 8}}
    scene = build_scene("dmtet", groups, resolution=16)
    other = build_scene("dmtet", groups, resolution=16)
    assert isinstance(scene, DMTet)
    with torch.no_grad():
        scene.level.add_(0.05)
    other.load_state_dict(scene.state_dict())
    assert np.array_equal(surface(scene).vertices, surface(other).vertices)
    names = {name for name, group in scene.parameter_groups().items() if group}
    assert names == {"geometry", "appearance:encoding", "appearance", "background"}
    for wrong in ({"resolution": 30}, {"resolution": 4}, {"threshold": "x"}, {"threshold": -1}, {"distilled": "depth"}):
        with pytest.raises(UserError):
            build_scene("dmtet", groups, "cpu", **wrong)
