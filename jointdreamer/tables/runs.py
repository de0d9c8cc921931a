"""The runs of a table: which there are, which are missing, and making those, each a train.py of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointdreamer.comparison import compare
from jointdreamer.errors import one_line
from jointdreamer.project import ROOT
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
            for row in (row for row in table.rows if row.experiment):
                name = row.name(models)
                own = [f"models={models}", f"experiment={row.on(models)}", *row.words, f"prompt_file={prompt_file}"]
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


Runner = Callable[[Job], tuple[int, str]]  # the exit status and the last line of stderr


class Children:
    """Runs of train.py as children, which stop, saved, when this command is stopped.

    threads: of each, or None for as many as it likes.
    """

    def __init__(self, threads: int | None):
        self.environment = dict(os.environ)
        if threads:
            self.environment |= {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        self.alive: set[subprocess.Popen] = set()

    def __call__(self, job: Job) -> tuple[int, str]:
        child = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *job.words],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C beside our SIGTERM would be the second, which saves nothing
        )
        self.alive.add(child)
        try:
            _, errors = child.communicate()
        finally:
            self.alive.discard(child)
        return child.returncode, one_line((errors.strip().splitlines() or [""])[-1])

    def stop(self) -> None:
        """Ask all that are alive to save and stop."""
        for child in list(self.alive):
            with suppress(ProcessLookupError):
                child.terminate()


def make(jobs: Sequence[Job], run: Runner, parallel: int) -> list[Job]:
    """Run the jobs, `parallel` at a time, saying a line of each; those that failed, which do not stop the others."""
    failed: list[Job] = []

    def one(numbered: tuple[int, Job]) -> None:
        number, job = numbered
        began = time.monotonic()
        status, last = run(job)
        if status:
            failed.append(job)
        said = f"failed with status {status}: {last}" if status else f"made in {time.monotonic() - began:.0f} s"
        print(f"[{number}/{len(jobs)}] {job.name}, prompt {job.number}, seed {job.seed}: {said}", flush=True)

    with ThreadPoolExecutor(parallel) as pool:
        try:
            for _ in pool.map(one, enumerate(jobs, 1)):
                pass
        except BaseException:  # KeyboardInterrupt above all
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(run, Children):
                run.stop()
            raise
    return failed
