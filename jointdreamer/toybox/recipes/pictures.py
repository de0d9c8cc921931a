"""The rendered pictures that all recipes learn from, in a training folder."""

import json
import time
from pathlib import Path

from jointdreamer.errors import UserError
from jointdreamer.files import write_text
from jointdreamer.toybox import data
from jointdreamer.toybox.nerf_views import nerf_views
from jointdreamer.toybox.networks import EDITIONS, SHIPPED_EDITION

FLAT_SEED, RIG_SEED, NERF_SEED = 1, 2, 3
EDITION_FILE = "edition.json"


def edition_number(folder: Path) -> int:
    """Of the pictures in a training folder; the first, if it does not say."""
    file = folder / EDITION_FILE
    return int(json.loads(file.read_text())["edition"]) if file.exists() else 1


def make_data(folder: Path, n: int, n_rigs: int, edition: int = SHIPPED_EDITION) -> None:
    """Render the flat pictures (n), the rigs and the views of fitted NeRFs (of n / 200 toys) into `folder`.

    Raises UserError if there are pictures of another edition.
    """
    made = (folder / "flat").exists() or (folder / EDITION_FILE).exists()
    if made and edition_number(folder) != edition:
        raise UserError(
            f"{folder} holds pictures of edition {edition_number(folder)}, asked for {edition}: name another --folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / EDITION_FILE, json.dumps({"edition": edition}))
    for name, make, count, seed in (
        ("flat", data.flat_pictures, n, FLAT_SEED),
        ("rigs", data.rigs, n_rigs, RIG_SEED),
        ("nerf", nerf_views, max(1, n // 200), NERF_SEED),
    ):
        began = time.time()

        def progress(done: int, total: int, name: str = name, began: float = began) -> None:
            print(f"{name}: {done} of {total}, {time.time() - began:.0f} s", flush=True)

        if not (folder / name / "toys.json").exists():
            make(count, seed, progress, words=EDITIONS[edition].words).save(folder / name)


def missing_input(model: str, folder: Path) -> str | None:
    """`data`, if it has to be made before `model` can be trained."""
    pictures = ["flat", "rigs", *(["nerf"] if model == "judge" else [])]
    return None if all((folder / name / "toys.json").exists() for name in pictures) else "data"
