"""Image to 3D against true views (the paper's Fig. A4 as a table): python -m jointdreamer.tables image [KEY=VALUE ...]

Draws toys in shapes that nothing was trained on, makes a picture of each from the front, makes the runs that are
missing, each one of train.py in a process of its own, and compares 16 novel views of every object with the true ones.
The same command again goes on where it was and skips what is finished.

    objects=32                       how many toys
    draw=1                           seed of the draw; tuning used draw=0
    methods=zero123,magic123,jsd     by their names in conf/experiment/image/
    sheets=8                         toys in the contact sheet of each method
    jobs=2                           runs at a time, with one thread each
    out_dir=runs                     for the runs; the table and the sheets go to out_dir/tables/toybox/

Any other KEY=VALUE is for train.py, e.g. output.views=8 for a short turntable.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from jointdreamer.cameras import Cameras, look_at
from jointdreamer.cli import main as cli
from jointdreamer.cli.job import with_prompt
from jointdreamer.cli.messages import complain
from jointdreamer.comparison import compare
from jointdreamer.errors import UserError
from jointdreamer.evaluation.networks import Clip, toybox_clip
from jointdreamer.evaluation.statistics import mean, rate
from jointdreamer.evaluation.table import number_cell
from jointdreamer.files import atomic_path, write_text
from jointdreamer.images import grid, to_uint8
from jointdreamer.metrics import psnr, ssim, unit
from jointdreamer.runs.folder import folder_for, is_complete
from jointdreamer.runs.pictures import load_scene, render_views
from jointdreamer.runs.processes import train_runs
from jointdreamer.schedules import Plan
from jointdreamer.toybox import data
from jointdreamer.toybox.judge import VIEWS, judging_cameras, load_judge, true_views, verdict
from jointdreamer.toybox.world import Toy, caption, sample_toy

METHODS = {"zero123": "Zero-1-to-3", "magic123": "Magic123", "jsd": "JSD, i2i, the picture as reference"}
TEXTLESS = ("zero123",)  # gets no prompt
NOVEL = 16  # views, at azimuths halfway between those of a closed turn: none is the picture's
PIXELS = 128  # of the picture that a method is given
COPY = "the picture, whatever the view"  # a floor for all of them
CLAIM = (
    "The paper's Fig. A4 shows pictures: there JSD is above Magic123, and Magic123 above Zero-1-to-3, on novel views."
)


@dataclass(frozen=True)
class ImageSettings:
    """What the command line says."""

    objects: int = 32
    draw: int = 1
    methods: tuple[str, ...] = tuple(METHODS)
    sheets: int = 8
    jobs: int = 2
    out_dir: Path = Path("runs")
    words: tuple[str, ...] = ()  # for train.py


@dataclass(frozen=True)
class Scores:
    """One object against its true views."""

    psnr_reference: float
    ssim_reference: float
    psnr: tuple[float, ...]  # of each novel view
    ssim: tuple[float, ...]
    clip: tuple[float, ...]  # cosine of each novel view and the true one
    janus: bool  # of the novel views
    resultant_length: float


def draw_toys(n: int, seed: int) -> list[Toy]:
    """N toys of held-out shapes with different captions, every other one a combination that nothing was trained on."""
    rng, found = np.random.default_rng([21, seed]), []
    captions: set[str] = set()
    while len(found) < n:
        toy = sample_toy(rng, shape="held_out", combination=("train", "held_out")[len(found) % 2])
        if caption(toy) not in captions:
            captions.add(caption(toy))
            found.append(toy)
    return found


def novel_cameras() -> Cameras:
    """One rig of NOVEL views around, at the judging cameras' height and distance."""
    like = judging_cameras()
    azimuth = (torch.arange(NOVEL, dtype=torch.float32)[None] + 0.5) * (math.tau / NOVEL)
    elevation, distance, fovy = (x[:, :1].expand(1, NOVEL).clone() for x in (like.elevation, like.distance, like.fovy))
    c2w = look_at(elevation, azimuth, distance)
    return Cameras(c2w, fovy, elevation, azimuth, distance, c2w[..., :3, 3].clone(), like.resolution)


def sheet_cameras() -> Cameras:
    """One rig of every other judging camera, the picture's first."""
    return judging_cameras().select(torch.arange(0, VIEWS, 2)[None])


def angles() -> list[float]:
    """How far each novel view is from the picture's, degrees from 0 to 180."""
    degrees = torch.rad2deg(novel_cameras().azimuth[0])
    return [round(float(min(x, 360 - x)), 2) for x in degrees]


def write_picture(toy: Toy, file: Path) -> None:
    """What a method is given: RGBA from the front, the first of the judging cameras."""
    rgba = data.cast(toy, judging_cameras(PIXELS).select(torch.tensor([[0]])))[0][0]
    with atomic_path(file) as temporary:
        Image.fromarray(np.round(rgba * 255).astype(np.uint8)).save(temporary, format="PNG")


def words_of(method: str, toy: Toy, picture: Path, settings: ImageSettings) -> list[str]:
    """The words of train.py for a run of a method on a toy."""
    camera = judging_cameras()
    pose = {
        "elevation_deg": camera.elevation,
        "azimuth_deg": camera.azimuth,
        "distance": camera.distance,
        "fovy_deg": camera.fovy,
    }
    degrees = {
        key: float(x[0, 0].double().rad2deg() if key.endswith("deg") else x[0, 0].double()) for key, x in pose.items()
    }
    words = ["models=toybox", f"experiment=image/{method}", f"image={picture}", "image_fill=null"]
    words += [f"image_camera.{key}={value:.6g}" for key, value in degrees.items()]
    words += [] if method in TEXTLESS else [f"prompt={caption(toy)}"]
    return [*words, "seed=0", f"out_dir={settings.out_dir}", *settings.words]


@cache
def _composed(method: str, words: tuple[str, ...]) -> dict[str, Any]:
    return cli.composed("config", list(words), "toybox") | {"name": f"image/{method}"}


def config_of(method: str, words: Sequence[str]) -> dict[str, Any]:
    """The config of a run, as train.py has it: composed once a method, but for its picture and its prompt."""
    own = {key: value for key, _, value in (word.partition("=") for word in words) if key in ("image", "prompt")}
    shared = tuple(word for word in words if word.partition("=")[0] not in own)
    return with_prompt({**_composed(method, shared), "prompt": "", **own})


def score(folder: Path, toy: Toy, clip: Clip, judge: Any) -> tuple[Scores, Tensor]:
    """A finished run against its toy's true views, and its views from `sheet_cameras`. Raises UserError."""
    scene, _ = load_scene(folder)
    around, novel = sheet_cameras(), novel_cameras()
    shown, seen = (render_views(scene, cameras).rgb[0].clamp(0, 1) for cameras in (around, novel))
    return scores_of(toy, shown[:1], seen, clip, judge), shown


def scores_of(toy: Toy, front: Tensor, novel: Tensor, clip: Clip, judge: Any) -> Scores:
    """Of the view (1, 3, R, R) from the picture's camera, and those (NOVEL, 3, R, R) from `novel_cameras`.

    The judge is asked about the novel views alone: all stand half a step beside its own azimuths, which turns what it
    says of every one by the same angle, and Janus and R do not know such a turn.
    """
    given, truth = true_views(toy, sheet_cameras())[:1], true_views(toy, novel_cameras())
    cosine = (unit(clip.images(novel)) * unit(clip.images(truth))).sum(1)
    said = verdict(judge, novel, toy)
    return Scores(
        float(psnr(front, given)), float(ssim(front, given)),
        tuple(psnr(novel, truth).tolist()), tuple(ssim(novel, truth).tolist()),
        tuple(cosine.tolist()), said.janus, said.resultant_length,
    )  # fmt: skip


def markdown(rows: Mapping[str, Sequence[Scores]], settings: ImageSettings) -> str:
    """The table, and PSNR, SSIM and CLIP similarity by the angle from the picture."""

    def average(values: Sequence[float], decimals: int) -> str:
        found = mean(values)
        return number_cell(found and found.as_dict(), decimals)

    head = ["", "objects", "PSNR, picture", "SSIM, picture", "PSNR, novel", "SSIM, novel", "CLIP", "Janus, %", "R"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, scores in rows.items():
        janus = rate([one.janus for one in scores])
        cells = [
            name, str(len(scores)),
            average([one.psnr_reference for one in scores], 2) if name != COPY else "-",
            average([one.ssim_reference for one in scores], 3) if name != COPY else "-",
            average([float(np.mean(one.psnr)) for one in scores], 2),
            average([float(np.mean(one.ssim)) for one in scores], 3),
            average([float(np.mean(one.clip)) for one in scores], 3),
            number_cell(janus and janus.as_dict(), 1),
            average([one.resultant_length for one in scores], 2),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    sides, angle = sorted(set(angles())), np.array(angles())
    for title, measure, decimals in (("PSNR", "psnr", 1), ("SSIM", "ssim", 3), ("CLIP", "clip", 3)):
        lines += ["", f"| {title} at | {' | '.join(f'{side:g}' for side in sides)} |", "|" + "---|" * (len(sides) + 1)]
        for name, scores in rows.items():
            views = np.array([getattr(one, measure) for one in scores]).mean(0)
            means = [f"{views[angle == side].mean():.{decimals}f}" for side in sides]
            lines.append(f"| {name} | {' | '.join(means)} |")
    novel = {name: float(np.mean([one.psnr for one in scores])) for name, scores in rows.items()}
    order = [METHODS[name] for name in METHODS if METHODS[name] in novel]
    best = " > ".join(sorted(order, key=lambda name: -novel[name]))
    note = f"{CLAIM} Here, by the mean PSNR of novel views: {best}."
    return "\n".join(["### Image to 3D, models=toybox", "", *lines, "", note])


def write_sheet(file: Path, toys: Sequence[Toy], shown: Sequence[Tensor], title: str) -> None:
    """Two rows for each toy, the true views and the run's, from eight azimuths; JPEG."""
    around = sheet_cameras()
    pictures = [view for toy, run in zip(toys, shown, strict=True) for view in (*true_views(toy, around), *run)]
    sheet = Image.fromarray(grid([to_uint8(view) for view in pictures], 8))
    page = Image.new("RGB", (sheet.width, sheet.height + 14), "white")
    page.paste(sheet, (0, 14))
    ImageDraw.Draw(page).text((2, 1), f"{title}: true views above, the run below; the first column is given", "black")
    with atomic_path(file) as temporary:
        page.save(temporary, format="JPEG", quality=85)


def make_image_table(settings: ImageSettings, train: Callable[..., list[int]] = train_runs) -> int:
    """Make what is missing, print the table and keep it; the exit status, 1 where a run failed."""
    began = time.monotonic()
    toys = draw_toys(settings.objects, settings.draw)
    made: dict[tuple[str, int], Path] = {}  # by method and number of the toy
    missing, failed = [], []
    for number, toy in enumerate(toys):
        picture = settings.out_dir / "image_pictures" / f"toy{settings.draw}_{number:02d}.png"
        write_picture(toy, picture)
        for method in settings.methods:
            words = words_of(method, toy, picture, settings)
            config = config_of(method, words)
            made[method, number] = folder = folder_for(config)
            try:
                if not is_complete(folder, config, Plan(config["schedule"]).steps, compare):
                    missing.append(((method, number), words))
            except UserError as error:  # it was made with other settings
                complain(error)
                failed.append((method, number))
    print(f"{len(made)} runs, {len(made) - len(missing) - len(failed)} of them finished", flush=True)
    runs = [(f"image/{method}, toy {number}", words) for (method, number), words in missing]
    failed += [missing[number][0] for number in train(runs, settings.jobs, 1)]
    made = {key: folder for key, folder in made.items() if key not in failed}

    folder = settings.out_dir / "tables" / "toybox"
    clip, judge = toybox_clip().load("cpu"), load_judge()
    rows: dict[str, list[Scores]] = {}
    for method in settings.methods:
        shown: list[Tensor] = []
        whole = [number for number in range(len(toys)) if (method, number) in made]
        for number in whole:
            found, views = score(made[method, number], toys[number], clip, judge)
            rows.setdefault(METHODS[method], []).append(found)
            shown.append(views)
        chosen = whole[: settings.sheets]
        if chosen:
            sheet = folder / f"image_{method}.jpg"
            write_sheet(sheet, [toys[number] for number in chosen], shown[: len(chosen)], METHODS[method])
    if not rows:
        raise UserError("no run of the table is finished, so there is nothing to score")
    for toy in toys:
        front = true_views(toy, sheet_cameras())[:1]
        rows.setdefault(COPY, []).append(scores_of(toy, front, front.expand(NOVEL, -1, -1, -1), clip, judge))
    text = markdown(rows, settings)
    minutes = (time.monotonic() - began) / 60
    text += f"\n\n{len(toys)} toys, draw={settings.draw}, seed 0. {minutes:.1f} minutes for {len(missing)} runs and "
    text += f"the scores, {settings.jobs} runs at a time; {len(failed)} failed.\n"
    write_text(folder / "image.md", text)
    print(f"\n{text}")
    return 1 if failed else 0
