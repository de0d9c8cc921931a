import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jointdreamer.cameras import orbit_cameras
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Guidance, NoisePrediction
from jointdreamer.runs import pictures as outputs
from jointdreamer.runs.pictures import field_options, save_energy, save_outputs, save_previews, try_outputs
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.volume import VolumeRenderer

ALPHA, SIGMA = 0.6, 0.8


class Flat(Guidance):
    """A prior whose latents are pictures already."""

    def __init__(self):
        super().__init__()
        self.alphas_cumprod = torch.full((1000,), ALPHA**2)

    def encode(self, rgb, generator, grad=True, chunk=None):
        return rgb

    def decode(self, latents):
        return latents

    def predict_noise(self, noised, text, guidance_scale):
        raise AssertionError("a picture asks no network")


def rows(path, n_rows, size, padding=2, title=14):
    """The pixels of each row of a contact sheet, by view: (rows, views, size, size) of the red channel."""
    sheet = np.asarray(Image.open(path))[..., 0]
    assert len(sheet) == n_rows * (title + size + 2 * padding)
    tops = [r * (title + size + 2 * padding) + title + padding for r in range(n_rows)]
    lefts = range(padding, sheet.shape[1], size + padding)
    return np.array([[sheet[top : top + size, left : left + size] for left in lefts] for top in tops])


@pytest.mark.parametrize("seen", ["uncond", "guided"])
def test_the_energy_s_picture_shows_its_target_and_where_the_joint_prediction_went(tmp_path, seen):
    generator = torch.Generator().manual_seed(0)
    x_t = torch.rand(1, 4, 3, 8, 8, generator=generator)
    colour = {"guided": 0.2, "uncond": 0.4, "target": 0.9}  # of the clean pictures
    noise = {name: (x_t - ALPHA * value) / SIGMA for name, value in colour.items()}
    # C = -1/2 |x0 - target|^2 of the x0 = (x_t - sigma e) / alpha that it sees
    energy_grad = torch.full_like(x_t, (colour["target"] - colour[seen]) / ALPHA)
    weight = 0.5 * ALPHA**2 / SIGMA**2  # moves the guided x0 by half of target - x0
    joint = noise["guided"] - weight * SIGMA * energy_grad

    before = torch.get_rng_state()
    noised: Any = SimpleNamespace(latents_noisy=x_t, timesteps=torch.tensor([500]))
    pred = NoisePrediction(noise["guided"], noise["guided"], noise["uncond"])
    path = save_energy(tmp_path / "energy" / "step_000001.png", Flat(), noised, pred, energy_grad, joint, seen)
    assert torch.equal(torch.get_rng_state(), before)

    noisy, x0, wanted, after = rows(path, n_rows=4, size=8)
    np.testing.assert_allclose(noisy, x_t[0, :, 0] * 255, atol=0.51)
    for shown, value in ((x0, 0.2), (wanted, 0.9), (after, 0.2 + 0.5 * (0.9 - colour[seen]))):
        assert shown.shape == (4, 8, 8)
        assert shown == pytest.approx(255 * value, abs=0.51)


def test_the_field_of_a_run_from_before_its_encoding_was_a_group():
    inside = {"n_levels": 2, "log2_table_size": 6, "backend": "torch"}
    assert field_options({**inside, "hidden": 8}) == {"encoding": inside, "hidden": 8}
    new = {"encoding": inside, "hidden": 8, "magic": 1}
    assert field_options(new) == new


# All of them, whatever becomes of one

SMALL: dict[str, Any] = {"views": 3, "resolution": 8, "fps": 10, "mesh_resolution": 8, "elevation_deg": 15.0}


@pytest.fixture(scope="module")
def scene():
    torch.manual_seed(0)
    field = HashGridField(encoding={"n_levels": 2, "backend": "torch"})
    return VolumeRenderer(field_radius=field.radius, n_samples=8, backend="torch"), field, SphericalBackground()


def made_by(folder, scene, **changes) -> tuple[Any, list[str]]:
    said: list[str] = []
    return save_outputs(folder, scene, say=said.append, **{**SMALL, **changes}), said


def test_the_outputs_and_a_line_for_each_as_it_is_begun(tmp_path, scene):
    made, said = made_by(tmp_path, scene)
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.*")}
    assert files == {"contact_sheet.png", "turntable/rgb.mp4", "turntable/normal.mp4", "mesh/mesh.glb"}
    assert {str(file.relative_to(tmp_path)) for one in made.files.values() for file in one} == files
    assert [line.partition(":")[0] for line in said] == [
        "making the contact sheet", "making the turntable", "making the mesh",
    ]  # fmt: skip
    assert made.missing == {} and made.complain(tmp_path) is None


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
    monkeypatch.setattr(outputs, "extract_mesh", lambda *_: (_ for _ in ()).throw(error))
    made, _ = made_by(tmp_path, scene)
    assert (tmp_path / "contact_sheet.png").exists() and (tmp_path / "turntable/normal.mp4").exists()
    assert list(made.missing) == ["mesh"]
    with pytest.raises(UserError) as said:
        made.complain(tmp_path)
    assert says in str(said.value) and "the same command makes what is missing" in str(said.value)


def test_a_fault_of_ours_in_an_output_keeps_its_traceback(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(outputs, "extract_mesh", lambda *_: {}["no such key"])
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
    assert save_previews(tmp_path, 3, scene, orbit_cameras(2, 8), None) == {}
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
