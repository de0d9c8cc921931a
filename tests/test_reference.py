"""A given picture: whatever its format, the object alone, in the middle, as large as asked."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from jointdreamer import reference
from jointdreamer.errors import UserError
from jointdreamer.reference import ImageCamera, content, in_front_of_plain, read_reference, warn_of_elevation

RED = (200, 30, 40)


def disc(size=64, centre=(32, 32), radius=12):
    """(H, W) bool."""
    y, x = np.mgrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def picture(inside=RED, outside=(255, 255, 255), **where) -> np.ndarray:
    return np.where(disc(**where)[..., None], np.array(inside, np.uint8), np.array(outside, np.uint8)).astype(np.uint8)


@pytest.fixture
def save(tmp_path):
    def write(pixels, name="image.png", mode=None, **options):
        image = Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(tmp_path / name, **options)
        return tmp_path / name

    return write


def color(found) -> list[float]:
    """The colour of the object's inside, where a lossy format has no edge."""
    return found.rgba[:3, torch.from_numpy(disc(radius=8))].mean(1).tolist()


@pytest.mark.parametrize(
    ("name", "mode", "tolerance"),
    [
        ("a.png", None, 0.01),
        ("a.png", "P", 0.05),
        ("a.webp", None, 0.05),
        ("a.jpg", None, 0.05),
        ("a.jpg", "CMYK", 0.05),
    ],
)
def test_formats_and_a_plain_background(save, name, mode, tolerance):
    found = read_reference(save(picture(), name, mode))
    assert found.rgba.shape == (4, 64, 64)
    assert color(found) == pytest.approx([x / 255 for x in RED], abs=tolerance)
    inside = torch.from_numpy(disc())
    assert found.rgba[3][inside].mean() > 0.97 and found.rgba[3][~torch.from_numpy(disc(radius=14))].mean() < 0.02


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_of_8_and_16_bits(tmp_path, bits):
    grey = np.where(disc(), 0.4, 1.0) * (2**bits - 1)
    Image.fromarray(grey.astype(np.uint8 if bits == 8 else np.uint16)).save(tmp_path / "grey.png")
    assert color(read_reference(tmp_path / "grey.png")) == pytest.approx([0.4] * 3, abs=0.01)


def test_transparency_is_the_mask_and_colours_under_it_do_not_count(save):
    rgba = np.dstack([picture(outside=(0, 255, 0)), np.where(disc(), 255, 0).astype(np.uint8)])
    found = read_reference(save(rgba))
    assert color(found) == pytest.approx([x / 255 for x in RED], abs=0.01)
    assert found.on(0.5)[:, 0, 0].tolist() == [0.5] * 3
    small = found.on(1.0, 16)
    assert small.shape == (3, 16, 16) and (small[1] <= 1.001).all()
    assert float(small[0].min()) > 0.7  # no green, no black at the edge of what was made smaller


def test_a_photograph_is_turned_upright(save):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    sideways = np.rot90(picture(centre=(16, 32), radius=8))
    found = read_reference(save(np.ascontiguousarray(sideways), "photo.jpg", exif=exif))
    y = float((found.rgba[3].sum(1) * torch.arange(64)).sum() / found.rgba[3].sum())
    assert y == pytest.approx(16, abs=1)


def test_a_mask_of_its_own_wins(save):
    busy = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    mask = save(np.where(disc(), 255, 0).astype(np.uint8), "mask.png")
    found = read_reference(save(busy), mask)
    assert float(found.rgba[3].mean()) == pytest.approx(disc().mean(), abs=0.01)


def test_what_the_flood_does_not_reach_belongs_to_the_object():
    rgb = picture().astype(np.float32) / 255
    rgb[30:34, 30:34] = 1.0  # a white eye
    found = in_front_of_plain(rgb)
    assert found is not None and found[32, 32] == 1 and found[2, 2] == 0
    assert in_front_of_plain(np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)) is None


def test_the_object_is_moved_to_the_middle_and_fills_its_share(save):
    image = save(picture(centre=(20, 45), radius=10))
    found = read_reference(image, fill=0.5)
    rows, columns = (torch.nonzero((found.rgba[3] > 0.5).any(axis)).flatten() for axis in (1, 0))
    size = found.rgba.shape[-1]
    for line in (rows, columns):
        assert len(line) / size == pytest.approx(0.5, abs=0.03)
        assert float(line.float().mean()) == pytest.approx((size - 1) / 2, abs=1)
    kept = read_reference(image, fill=None)
    assert kept.rgba[3, 20, 45] == 1 and kept.rgba.shape[-1] == 64


def test_a_picture_that_is_not_square_gets_margins(save):
    wide = np.concatenate([picture(), picture(inside=(255, 255, 255))], 1)
    found = read_reference(save(wide))
    assert found.rgba.shape == (4, 128, 128) and found.rgba[3, 32 + 32, 32] == 1


def padded_first(rgba, fill=None):
    """The square as it was made before: margins, then MOST_SIDE pixels."""
    height, width = rgba.shape[1:]
    side = max(height, width)
    up, aside = (round((length - 1) / 2 - (side - 1) / 2) for length in (height, width))
    square = torch.nn.functional.pad(rgba, (-aside, aside + side - width, -up, up + side - height))
    if side <= reference.MOST_SIDE:
        return square
    size = (reference.MOST_SIDE,) * 2
    return torch.nn.functional.interpolate(square[None], size, mode="bilinear", antialias=True)[0]


def test_margins_do_not_grow_with_the_square_of_a_picture_s_longer_side(monkeypatch):
    generator, sizes = torch.Generator().manual_seed(0), []

    def pad(image, margins):
        sizes.append(torch.nn.functional.pad(image, margins).shape[-2:])
        return torch.nn.functional.pad(image, margins)

    monkeypatch.setattr(reference, "pad", pad)
    ordinary = torch.rand(4, 90, 61, generator=generator)
    assert torch.equal(reference._squared(ordinary, None), padded_first(ordinary))
    square = torch.rand(4, 1100, 1100, generator=generator)
    assert torch.equal(reference._squared(square, None), padded_first(square))
    smooth = torch.linspace(0, 1, 1536).expand(4, 768, 1536)
    torch.testing.assert_close(reference._squared(smooth, None)[:, 257:767], padded_first(smooth)[:, 257:767])
    for height, width, fill in ((8, 3000, None), (3000, 8, 0.5), (400, 400, 0.05)):
        rgba = torch.zeros(4, height, width)
        rgba[:, height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1
        found = reference._squared(rgba, fill)
        assert found.shape == (4, 1024, 1024)
        shown = torch.nonzero(found[3] > 0.5)
        assert (shown.float().mean(0) - 511.5).abs().max() <= 1  # in the middle
        longer = (shown.amax(0) - shown.amin(0) + 1).max()
        assert float(longer) / 1024 == pytest.approx(fill or 0.5, abs=0.003)
    assert max(map(max, sizes)) == 1024


def test_its_camera_is_the_convention_s(save):
    cameras = read_reference(save(picture()), camera=ImageCamera(0, 90, 2.0, 40)).cameras(8)
    assert cameras.azimuth.shape == (1, 1) and cameras.resolution == 8
    torch.testing.assert_close(cameras.c2w[0, 0, :3, 3], torch.tensor([0.0, 2.0, 0.0]), atol=1e-6, rtol=0)


def png_of_size(width, height) -> bytes:
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def damaged(kind: str) -> bytes:
    if kind == "huge":
        return png_of_size(50_000, 50_000)
    if kind == "text":
        return b"no picture at all"
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()[:3000]


@pytest.mark.parametrize(("kind", "says"), [("huge", "too large"), ("text", "damaged"), ("truncated", "damaged")])
def test_what_is_no_picture_is_one_line(tmp_path, kind, says):
    file = tmp_path / "image.png"
    file.write_bytes(damaged(kind))
    with pytest.raises(UserError) as caught:
        read_reference(file)
    said = str(caught.value)
    assert says in said and "image=" in said and "wanted a PNG" in said and "\n" not in said


@pytest.mark.parametrize(
    ("alpha", "says"), [(0, "empty"), (1, "full")], ids=["empty", "full"]
)  # an alpha of 254 is no opaque picture
def test_an_empty_or_a_full_mask(save, alpha, says):
    rgba = np.dstack([picture(), np.full((64, 64), 254 * alpha, np.uint8)])
    with pytest.raises(UserError, match=f"its mask is {says}"):
        read_reference(save(rgba))
    mask = save(np.full((64, 64), 255 * alpha, np.uint8), "mask.png")
    with pytest.raises(UserError, match=f"mask=.* is {says}"):
        read_reference(save(picture()), mask)


def test_other_mistakes(save, tmp_path, monkeypatch):
    busy = save(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    monkeypatch.setattr(reference, "_rembg", lambda: None)
    with pytest.raises(UserError, match=r"mask=FILE.*rembg"):
        read_reference(busy)
    monkeypatch.setattr(
        reference, "_rembg", lambda: lambda rgba: np.dstack([rgba[..., :3], np.where(disc(), 255, 0).astype(np.uint8)])
    )
    assert float(read_reference(busy).rgba[3].mean()) == pytest.approx(disc().mean(), abs=0.01)
    with pytest.raises(UserError, match="no such file"):
        read_reference(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="several pictures are a sweep"):
        read_reference("a.png,b.png")
    with pytest.raises(UserError, match=r"32 x 32 pixels, the image 64 x 64"):
        read_reference(busy, save(np.zeros((32, 32), np.uint8), "mask.png"))


def test_the_content_counts_not_the_name(save, tmp_path):
    one, two = save(picture(), "one.png"), save(picture(), "two.png")
    other = save(picture(inside=(1, 2, 3)), "other.png")
    assert content(one) == content(two) != content(other)
    assert content(one, other) != content(one)
    with pytest.raises(UserError, match="no such file"):
        content(tmp_path / "nowhere.png")


def test_a_warning_of_a_height_that_the_model_does_not_know(caplog):
    warn_of_elevation(ImageCamera(elevation_deg=20), (-10, 80))
    assert not caplog.records
    warn_of_elevation(ImageCamera(elevation_deg=-40), (-10, 80))
    assert "-40" in caplog.text and "-10 to 80" in caplog.text
