"""What evaluate.py says of a table's runs, and the table that it makes, the paper's numbers beside ours."""

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jointdreamer.errors import UserError, one_line
from jointdreamer.evaluation.table import number_cell
from jointdreamer.project import ROOT
from jointdreamer.reading import ABSENT as ABSENT_FILE
from jointdreamer.reading import DAMAGED, Unreadable, is_number, read_json
from jointdreamer.tables.definitions import HELD_OUT, MEASURES, PREFERRED, RELATIVE, TOYBOX_ONLY, Table
from jointdreamer.tables.runs import Job
from jointdreamer.toybox.world import is_held_out_combination, parse_caption

ABSENT = "-"
Groups = Mapping[str, Mapping[str, Any]]  # name of the runs -> its group of evaluation.json


def score(
    jobs: Sequence[Job], table: Table, models: str, captions: Path, folder: Path, report: bool
) -> dict[str, Groups]:
    """Groups of the finished runs: "all", and on the toybox, where the table asks for it, those "held out".

    captions: the file of all prompts, among which R-Precision chooses. folder: gets what evaluate.py writes.
    Raises UserError if no run is finished or evaluate.py fails (it has said why).
    """
    done = [job for job in jobs if job.done]
    if not done:
        raise UserError("no run of the table is finished, so there is nothing to score")
    found = {"all": evaluate([job.folder for job in done], captions, folder / "all", report)}
    if HELD_OUT in table.columns and models == "toybox":
        held = [job.folder for job in done if is_held_out(job.prompt)]
        found["held out"] = evaluate(held, captions, folder / "held_out", False) if held else {}
    return found


def evaluate(folders: Sequence[Path], captions: Path, out_dir: Path, report: bool) -> Groups:
    """The groups that evaluate.py finds in these run folders; it computes nothing twice."""
    words = [*(f"runs={folder}" for folder in dict.fromkeys(folders)), f"captions={captions}", f"out_dir={out_dir}"]
    command = [sys.executable, str(ROOT / "evaluate.py"), *words, f"report={str(report).lower()}"]
    status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if status:
        raise UserError(
            f"evaluate.py ended with status {status}: the runs are made, their scores are missing; see above"
        )
    return read_groups(out_dir / "evaluation.json")


def read_groups(file: Path) -> Groups:
    """The groups of an evaluation.json by the `name` of their runs, with what people prefer if a study.json says so.

    study.json is what `evaluate.py study=FILES out_dir=FOLDER` leaves beside it. One that is about other runs, or that
    cannot be read, is named and left out.
    """
    evaluation = read_json(file)
    groups = {group["keys"]["method"]: dict(group) for group in evaluation["groups"]}
    study = file.with_name("study.json")
    try:
        for name, share in read_shares(study, evaluation["id"]).items():
            if name in groups:
                groups[name][PREFERRED] = share
    except UserError as error:
        if not (isinstance(error, Unreadable) and error.answer == ABSENT_FILE):
            print(one_line(f"left out: {error}"), file=sys.stderr)
    return groups


def read_shares(study: Path, about: str) -> dict[str, dict[str, float]]:
    """How often raters preferred each method, in percent with its interval, of the runs of one evaluation.

    Raises UserError.
    """
    said = read_json(study)
    if not isinstance(said, dict) or not isinstance(said.get("methods"), list):
        raise Unreadable(study, DAMAGED, "it has no methods: add the study up again, or delete it")
    if said.get("evaluation") != about:
        raise UserError(f"{study}: it is about other runs than the evaluation beside it")
    shares = {}
    for method in said["methods"]:
        one = method.get("preferred") if isinstance(method, dict) else None
        numbers = (
            [one.get(name, math.nan) for name in ("share", "low", "high")] if isinstance(one, dict) else [math.nan]
        )
        if numbers == [None] * 3:  # nobody was asked
            continue
        if not all(is_number(number, 0, 1) for number in numbers) or not isinstance(method.get("method"), str):
            raise Unreadable(study, DAMAGED, "add the study up again, or delete it")
        percents = [100 * float(number) for number in numbers if number is not None]
        shares[method["method"]] = dict(zip(("mean", "low", "high"), percents, strict=True))
    return shares


def is_held_out(prompt: str) -> bool:
    """Whether nothing in the toybox was trained on the prompt's combination of words."""
    toy = parse_caption(prompt)
    return toy is not None and is_held_out_combination(toy)


def markdown(table: Table, models: str, found: Mapping[str, Groups]) -> str:
    """The table. Each column is ours, a mean with its interval, and then the paper's, if it has one."""
    columns = [column for column in table.columns if models == "toybox" or column not in TOYBOX_ONLY]
    with_paper = {column for column in columns if any(column in row.paper for row in table.rows)}
    head = ["", "runs"]
    for column in columns:
        head += [column, "paper"] if column in with_paper else [column]
    lines = [f"### {table.title}, models={models}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    first = found["all"].get(table.rows[0].name(models), {})
    for row in table.rows:
        group = found["all"].get(row.name(models), {})
        cells = [row.label, str(group.get("runs", ABSENT))]
        for column in columns:
            key, decimals = MEASURES[column]
            value = (found.get("held out", {}).get(row.name(models), {}) if column == HELD_OUT else group).get(key)
            if column in RELATIVE:
                base = first.get(key)
                cells.append(number_cell(value, decimals, base["mean"]) if base else ABSENT)
            else:
                cells.append(number_cell(value, decimals))
            cells += [row.paper.get(column, ABSENT)] if column in with_paper else []
        lines.append(f"| {' | '.join(cells)} |")
    toybox = " The toybox's numbers compare with each other, not with the paper's." if models == "toybox" else ""
    return "\n".join([*lines, "", table.note + toybox])
