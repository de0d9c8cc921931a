"""The paper's tables and figures: python -m jointdreamer.tables TABLE [KEY=VALUE ...]

TABLE is table1, table2, table3, mesh, distillation, fig8 or fig10; or image, image to 3D against true views, which has
settings of its own: python -m jointdreamer.tables image --help

Makes the runs that are missing, each one of train.py in a process of its own, scores them with evaluate.py, and prints
the table with the paper's numbers beside ours. The same command again goes on where it was and skips what is finished.

    models=toybox        toybox | sd21
    prompts=FILE         one prompt a line; the toybox has its own sixteen
    captions=FILE        what R-Precision chooses among; by default the prompts, for the toybox's sixteen 153
    seeds=0,1
    weights=0.1,0.3,1,3  of MVDream in Fig. 10's sums
    methods=vsd,csd      of the table of distillations, by their names in conf/distillation/; all of them by default
    jobs=2               runs at a time, with one thread each for the toybox
    out_dir=runs         for the runs; the tables go to out_dir/tables/MODELS/
    report=false         whether evaluate.py also writes its report, in out_dir/tables/MODELS/TABLE/all/report/

Any other KEY=VALUE is for train.py, e.g. output.views=8 for a short turntable.
"""

import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointdreamer.cli import main as cli
from jointdreamer.cli.messages import complain
from jointdreamer.errors import UserError
from jointdreamer.project import ROOT
from jointdreamer.runs.processes import train_runs
from jointdreamer.runs.signals import ENDING
from jointdreamer.tables.definitions import METHODS, Row, read_methods, tables
from jointdreamer.terminal import safe_output

PROMPTS = ROOT / "prompts"
TOYBOX_PROMPTS, TOYBOX_CAPTIONS = PROMPTS / "toybox16.txt", PROMPTS / "toybox153.txt"
OURS = ("prompt", "prompt_file", "prompt_id", "seed", "experiment", "energy", "distillation", "name")


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    table: str
    models: str = "toybox"
    prompts: Path = TOYBOX_PROMPTS
    captions: Path | None = None
    seeds: tuple[int, ...] = (0, 1)
    weights: tuple[str, ...] = ("0.1", "0.3", "1", "3")
    methods: tuple[str, ...] = tuple(METHODS)
    jobs: int = 2
    out_dir: Path = Path("runs")
    report: bool = False
    words: tuple[str, ...] = ()  # for train.py

    @property
    def caption_set(self) -> Path:
        """What R-Precision chooses among: the toybox's own sixteen prompts are the first of its 153 captions."""
        return self.captions or (TOYBOX_CAPTIONS if self.prompts.resolve() == TOYBOX_PROMPTS else self.prompts)


def read_words(words: Sequence[str]) -> Settings:
    """The settings that a command line means. Raises UserError, one line, for what it cannot mean."""
    if not words or words[0] not in tables():
        raise UserError(
            f"wanted one of {', '.join(tables())}, image, got {words[0] if words else 'nothing'}; see --help"
        )
    given: dict[str, Any] = {}
    further: list[str] = []
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word!r}: wanted KEY=VALUE after the table's name; see --help")
        if key in OURS:
            raise UserError(f"{word}: the table says which {key} to run; it takes prompts=FILE and seeds=0,1")
        if key in READERS:
            given[key] = READERS[key](key, value)
        else:
            further.append(word)
    if given.get("models", "toybox") != "toybox" and "prompts" not in given:
        raise UserError(f"models={given['models']}: name the captions, prompts=FILE (the paper's are not bundled)")
    return Settings(words[0], **given, words=tuple(further))


def _whole(key: str, text: str, low: int = 0) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < low:
        raise UserError(f"{key}: wanted a whole number from {low} up, got {text!r}")
    return int(text)


def _weight(key: str, text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"{key}: wanted numbers above 0, separated by commas, got {text!r}")
    return f"{value:g}"  # as the run's name will have it


def _truth(key: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise UserError(f"{key}={text}: choose true or false")
    return text == "true"


READERS = {
    "models": lambda key, text: text,
    "prompts": lambda key, text: Path(text),
    "captions": lambda key, text: Path(text),
    "out_dir": lambda key, text: Path(text),
    "seeds": lambda key, text: tuple(dict.fromkeys(_whole(key, one) for one in text.split(","))),
    "weights": lambda key, text: tuple(dict.fromkeys(_weight(key, one) for one in text.split(","))),
    "methods": read_methods,
    "jobs": lambda key, text: _whole(key, text, 1),
    "report": _truth,
}


def read_image_words(words: Sequence[str]) -> Any:
    """The settings of `tables image`. Raises UserError, one line."""
    from jointdreamer.tables.image import METHODS as IMAGE_METHODS
    from jointdreamer.tables.image import ImageSettings

    def methods(key: str, text: str) -> tuple[str, ...]:
        named = tuple(dict.fromkeys(text.split(",")))
        if wrong := [name for name in named if name not in IMAGE_METHODS]:
            raise UserError(f"{key}: choose among {', '.join(IMAGE_METHODS)}, got {wrong[0]!r}")
        return named

    readers = {
        "objects": lambda key, text: _whole(key, text, 1),
        "draw": _whole,
        "methods": methods,
        "sheets": _whole,
        "jobs": lambda key, text: _whole(key, text, 1),
        "out_dir": lambda key, text: Path(text),
    }
    given: dict[str, Any] = {}
    further: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word!r}: wanted KEY=VALUE after the table's name; see --help")
        if key in (*OURS, "models", "image", "mask", "image_camera", "image_fill") and (key, value) != (
            "models",
            "toybox",
        ):
            raise UserError(f"{word}: the table says which {key} to run, of the toybox, whose true views are known")
        if key in readers:
            given[key] = readers[key](key, value)
        elif key != "models":
            further.append(word)
    return ImageSettings(**given, words=tuple(further))


def resolve(row: Row, settings: Settings) -> dict[str, Any]:
    """The config of a row's runs, as train.py gets it. Raises UserError for a word that train.py does not take."""
    models = settings.models
    return cli.composed("config", [*row.overrides(models), *settings.words], row.models_on(models))


def make_table(settings: Settings, train: Callable[..., list[int]] = train_runs) -> int:
    """Make what is missing, print the table and keep it as Markdown; the exit status, 1 where a run failed.

    train: runs train.py for the runs that are missing.
    """
    from jointdreamer.files import write_text
    from jointdreamer.priors.prompts import read_prompts
    from jointdreamer.tables.figures import figure8, figure10
    from jointdreamer.tables.runs import is_finished, plan_jobs
    from jointdreamer.tables.scores import markdown, score

    began, models = time.monotonic(), settings.models
    table = tables(settings.weights, settings.methods)[settings.table]
    prompts = read_prompts(settings.prompts)
    captions = read_prompts(settings.caption_set)  # evaluate.py would say it after all the runs
    if lacking := next((prompt for prompt in prompts if prompt not in captions), None):
        raise UserError(f"captions={settings.caption_set} lacks the prompt {lacking!r}: add it, a caption a line")
    configs = {row.label: resolve(row, settings) for row in table.rows if row.on(models)}
    jobs = plan_jobs(table, models, prompts, settings.prompts, settings.seeds, settings.out_dir, settings.words)
    missing, failed = [], []
    for job in jobs:
        try:
            if not is_finished(job, configs[job.row.label]):
                missing.append(job)
        except UserError as error:
            complain(error)
            failed.append(job)
    print(f"{len(jobs)} runs, {len(jobs) - len(missing) - len(failed)} of them finished", flush=True)
    runs = [(job.label, job.words) for job in missing]
    failed += [missing[number] for number in train(runs, settings.jobs, 1 if models == "toybox" else None)]
    made = [job for job in jobs if job not in failed]

    folder = settings.out_dir / "tables" / models
    if table.columns:
        found = score(made, table, models, settings.caption_set, folder / settings.table, settings.report)
        text = markdown(table, models, found)
        if settings.table == "fig10":
            text += f" {figure10(table, models, found['all'], folder / 'fig10.png')}"
    else:
        text = figure8(table, models, made, folder / "fig8.png")
    minutes = (time.monotonic() - began) / 60
    text += f"\n\n{len(set(prompts))} prompts, seeds {', '.join(map(str, settings.seeds))}. {minutes:.1f} minutes for "
    text += f"{len(missing)} runs and the scores, {settings.jobs} runs at a time; {len(failed)} failed.\n"
    write_text(folder / f"{settings.table}.md", text)
    print(f"\n{text}")
    return 1 if failed else 0


def main(words: Sequence[str]) -> int:
    """The exit status: 0 for a whole table, 1 where a run failed, 2 for a mistake, 128 + the signal when stopped."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(number)

    safe_output()
    if {"-h", "--help"} & set(words):
        if words[0] == "image":
            from jointdreamer.tables import image

            print(image.__doc__)
        else:
            print(__doc__)
        return 0
    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)
    try:
        if words and words[0] == "image":
            from jointdreamer.tables.image import make_image_table

            return make_image_table(read_image_words(words[1:]))
        return make_table(read_words(words))
    except UserError as error:
        return complain(error)
    except KeyboardInterrupt as error:
        print("interrupted: what was under way is saved, the same command goes on", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
