"""Pictures: exact pixels, any size, and files that are whole or not there."""

import os
import struct
import zlib

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from jointdreamer.errors import UserError
from jointdreamer.images import (
    VideoError,
    contact_sheet,
    grid,
    normals_to_rgb,
    read_picture,
    to_uint8,
    try_video,
    write_png,
    write_video,
)
from jointdreamer.reading import Unreadable


def flat(*color: float, size: int = 8) -> torch.Tensor:
    return torch.tensor(color).reshape(3, 1, 1).expand(3, size, size)


def test_to_uint8_rounds_cuts_and_survives_nan():
    values = torch.tensor([-1.0, 0.0, 0.5, 0.999, 1.0, 7.0, float("nan"), float("inf")])
    pixels = to_uint8(values.reshape(1, 1, 8))
    assert pixels.shape == (1, 8, 3) and pixels.dtype == np.uint8
    assert pixels[0, :, 0].tolist() == [0, 0, 128, 255, 255, 255, 0, 255]
    assert to_uint8(torch.zeros(2, 4, 3, 5, 6)).shape == (2, 4, 5, 6, 3)
    with pytest.raises(ValueError, match="wanted an image"):
        to_uint8(torch.zeros(4, 4))


def test_normals_become_colours_whatever_their_length():
    normal = torch.tensor([[2.0, 0, 0], [0, 0, -0.1], [0, 0, 0]]).T.reshape(3, 1, 3)
    rgb = normals_to_rgb(normal)
    expected = torch.tensor([[1, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0.5, 0.5]]).T.reshape(3, 1, 3)
    assert torch.allclose(rgb, expected)
    half = normals_to_rgb(normal, torch.full((1, 1, 3), 0.5))
    assert torch.allclose(half, 0.5 * expected + 0.5)


def test_grid_puts_every_image_in_its_place():
    images = torch.stack([torch.full((3, 2, 3), value / 10) for value in range(5)])
    sheet = grid(images, columns=3, padding=1)
    assert sheet.shape == (2 * 3 + 1, 3 * 4 + 1, 3)
    for index in range(5):
        row, column = divmod(index, 3)
        cell = sheet[1 + 3 * row : 3 + 3 * row, 1 + 4 * column : 4 + 4 * column]
        assert (cell == to_uint8(images[index])).all()
    assert (sheet[0] == 255).all() and (sheet[4:6, 9:12] == 255).all()


@pytest.mark.parametrize("label", ["front", "", "日本 🦊", "\udcff\n\0", "x" * 10_000])
def test_labels_stay_above_their_image(label):
    images = torch.zeros(2, 3, 40, 40)
    sheet = grid(images, columns=2, labels=[label, ""], padding=2)
    text = sheet.shape[0] - 40 - 2 * 2
    assert text >= 10
    assert (sheet[2 + text : 42 + text, 2:42] == 0).all()  # the picture itself is untouched
    assert (sheet[: 2 + text, 44:] == 255).all()  # and so is the neighbour's label
    if label == "front":
        assert (sheet[: 2 + text, :42] < 128).any()


def test_grid_says_what_it_wanted():
    with pytest.raises(ValueError, match="none"):
        grid([])
    with pytest.raises(ValueError, match="one size"):
        grid([torch.zeros(3, 2, 2), torch.zeros(3, 3, 3)])
    with pytest.raises(ValueError, match="2 labels"):
        grid(torch.zeros(2, 3, 4, 4), labels=["a"])


def test_contact_sheet_has_a_column_a_view_and_a_row_a_kind():
    rgb = torch.stack([flat(1.0, 0, 0, size=32), flat(0, 1.0, 0, size=32)])
    opacity = torch.zeros(2, 1, 32, 32)
    sheet = contact_sheet({"rgb": rgb, "opacity": opacity}, [0, 180])
    assert sheet.shape[1] == 2 * 34 + 2
    assert sheet[-20, 10].tolist() == [0, 0, 0] and sheet[-55, 10].tolist() == [255, 0, 0]
    assert sheet[-55, 45].tolist() == [0, 255, 0]
    assert contact_sheet({"rgb": rgb}).shape == (36, 70, 3)
    names, picture = sheet.shape[0] - 2 * 36 - 14, slice(2, -2)  # the azimuths on top take 14, and each name
    assert names == 2 * 14
    assert (sheet[:14, picture] < 128).any() and (sheet[-50:-36, picture] < 128).any()
    assert contact_sheet({"rgb": rgb}, [0, 90]).shape == (50, 70, 3)
    with pytest.raises(ValueError, match="one length"):
        contact_sheet({"rgb": rgb, "opacity": opacity[:1]})


def test_png_is_exact_and_replaces_in_one_go(tmp_path):
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    write_png(tmp_path / "views/a.png", image)
    assert (np.asarray(Image.open(tmp_path / "views/a.png")) == to_uint8(image)).all()
    with pytest.raises(TypeError):
        write_png(tmp_path / "views/a.png", np.zeros((2, 2, 3)))  # type: ignore[arg-type]
    assert [entry.name for entry in (tmp_path / "views").iterdir()] == ["a.png"]
    assert (np.asarray(Image.open(tmp_path / "views/a.png")) == to_uint8(image)).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 90), (33, 31)])
def test_video_plays_back_in_its_size_and_order(tmp_path, height, width):
    frames = torch.stack([torch.full((3, height, width), value) for value in (0.1, 0.5, 0.9)])
    write_video(tmp_path / "turntable/rgb.mp4", frames, fps=10)
    back = imageio.imread(tmp_path / "turntable/rgb.mp4")
    assert back.shape == (3, height + height % 2, width + width % 2, 3)
    assert np.abs(back.mean((1, 2, 3)) / 255 - [0.1, 0.5, 0.9]).max() < 0.03
    assert [entry.name for entry in (tmp_path / "turntable").iterdir()] == ["rgb.mp4"]


def test_video_takes_frames_as_they_come(tmp_path):
    write_video(tmp_path / "a.mp4", (np.full((16, 16, 3), value, np.uint8) for value in (0, 255)))
    assert imageio.imread(tmp_path / "a.mp4").shape == (2, 16, 16, 3)


def test_a_video_that_fails_leaves_the_old_one(tmp_path):
    write_video(tmp_path / "a.mp4", torch.zeros(2, 3, 16, 16))
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match="one size"):
        write_video(tmp_path / "a.mp4", [torch.zeros(3, 16, 16), torch.zeros(3, 18, 18)])
    with pytest.raises(ValueError, match="none"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(UserError, match=r"\.mp4"):
        write_video(tmp_path / "a.gif", torch.zeros(2, 3, 16, 16))
    assert (tmp_path / "a.mp4").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# Pictures that others made


def as_read(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return read_picture(tmp_path / name)


def test_pictures_of_all_modes_are_read_alike(tmp_path):
    gray = np.array([[0, 64, 255]], np.uint8)
    expected = np.stack([gray, gray, gray, np.full_like(gray, 255)], -1)
    eight = Image.fromarray(gray)
    for mode in ("L", "RGB", "RGBA", "P", "LA"):
        np.testing.assert_array_equal(as_read(tmp_path, eight.convert(mode)), expected)
    sixteen = Image.fromarray(gray.astype(np.uint16) * 257)
    for name in ("a.png", "a.tif", "a.ppm"):
        np.testing.assert_array_equal(as_read(tmp_path, sixteen, name), expected)
    np.testing.assert_array_equal(as_read(tmp_path, Image.fromarray(gray.astype(np.float32) / 255), "b.tif"), expected)
    cmyk = as_read(tmp_path, Image.new("RGB", (8, 8), (200, 100, 50)).convert("CMYK"), "c.tif")
    assert np.abs(cmyk[0, 0].astype(int) - [200, 100, 50, 255]).max() <= 1
    clear = Image.new("P", (2, 1))
    clear.putpalette([255, 0, 0, 0, 255, 0])
    clear.putpixel((1, 0), 1)
    np.testing.assert_array_equal(as_read(tmp_path, clear, transparency=0), [[[255, 0, 0, 0], [0, 255, 0, 255]]])
    assert set(as_read(tmp_path, Image.fromarray(gray > 100))[0, :, 0]) == {0, 255}


def test_a_picture_stands_as_its_camera_was_held(tmp_path):
    image = Image.new("RGB", (3, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    assert as_read(tmp_path, image, "a.jpg", exif=exif).shape == (3, 2, 4)


def png(bits: int, kind: int, row: bytes, **chunks: bytes) -> bytes:
    """A PNG of two pixels, kind 0 of grey and 2 of colours, with further chunks."""

    def chunk(name: str, data: bytes) -> bytes:
        body = name.encode() + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk("IHDR", struct.pack(">IIBBBBB", 2, 1, bits, kind, 0, 0, 0))
    more = b"".join(chunk(name, data) for name, data in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk("IDAT", zlib.compress(b"\0" + row)) + chunk("IEND", b"")


@pytest.mark.parametrize(
    ("bits", "kind", "row", "clear"),
    [
        (16, 0, [1000, 60000], [1000]),
        (8, 0, [3, 234], [3]),
        (4, 0, [0x3C], [3]),
        (2, 0, [0x70], [1]),
        (16, 2, [1000, 2000, 3000, 60000, 1, 2], [1000, 2000, 3000]),
        (8, 2, [1, 2, 3, 4, 5, 6], [1, 2, 3]),
    ],
)
def test_the_transparent_colour_of_a_png_of_any_depth(tmp_path, bits, kind, row, clear):
    file, of = tmp_path / "a.png", "H" if bits == 16 else "B"
    file.write_bytes(
        png(bits, kind, struct.pack(f">{len(row)}{of}", *row), tRNS=struct.pack(f">{len(clear)}H", *clear))
    )
    assert read_picture(file)[0, :, 3].tolist() == [0, 255]


@pytest.mark.parametrize("exif", [b"junk", b"MM\0*" + b"\xff" * 20, b"Exif\0\0junkjunk"])
def test_junk_for_exif_turns_nothing(tmp_path, exif):
    (tmp_path / "a.png").write_bytes(png(8, 0, bytes([10, 200]), eXIf=exif))
    assert read_picture(tmp_path / "a.png")[0, :, 0].tolist() == [10, 200]


def test_what_is_no_picture_or_too_much_of_one(tmp_path):
    file = tmp_path / "a.png"
    Image.new("1", (30_000, 30_000)).save(file)
    with pytest.raises(Unreadable, match="too large"):
        read_picture(file)
    Image.new("RGB", (64, 64)).save(file)
    whole = file.read_bytes()
    for content in (
        b"",
        b"\x89PNG",
        whole[:60],
        whole.replace(b"IDAT", b"IDAX"),
        bytes(range(256)),
        b"<svg/>",
        b"GIF89a",
    ):
        file.write_bytes(content)
        with pytest.raises(Unreadable, match="damaged"):
            read_picture(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(Unreadable, match="damaged"):
        read_picture(file)
    with pytest.raises(Unreadable, match="absent"):
        read_picture(tmp_path / "nowhere.png")


@pytest.mark.parametrize("name", ["mvs:cfg30", "-v", "a%03d", "pipe:1", "ein Hündchen"])
def test_a_video_goes_to_any_path(tmp_path, name):
    write_video(tmp_path / name / f"{name}.mp4", torch.zeros(2, 3, 16, 16))
    assert [file.name for file in (tmp_path / name).iterdir()] == [f"{name}.mp4"]


FRAMES = [np.zeros((64, 64, 3), np.uint8)] * 500  # more than a pipe holds


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            'for last; do :; done; printf abcd > "${last#file:}"; cat > /dev/null; echo "no codec" >&2; exit 1',
            "status 1: no",
        ),
        ('for last; do :; done; printf abcd > "${last#file:}"; kill -9 $$', "status -9"),
        ("exit 3", "status 3"),
        ("exit 0", "wrote no file|before the last frame"),
    ],
)
def test_an_encoder_that_fails_is_no_video(tmp_path, monkeypatch, script, says):
    fake = tmp_path / "ffmpeg"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    with pytest.raises(VideoError, match=says):
        write_video(tmp_path / "a.mp4", FRAMES)
    with pytest.raises(VideoError):
        try_video(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["ffmpeg"]


def test_without_an_encoder_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    with pytest.raises(VideoError, match="pip install imageio-ffmpeg"):
        write_video(tmp_path / "a.mp4", FRAMES)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_works_leaves_nothing_of_the_trial(tmp_path):
    try_video(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_contact_sheet_of_pixels_is_that_of_images():
    rgb = torch.rand(2, 3, 20, 20)
    assert (contact_sheet({"rgb": list(to_uint8(rgb))}, [0, 90]) == contact_sheet({"rgb": rgb}, [0, 90])).all()
