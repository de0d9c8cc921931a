"""The runs of a table: which there are, and which are missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointdreamer.comparison import compare
from jointdreamer.runs.folder import is_complete, run_path
from jointdreamer.schedules import Plan
from jointdreamer.tables.definitions import Row, Table


@dataclass(frozen=True)
class Job:
    """One run of train.py."""

    row: Row
    name: str  # of the run, as in its config
    number: int  # of the prompt in its file, from 0
    prompt: str
    seed: int
    folder: Path
    words: tuple[str, ...]  # for train.py

    @property
    def label(self) -> str:
        return f"{self.name}, prompt {self.number}, seed {self.seed}"

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").exists()


def plan_jobs(
    table: Table,
    models: str,
    prompts: Sequence[str],
    prompt_file: Path,
    seeds: Sequence[int],
    out_dir: Path,
    words: Sequence[str] = (),
) -> list[Job]:
    """Every run that the table reads, seed by seed and prompt by prompt, so that an unfinished table is a fair one.

    prompts: the lines of `prompt_file`, where one that is there twice counts once. words: further ones for train.py.
    """
    jobs = []
    for seed in seeds:
        for number, prompt in enumerate(prompts):
            if prompt in prompts[:number]:
                continue
            for row in (row for row in table.rows if row.on(models)):
                name = row.name(models)
                own = [*row.overrides(models), f"prompt_file={prompt_file}"]
                own += [f"prompt_id={number}", f"seed={seed}", f"out_dir={out_dir}", *words]
                jobs.append(Job(row, name, number, prompt, seed, run_path(out_dir, name, prompt, seed), tuple(own)))
    return jobs


def is_finished(job: Job, config: Mapping[str, Any]) -> bool:
    """Whether the job's folder holds its result. config: as train.py resolves it for the job's row.

    Raises UserError if what lies there was made with other settings.
    """
    own = {key: value for key, value in config.items() if key not in ("prompt_file", "prompt_id")}
    own |= {"prompt": job.prompt, "seed": job.seed, "name": job.name}
    return is_complete(job.folder, own, Plan(config["schedule"]).steps, compare)
