import json
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jointdreamer.cameras import orbit_cameras, rays
from jointdreamer.errors import UserError
from jointdreamer.formats.glb import read_glb
from jointdreamer.runs import pictures as outputs
from jointdreamer.runs.pictures import (
    render_views,
    save_cameras,
    save_outputs,
    save_previews,
    save_rows,
    scene_of,
    try_outputs,
)
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.scene import NeRF
from jointdreamer.scenes.nerf.volume import VolumeRenderer


def rows(path, n_rows, size, padding=2, title=14):
    """The pixels of each row of a contact sheet, by view: (rows, views, size, size) of the red channel."""
    sheet = np.asarray(Image.open(path))[..., 0]
    assert len(sheet) == n_rows * (title + size + 2 * padding)
    tops = [r * (title + size + 2 * padding) + title + padding for r in range(n_rows)]
    lefts = range(padding, sheet.shape[1], size + padding)
    return np.array([[sheet[top : top + size, left : left + size] for left in lefts] for top in tops])


def test_rows_of_pictures_are_shown_a_column_for_each_view(tmp_path):
    shades = {"noisy": [0.1, 0.2], "x0": [0.5, 1.5]}  # beyond 1 is 1
    given = {name: torch.tensor(values)[:, None, None, None].expand(2, 3, 8, 8) for name, values in shades.items()}
    shown = rows(save_rows(tmp_path / "energy" / "step_000001.png", given), n_rows=2, size=8)
    for row, values in zip(shown, shades.values(), strict=True):
        for picture, value in zip(row, values, strict=True):
            assert picture == pytest.approx(255 * min(value, 1), abs=0.51)


# Runs of earlier versions


def test_a_run_from_before_scenes_looks_as_it_did(scene):
    """Its checkpoint keeps field, background and renderer apart, and its config has no scene."""
    parts = {name: getattr(scene, name).state_dict() for name in ("field", "background", "renderer")}
    config = {"field": {"n_levels": 2, "backend": "torch"}, "background": {}}
    config |= {"renderer": {"n_samples": 8, "backend": "torch"}}
    loaded = scene_of(config, {"parts": parts})
    cameras = orbit_cameras(2, 8)
    assert torch.equal(render_views(loaded, cameras).rgb, render_views(scene, cameras).rgb)


# All of them, whatever becomes of one

SMALL: dict[str, Any] = {
    "views": 3,
    "resolution": 8,
    "fps": 10,
    "mesh_resolution": 8,
    "texture": 16,
    "elevation_deg": 15.0,
}


@pytest.fixture(scope="module")
def scene():
    torch.manual_seed(0)
    field = HashGridField(encoding={"n_levels": 2, "backend": "torch"})
    renderer = VolumeRenderer(field_radius=field.radius, n_samples=8, backend="torch")
    return NeRF(field, SphericalBackground(), renderer).eval()


def made_by(folder, scene, **changes) -> tuple[Any, list[str]]:
    said: list[str] = []
    return save_outputs(folder, scene, say=said.append, **{**SMALL, **changes}), said


def test_the_outputs_and_a_line_for_each_as_it_is_begun(tmp_path, scene):
    made, said = made_by(tmp_path, scene)
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.*")}
    turntable = {f"turntable/{name}" for name in ("rgb.mp4", "normal.mp4", "transforms.json")}
    assert files == {"contact_sheet.png", *turntable, "mesh/mesh.glb"}
    shown = {str(file.relative_to(tmp_path)) for one in made.files.values() for file in one}
    assert shown == files - {"turntable/transforms.json"}
    assert [line.partition(":")[0] for line in said] == [
        "making the contact sheet", "making the turntable", "making the mesh",
    ]  # fmt: skip
    assert made.missing == {} and made.complain(tmp_path) is None


def test_the_mesh_has_a_texture_or_colours_at_its_vertices(tmp_path, scene):
    for size in (16, 0):
        _, said = made_by(tmp_path, scene, texture=size)
        tree, _ = read_glb((tmp_path / "mesh" / "mesh.glb").read_bytes())
        [primitive] = tree["meshes"][0]["primitives"]
        assert ("textures" in tree) == ("TEXCOORD_0" in primitive["attributes"]) == (size > 0)
        assert ("COLOR_0" in primitive["attributes"]) == (size == 0)
        assert said[-1].endswith("a texture of 16 px" if size else "colours at the vertices")


def test_the_cameras_of_the_turntable_see_what_the_frames_show(tmp_path):
    """A point projected as instant-ngp and nerfstudio do it, against the ray through the pixel where it is found."""
    cameras = orbit_cameras(5, 40, elevation_deg=20, distance=2.5, fovy_deg=35)
    said = json.loads(save_cameras(tmp_path, cameras).read_text())
    assert [frame["file_path"] for frame in said["frames"]] == [f"rgb/{n:04d}.png" for n in range(1, 6)]
    assert (said["w"], said["h"], said["cx"]) == (40, 40, 20)
    assert said["camera_angle_x"] == pytest.approx(2 * math.atan(said["w"] / 2 / said["fl_x"]))
    rays_o, rays_d = rays(cameras.c2w, cameras.fovy, 40)
    for view, frame in enumerate(said["frames"]):
        row, column = 7, 29
        seen = rays_o[0, view, row, column] + 2.0 * rays_d[0, view, row, column]
        x, y, z, _ = (
            torch.linalg.inv(torch.tensor(frame["transform_matrix"])) @ torch.cat([seen, torch.ones(1)])
        ).tolist()
        assert z < 0  # looks along its own -z
        assert said["cx"] + said["fl_x"] * x / -z == pytest.approx(column + 0.5, abs=1e-3)
        assert said["cy"] - said["fl_y"] * y / -z == pytest.approx(row + 0.5, abs=1e-3)


def test_no_turntable_is_made_of_no_views(tmp_path, scene):
    made, _ = made_by(tmp_path, scene, views=0)
    assert sorted(made.files) == ["contact sheet", "mesh"] and not (tmp_path / "turntable").exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "no mesh (out of memory)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "no mesh (out of memory)"),
        (OSError(30, "Read-only file system"), "no mesh ([Errno 30] Read-only file system)"),
    ],
)
def test_an_output_that_fails_costs_only_itself(tmp_path, scene, monkeypatch, error, says):
    monkeypatch.setattr(NeRF, "mesh", lambda *_: (_ for _ in ()).throw(error))
    made, _ = made_by(tmp_path, scene)
    assert (tmp_path / "contact_sheet.png").exists() and (tmp_path / "turntable/normal.mp4").exists()
    assert list(made.missing) == ["mesh"]
    with pytest.raises(UserError) as said:
        made.complain(tmp_path)
    assert says in str(said.value) and "the same command makes what is missing" in str(said.value)


def test_a_fault_of_ours_in_an_output_keeps_its_traceback(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(NeRF, "mesh", lambda *_: {}["no such key"])
    made, _ = made_by(tmp_path, scene)
    assert made.missing == {"mesh": "KeyError: 'no such key'"} and (tmp_path / "turntable/rgb.mp4").exists()
    with pytest.raises(KeyError):
        made.complain(tmp_path)


def test_frames_are_not_held(tmp_path, scene, monkeypatch):
    alive, most = weakref.WeakSet(), 0
    render = outputs.render_views

    def counted(*args):
        nonlocal most
        out = render(*args)
        alive.add(out.rgb)
        most = max(most, len(alive))
        return out

    monkeypatch.setattr(outputs, "render_views", counted)
    made_by(tmp_path, scene, views=12)
    assert most <= 2


def test_a_preview_that_fails_is_a_warning(tmp_path, scene, monkeypatch, caplog):
    monkeypatch.setattr(outputs, "contact_sheet", lambda *_: (_ for _ in ()).throw(MemoryError()))
    assert save_previews(tmp_path, 3, scene, orbit_cameras(2, 8), {}) == {}
    assert "no views: out of memory" in caplog.text


@pytest.mark.parametrize("blocked", ["mesh", "turntable"])
def test_a_path_that_cannot_be_written_is_found_before_the_first_step(tmp_path, blocked):
    (tmp_path / blocked).write_text("a file where a folder belongs")
    with pytest.raises(UserError, match=f"{blocked} .*move what is in the way"):
        try_outputs(tmp_path, True, 0)


def test_a_folder_in_place_of_a_picture_and_a_full_disk_too(tmp_path):
    with pytest.raises(UserError, match="MB left"):
        try_outputs(tmp_path, True, 1e18)
    (tmp_path / "contact_sheet.png").mkdir()
    with pytest.raises(UserError, match="a folder has its name"):
        try_outputs(tmp_path, True, 0)


def test_a_missing_encoder_is_a_warning_before_the_first_step(tmp_path, monkeypatch, caplog):
    try_outputs(tmp_path, True, 0)
    assert caplog.text == ""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    try_outputs(tmp_path, False, 0)
    assert caplog.text == ""
    try_outputs(tmp_path, True, 0)
    assert "no turntable at the end, as it is now: no ffmpeg" in caplog.text
