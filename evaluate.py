"""Finished runs to numbers and tables: python evaluate.py runs='runs/*/*/seed*'

Each object is rendered and looked at once; the same command again computes nothing anew. Config stops in this file.
"""

from jointdreamer.cli import main as cli

if __name__ == "__main__":
    cli.read_command("evaluate")  # answers --help and mistyped words before the imports below take seconds

import os
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from jointdreamer.arguments import Range
from jointdreamer.cli import settings
from jointdreamer.errors import UserError, one_line, printable
from jointdreamer.evaluation import summary
from jointdreamer.evaluation.measure import Instruments, caption_features, measure_all
from jointdreamer.evaluation.networks import clip_files, toybox_clip
from jointdreamer.evaluation.reference import folder_features, name_toys, toybox_features
from jointdreamer.evaluation.runs import find_runs, same_models
from jointdreamer.evaluation.statistics import METHOD
from jointdreamer.evaluation.table import markdown, runs_csv
from jointdreamer.files import to_json, write_text
from jointdreamer.kernels.waiting import spinning_while_alone
from jointdreamer.priors.prompts import read_prompts
from jointdreamer.project import CONF
from jointdreamer.reading import Unreadable, find, read_json, read_yaml


@dataclass(frozen=True)
class EvaluateConfig:
    """The config of evaluate.py."""

    runs: str
    captions: str
    reference: str
    fid: str
    out_dir: str
    views: Annotated[int, Range(1, 1000)]
    resolution: Annotated[int, Range(16, 2048)] | None
    confidence: Annotated[float, Range(0.5, 0.9999)]
    report: bool
    device: settings.Device


def evaluate(cfg: dict[str, Any]) -> int:
    """Measure the runs as the resolved config says and write the evaluation; returns the exit status."""
    if cfg["meshes"] is not None or cfg["pictures"] is not None:
        return score_objects(cfg)
    if cfg["study"] is not None:
        return add_up_study(cfg["study"].splitlines(), Path(cfg["out_dir"]))
    group_by = check(cfg)
    out_dir = Path(cfg["out_dir"])
    make_folder(out_dir)
    candidates, left_out = find_runs(cfg["runs"].splitlines())
    candidates, foreign = same_models(candidates)
    left_out += foreign
    tell(left_out)
    models = candidates[0].models
    kind, given = read_captions(cfg["captions"])
    instruments = pick_instruments(cfg, candidates[0])
    kept = Path(cfg["cache_dir"] or out_dir / ".cache")
    while True:
        runs, other, compared = summary.comparable_runs(candidates, given, group_by)
        # first: it can be a mistake, the rest takes long
        reference, against = pick_reference(cfg, runs, instruments, kept)
        with spinning_while_alone():
            looked = measure_all(runs, instruments, None if reference is None else reference.shape[1])
        measured = [one for one in looked if not isinstance(one, UserError)]
        if len(measured) == len(runs):
            break
        failed = {id(run): why for run, why in zip(runs, looked, strict=True) if isinstance(why, UserError)}
        # once more without them: the groups that are left may share other prompts
        bad = [{"folder": str(run.folder), "why": one_line(failed[id(run)])} for run in runs if id(run) in failed]
        tell(bad)
        left_out += bad
        candidates = [run for run in candidates if id(run) not in failed]
        if not candidates:
            raise next(iter(failed.values()))
    tell(other)
    left_out += other
    captions = summary.caption_set(runs, given)
    if len(captions) < 2:
        print("only one caption: there is nothing to retrieve, so no R-Precision", file=sys.stderr)
    texts = caption_features(captions, instruments, kept)

    rows = [summary.scores(run, seen, captions, texts, out_dir) for run, seen in zip(runs, measured, strict=True)]
    evaluation = {
        "version": summary.VERSION,
        "id": summary.digest(runs),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(cli.typed_command()),
        "compared": compared,
        "captions": {"kind": kind, "count": len(captions), "file": None if given is None else cfg["captions"]},
        "extractors": {**instruments.names, **comparable(instruments, models)},
        "views": instruments.n_views,
        "resolution": instruments.resolution,
        "reference": against,
        "confidence": cfg["confidence"],
        "intervals": METHOD,
        "group_by": group_by,
        "runs": rows,
        "left_out": left_out,
        "groups": summary.summarise(runs, rows, measured, group_by, cfg["confidence"], reference),
    }
    table = markdown(evaluation)
    keys = {key: [summary.text(run, key) for run in runs] for key in group_by}
    try:
        set_study_aside(out_dir, evaluation["id"])
        write_text(out_dir / "evaluation.json", to_json(evaluation, indent=2) + "\n")
        write_text(out_dir / "runs.csv", runs_csv(rows, keys))
        write_text(out_dir / "table.md", table)
        print(table)
        if cfg["report"]:
            from jointdreamer.evaluation import report

            report.write_report(evaluation, out_dir / "report")
    except OSError as error:
        raise cannot_write(out_dir, error) from error
    print(printable(out_dir))
    return 0


def score_objects(cfg: dict[str, Any]) -> int:
    """Score meshes, or folders of pictures, of any method: objects.json and objects.md in out_dir; the exit status."""
    from jointdreamer.classifier.views import ViewFolder
    from jointdreamer.evaluation import foreign

    given = [key for key in ("runs", "meshes", "pictures") if cfg[key] is not None]
    if len(given) > 1:
        raise UserError(
            f"{given[0]}= and {given[1]}= are both given: score one after the other, each with its out_dir="
        )
    settings.check({**cfg, "runs": "-"}, EvaluateConfig)
    _, captions = read_captions(cfg["captions"])
    if captions is None and cfg["truth"] is None:
        raise UserError(f"{given[0]}= wants captions=FILE, one a line in the order of the names, or truth=FOLDER")
    files = foreign.find_objects(cfg[given[0]].splitlines(), meshes=given[0] == "meshes")
    truth = None if cfg["truth"] is None else ViewFolder(cfg["truth"])
    out_dir = Path(cfg["out_dir"])
    make_folder(out_dir)
    toybox = cfg["clip"] == "toybox"
    network = toybox_clip() if toybox else clip_files(cfg["clip"] or paper_clip())
    resolution = cfg["resolution"] or (64 if toybox else 256)
    rows = foreign.score(files, captions, truth, network.load(settings.device_of(cfg)), cfg["views"], resolution)
    names = {"clip_score": "CLIP Score", "r_precision": "R-Precision", "r_at_5": "R@5", "psnr": "PSNR"}
    table = foreign.markdown(rows, {**names, "ssim": "SSIM", "clip_similarity": "CLIP similarity"}, cfg["confidence"])
    found = {"extractor": network.name, "views": cfg["views"], "resolution": resolution, "objects": rows}
    return keep(out_dir, "objects", found, table)


def paper_clip() -> Any:
    """Where the CLIP of papers lies: that of models=sd21."""
    return read_yaml(CONF / "models" / "sd21.yaml")["models"]["clip"]["source"]


def tell(left_out: list[dict[str, str]]) -> None:
    """Say what is left out, a line for each."""
    for one in left_out:
        print(one_line(f"left out: {one['folder']}: {one['why']}"), file=sys.stderr)


def make_folder(out_dir: Path) -> None:
    """Raises UserError where the evaluation cannot be written, before anything is measured."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out_dir).close()
    except OSError as error:
        raise cannot_write(out_dir, error) from error


def keep(out_dir: Path, name: str, found: dict[str, Any], table: str) -> int:
    """Print a table and keep it beside its numbers, NAME.md and NAME.json; the exit status. Raises UserError."""
    try:
        write_text(out_dir / f"{name}.json", to_json(found, indent=2) + "\n")
        write_text(out_dir / f"{name}.md", table)
    except OSError as error:
        raise cannot_write(out_dir, error) from error
    print(table)
    print(printable(out_dir))
    return 0


def cannot_write(out_dir: Path, error: OSError) -> UserError:
    """The error for a place where the evaluation cannot be written."""
    return UserError(f"cannot write in out_dir={out_dir} ({error}): choose another place")


def set_study_aside(out_dir: Path, about: str) -> None:
    """Give a study that was added up for other runs another name: beside this evaluation it would pass for its own."""
    try:
        study = read_json(out_dir / "study.json")
        of = str(study.get("evaluation")) if isinstance(study, dict) else ""
    except Unreadable as error:
        if error.answer == "absent":
            return
        of = ""
    if of == about:
        return
    name = f"study-{of if re.fullmatch('[0-9a-f]{1,64}', of) else 'other'}"
    for suffix in (".json", ".md"):
        if os.path.lexists(out_dir / f"study{suffix}"):
            os.replace(out_dir / f"study{suffix}", out_dir / f"{name}{suffix}")
    print(f"{printable(out_dir)}: the study there is of other runs: it is {name}.json now", file=sys.stderr)


def check(cfg: dict[str, Any]) -> list[str]:
    """Refuse what the config may not say; the keys to group by."""
    if cfg["runs"] is None or not cfg["runs"].strip():
        raise UserError("no runs: say which, runs='runs/*/*/seed*' (a glob of run folders)")
    settings.check(cfg, EvaluateConfig)
    group_by = cfg["group_by"]
    keys = [group_by] if isinstance(group_by, str) else group_by
    if not isinstance(keys, list) or not all(isinstance(key, str) and key for key in keys):
        raise UserError(f"group_by={group_by!r}: wanted keys of the runs' configs, e.g. group_by=[energy,seed]")
    return list(dict.fromkeys(keys))


def add_up_study(patterns: list[str], out_dir: Path) -> int:
    """What the raters of the report in `out_dir` say together: printed, and kept as study.json and study.md."""
    from jointdreamer.evaluation import report

    files = sorted({file for pattern in patterns for file in find(pattern) if not file.name.startswith(".")})
    if not files:
        raise UserError(f"study={' '.join(patterns)} matches nothing: wanted the files that the raters downloaded")
    try:
        evaluation = read_json(out_dir / "evaluation.json")
    except Unreadable as error:
        raise UserError(f"{error}: name the evaluation of this study, out_dir=...") from error
    together = report.aggregate_study(files, evaluation)
    tell([{"folder": one["file"], "why": one["why"]} for one in together.get("left_out", [])])
    table = report.study_table(together)
    return keep(out_dir, "study", together, table)


def read_captions(captions: str) -> tuple[str, list[str] | None]:
    """What kind of caption set is wanted, and its captions if they stand in a file."""
    return ("runs", None) if captions == "runs" else ("file", read_prompts(captions))


def pick_instruments(cfg: dict[str, Any], run: Any) -> Any:
    """The networks for these runs and what they look at; nothing is loaded yet."""
    source, toybox = cfg["clip"], run.models == "toybox"
    if toybox and source is not None:
        raise UserError("clip=...: toybox runs are scored by the toybox's own CLIP and judge; leave clip out")
    if not toybox and source is None and not (source := run.clip):
        raise UserError("the runs' config names no CLIP: say clip=openai/clip-vit-base-patch32, or a folder with it")
    fid = None if cfg["fid"] == "clip" else Path(cfg["fid"])
    if fid is not None and not fid.is_file():
        raise UserError(f"fid={fid}: no such file; wanted clip, or a TorchScript file inception-2015-12-05.pt")
    return Instruments(
        toybox_clip() if toybox else clip_files(source),
        fid,
        n_views=cfg["views"],
        resolution=cfg["resolution"] or (64 if toybox else 256),
        device=cfg["device"],
        cache=Path(cfg["cache_dir"]) if cfg["cache_dir"] else None,
    )


def pick_reference(cfg: dict[str, Any], runs: list[Any], instruments: Any, kept: Path) -> tuple[Any, str | None]:
    """FID's features of the reference and its name, or None twice."""
    wanted, config = cfg["reference"], runs[0].config
    prompts = sorted({run.prompt for run in runs})
    if wanted == "auto":
        wanted = "toybox" if instruments.clip_files.toybox and name_toys(prompts) else "none"
    if wanted == "none":
        return None, None
    background = config["background"]["eval_color"]
    if wanted == "toybox":
        return toybox_features(prompts, settings.orbit(config["output"]), background, instruments, kept)
    return folder_features(Path(wanted), background, instruments, kept)


def comparable(instruments: Any, models: str) -> dict[str, Any]:
    """Whether these scores may stand beside those of papers, in one word and in one sentence."""
    if models == "toybox":
        return {
            "comparable": False,
            "note": "Toybox networks, trained on the toybox's pictures: the numbers compare toybox runs with each other"
            " and are not comparable with CLIP ViT-B/32 scores, FID or Janus rates of papers.",
        }
    original = instruments.clip_files.title == "CLIP ViT-B/32"
    fid = "" if instruments.fid_file else " FID here is of CLIP's features, not of Inception's."
    return {
        "comparable": original,
        "note": ("CLIP score and R-Precision as papers have them, for the same captions." if original else
                 "Another CLIP than ViT-B/32: not comparable with the scores of papers.")
        + fid + " The Janus rate is an automatic estimate; the human study counts.",
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.main("evaluate", evaluate))
