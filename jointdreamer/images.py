"""Pictures of renders: grids, normals as colours, contact sheets; PNG and mp4 files, there whole or not at all.

Images are (3, H, W) or (1, H, W) in [0, 1] on the way in, uint8 (H, W, 3) on the way out.
"""

import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.files import TEMPORARY, atomic_path
from jointdreamer.reading import DAMAGED, NOT_NOW, TOO_LARGE, Unreadable, open_file

# of a picture that is read: 268 MB of RGBA, and a few kB of a file can ask for a thousand times that
MOST_PIXELS = 2**26
# the one transparent colour of a PNG is in the file's numbers; what makes Pillow's of them
CLEAR_SCALE = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
PAPER = 255  # the colour between and around the cells
INK = (20, 20, 20)


def to_uint8(image: Tensor) -> np.ndarray:
    """(..., 3 or 1, H, W) in [0, 1] -> (..., H, W, 3) uint8. Outside of [0, 1] is cut, NaN is black."""
    if image.ndim < 3 or image.shape[-3] not in (1, 3):
        raise ValueError(f"wanted an image (..., 3 or 1, H, W), got {tuple(image.shape)}")
    image = image.detach().float().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    image = image.expand(*image.shape[:-3], 3, *image.shape[-2:])
    return image.movedim(-3, -1).contiguous().cpu().numpy()


def normals_to_rgb(normal: Tensor, opacity: Tensor | None = None) -> Tensor:
    """Normals (..., 3, H, W) of any length -> colours in [0, 1]: x, y, z from -1..1 to red, green, blue from 0..1.

    Where the length is zero: grey. With opacity (..., 1, H, W) in [0, 1] the colours lie over white.
    """
    unit = normal / normal.norm(dim=-3, keepdim=True).clamp_min(1e-8)
    rgb = (0.5 + 0.5 * unit).clamp(0, 1)
    return rgb if opacity is None else opacity * rgb + (1 - opacity)


def grid(
    images: Tensor | Sequence[Tensor] | Sequence[np.ndarray],
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    padding: int = 2,
) -> np.ndarray:
    """Images (N, 3 or 1, H, W) of one size -> one picture, row by row, with a line of text above each where given.

    Or uint8 images (H, W, 3), as `to_uint8` makes them.
    columns: as nearly square as can be unless given. labels: N of them; a long one is cut to its cell.
    Raises: ValueError for no images, sizes that differ, or another number of labels.
    """
    cells = [to_uint8(image) if isinstance(image, Tensor) else image for image in images]
    if not cells or any(cell.shape != cells[0].shape for cell in cells):
        raise ValueError(f"wanted images of one size, got {[cell.shape for cell in cells] or 'none'}")
    if labels is not None and len(labels) != len(cells):
        raise ValueError(f"wanted {len(cells)} labels, got {len(labels)}")
    columns = columns or math.ceil(math.sqrt(len(cells)))
    height, width = cells[0].shape[:2]
    size = max(10, min(20, width // 8))
    text = size + 4 if labels is not None else 0
    rows = math.ceil(len(cells) / columns)
    sheet = np.full(
        (rows * (height + text + padding) + padding, columns * (width + padding) + padding, 3), PAPER, np.uint8
    )
    corners = []
    for index, cell in enumerate(cells):
        top = padding + (index // columns) * (height + text + padding)
        left = padding + (index % columns) * (width + padding)
        sheet[top + text : top + text + height, left : left + width] = cell
        corners.append((left, top))
    if labels is None:
        return sheet
    picture = Image.fromarray(sheet)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    for corner, label in zip(corners, labels, strict=True):
        draw.text(corner, _fit(" ".join(label.split()), width, draw, font), fill=INK, font=font)
    return np.asarray(picture)


def _fit(label: str, width: int, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    # a lone surrogate (a byte of the command line that was no text) cannot be drawn
    label = label.encode("utf-8", "replace").decode()[:500]
    if draw.textlength(label, font) <= width:
        return label
    while label and draw.textlength(label + "...", font) > width:
        label = label[:-1]
    return label + "..."


def contact_sheet(
    rows: Mapping[str, Tensor] | Mapping[str, list[np.ndarray]], azimuth_deg: Sequence[float] | None = None
) -> np.ndarray:
    """V views side by side, one row for each kind of picture, under its name where there are several.

    rows: name -> (V, 3 or 1, H, W), e.g. rgb, normal, opacity, or V uint8 images (H, W, 3); all of one size.
    azimuth_deg: V of them, shown on top.
    """
    if not rows:
        raise ValueError("wanted at least one row of views, got none")
    columns = len(next(iter(rows.values())))
    if any(len(images) != columns for images in rows.values()):
        raise ValueError(f"wanted rows of one length, got { ({name: len(images) for name, images in rows.items()}) }")
    labels = None if azimuth_deg is None else [f"{azimuth:.0f}\N{DEGREE SIGN}" for azimuth in azimuth_deg]
    parts = []
    for name, images in rows.items():
        pixels = [to_uint8(image) if isinstance(image, Tensor) else image for image in images]
        row = grid(pixels, columns, labels)
        if len(rows) > 1:
            parts.append(_title(name, row.shape[1], max(10, min(20, pixels[0].shape[1] // 8))))
        parts.append(row)
        labels = None  # on top only
    return np.concatenate(parts)


def _title(text: str, width: int, size: int) -> np.ndarray:
    """A line of text as a picture of this width."""
    picture = Image.new("RGB", (width, size + 4), (PAPER, PAPER, PAPER))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    draw.text((2, 0), _fit(" ".join(text.split()), width - 4, draw, font), fill=INK, font=font)
    return np.asarray(picture)


def write_png(path: str | Path, image: np.ndarray | Tensor) -> None:
    """Write uint8 (H, W, 3), or a (3 or 1, H, W) image in [0, 1], as a PNG."""
    pixels = to_uint8(image) if isinstance(image, Tensor) else image
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


class VideoError(RuntimeError):
    """ffmpeg is not there, or could not do its work; the message says why."""


@contextmanager
def video_writer(path: str | Path, fps: int = 30) -> Iterator[Callable[[Tensor | np.ndarray], None]]:
    """Yield a function that adds a frame to an H.264 mp4, which is at `path` when the block ends; nothing is held.

    A frame: (3 or 1, H, W) in [0, 1], or uint8 (H, W, 3). Any size: H.264 as players read it wants even sides, so an
    odd one repeats its last row or column.
    Raises: VideoError for an ffmpeg that is absent or fails; UserError when the disk is full; ValueError for no frames
    or sizes that differ.
    """
    if Path(path).suffix != ".mp4":
        raise UserError(f"{path}: wanted a name that ends in .mp4")
    encoder: _Encoder | None = None
    shape: tuple[int, ...] = ()

    def add(frame: Tensor | np.ndarray) -> None:
        nonlocal encoder, shape
        pixels = to_uint8(frame) if isinstance(frame, Tensor) else frame
        if encoder is None:
            shape = pixels.shape
            encoder = _Encoder(temporary, shape[0] + shape[0] % 2, shape[1] + shape[1] % 2, fps, said)
        elif pixels.shape != shape:
            raise ValueError(f"wanted frames of one size {shape}, got {pixels.shape}")
        encoder.add(np.pad(pixels, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge"))

    with atomic_path(path) as temporary, tempfile.TemporaryFile() as said:  # a pipe that nobody reads would fill up
        try:
            yield add
            if encoder is None:
                raise ValueError(f"wanted frames for {path}, got none")
            encoder.finish()
        finally:
            if encoder is not None:
                encoder.kill()


def write_video(path: str | Path, frames: Iterable[Tensor | np.ndarray], fps: int = 30) -> None:
    """Write frames as an H.264 mp4; what they may be and what is raised: `video_writer`."""
    with video_writer(path, fps) as add:
        for frame in frames:
            add(frame)


def try_video(folder: Path) -> None:
    """Write a video of two frames into `folder` and remove it again. Raises VideoError where that cannot be done."""
    file = folder / f"{TEMPORARY}{os.getpid()}-try.mp4"
    try:
        write_video(file, [np.zeros((16, 16, 3), np.uint8)] * 2)
    finally:
        file.unlink(missing_ok=True)


class _Encoder:
    """ffmpeg as a process that takes frames, uint8 (height, width, 3), and writes `file`; its words go to `said`."""

    def __init__(self, file: Path, height: int, width: int, fps: int, said: IO[bytes]):
        self._file, self._said = file, said
        try:
            command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24",
                       "-s", f"{width}x{height}", "-r", str(fps), "-i", "-", "-an", "-c:v", "libx264", "-crf", "10",
                       "-pix_fmt", "yuv420p", "-movflags", "+faststart", f"file:{file}"]  # fmt: skip
            # "file:": else a colon in a name ends a protocol; a session: Ctrl-C is ours to answer
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=said, stderr=said, start_new_session=True
            )
        except (OSError, RuntimeError) as error:
            raise VideoError(
                f"no ffmpeg ({error}): pip install imageio-ffmpeg, or name one in IMAGEIO_FFMPEG_EXE"
            ) from error

    def add(self, pixels: np.ndarray) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(pixels).data)
        except OSError as error:  # it has ended: `finish` says how
            self.finish()
            raise VideoError("ffmpeg ended before the last frame") from error

    def finish(self) -> None:
        """Wait until the file is whole. Raises VideoError if ffmpeg says that it is not."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        status = self._process.wait()
        if status:
            self._said.seek(0)
            lines = self._said.read().decode("utf-8", "replace").strip().splitlines() or ["without a word"]
            raise VideoError(f"ffmpeg failed with status {status}: {lines[-1][:200]}")
        if not self._file.exists():
            raise VideoError(f"ffmpeg wrote no file ({imageio_ffmpeg.get_ffmpeg_exe()})")

    def kill(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()


def read_picture(file: str | Path) -> np.ndarray:
    """The picture in a file, see `decode_picture`."""
    with open_file(file) as stream:
        return decode_picture(stream, file)


def decode_picture(stream: BinaryIO, name: str | Path) -> np.ndarray:
    """A picture as RGBA, uint8 (H, W, 4) with straight colours, upright as its EXIF says; of an animation the first.

    Takes grey, palettes, CMYK and transparency; 16 bits a channel become their upper eight (Pillow's own conversion of
    grey cuts them off at 255 instead), floats are taken for [0, 1].
    Raises Unreadable, which calls it `name`, also for more than MOST_PIXELS.
    """
    try:
        image = Image.open(stream)
        if image.width * image.height > MOST_PIXELS:
            raise Unreadable(name, TOO_LARGE, f"{image.width} x {image.height} pixels")
        coding = image.tile[0][3] if image.tile else None  # which loading forgets
        image.load()
        with suppress(Exception):  # junk where EXIF should be says nothing, and the picture is whole
            image = ImageOps.exif_transpose(image)
        clear = image.info.get("transparency")
        if image.mode[0] in "IF":
            values = np.asarray(image, np.float64)
            gray = np.nan_to_num(values / (1 if image.mode == "F" else 2**16 - 1)).clip(0, 1)
            alpha = np.ones_like(gray) if clear is None else values != clear
            image = Image.fromarray(np.round(np.stack([gray, alpha], -1) * 255).astype(np.uint8))
        elif clear is not None and coding in CLEAR_SCALE:
            scaled = (np.array(clear) * CLEAR_SCALE[coding]).astype(int).tolist()  # of grey, or of three channels
            image.info["transparency"] = tuple(scaled) if isinstance(scaled, list) else scaled
        return np.asarray(image.convert("RGBA"))
    except Unreadable:
        raise
    except MemoryError as error:
        raise Unreadable(name, NOT_NOW, "not enough memory") from error
    except Exception as error:  # Pillow's decoders let nearly anything through
        raise Unreadable(name, TOO_LARGE if "Bomb" in type(error).__name__ else DAMAGED, error) from error


def plot_curves(path: str | Path, panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> Path:
    """Write a PNG with a panel for each name, side by side, and in it a line (x, y) for each label."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, (x, y) in lines.items():
            axis.plot(x, y, label=label, marker="o" if len(x) < 20 else None, markersize=3)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(fontsize=8)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    return Path(path)
