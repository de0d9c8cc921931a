"""Hydra's sweeper and launcher for runs: each job a folder of its own, and processes on this machine.

Hydra takes plugins from the package `hydra_plugins` only, and finds this one wherever the repository is on the path.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from jointdreamer.cli.command_line import own_words, settle_name
from jointdreamer.cli.job import SPAWN, begin_sweep, folder_of, is_complete, returned, with_prompt
from jointdreamer.cli.messages import complain
from jointdreamer.errors import UserError, one_line
from jointdreamer.project import CONF

FOLDER_KEYS = ("out_dir", "name", "prompt", "prompt_file", "prompt_id", "seed")  # what the run folder is made of


class RunSweeper(BasicSweeper):
    """Hydra's own sweeper, which also refuses two jobs in one run folder before any of them starts."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        begin_sweep(Path(self.config.hydra.sweep.dir))
        return super().sweep(arguments)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        assert self.hydra_context is not None and self.config is not None
        taken: dict[tuple, int] = {}
        for number, words in enumerate(batch):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
            HydraConfig.instance().set_config(config)  # `name` asks it
            settle_name(config, config.hydra.overrides.task)
            where = tuple(str(OmegaConf.select(config, key)) for key in FOLDER_KEYS)
            if (first := taken.setdefault(where, number)) != number:
                raise UserError(_same_folder(first, number, batch[first], words))
        begin_sweep(Path(self.config.hydra.sweep.dir)).jobs += [list(words) for words in batch]


def _same_folder(first: int, second: int, one: Sequence[str], other: Sequence[str]) -> str:
    differing = [word.partition("=")[0].lstrip("+~") for word in other if word not in one]
    if not differing:
        return f"jobs {first} and {second} of the sweep are the same: name each value once"
    parts = [f"${{hydra:runtime.choices.{key}}}" if (CONF / key).is_dir() else f"${{{key}}}" for key in differing]
    return (
        f"jobs {first} and {second} of the sweep differ in {', '.join(differing)} and would share one run folder: "
        f"give each a name, e.g. 'name={'_'.join(['${energy.name}', *parts])}'"
    )


class LocalLauncher(Launcher):
    """Each job a process on this machine, `python train.py` with its settings: one on each GPU, or share of the cores.

    n_jobs: how many at a time; `auto` is one on each GPU, without GPUs one on each core. threads: CPU threads of each;
    `auto` divides the cores. ranks: processes of each job, which share its rigs, each on a GPU of its own.
    """

    def __init__(self, n_jobs: int | str = "auto", threads: int | str = "auto", ranks: int = 1):
        self.n_jobs, self.threads, self.ranks = n_jobs, threads, ranks
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.task_function, self.hydra_context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        import torch  # here, so that Hydra looks for its plugins without it

        from jointdreamer.cli import sweeps
        from jointdreamer.machine import free_bytes

        assert self.config is not None and self.hydra_context is not None
        setup_globals()
        sweep = begin_sweep(Path(self.config.hydra.sweep.dir))
        if len(sweep.jobs) < initial_job_idx + len(job_overrides):  # a sweeper that is not ours
            sweep.jobs += [list(words) for words in job_overrides]
        commands, folders, configs, on_cpu = {}, {}, {}, True
        for number, words in enumerate(job_overrides, initial_job_idx):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
            HydraConfig.instance().set_config(config)
            settle_name(config, config.hydra.overrides.task)
            plain: Any = OmegaConf.to_container(_without_hydra(config), resolve=True)
            configs[number] = plain
            try:
                plain = configs[number] = with_prompt(plain)
            except UserError as error:  # no process for that
                sweep.write(number, sweeps.Outcome(complain(error), error=one_line(error)))
                continue
            folder = folder_of(plain)
            folders[number] = folder
            if is_complete(plain, folder):
                sweep.write(number, sweeps.Outcome(0, folder))
                continue
            on_cpu = on_cpu and plain.get("device") == "cpu"
            own = own_words([*self.config.hydra.overrides.hydra, *words])
            several = ["-m", SPAWN, str(self.ranks)] if self.ranks != 1 else []
            commands[number] = [sys.executable, *several, sys.argv[0], *own]
        gpus = [] if on_cpu else sweeps.visible_gpus()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = self.threads
        if threads == "auto" and os.environ.get("OMP_NUM_THREADS", "").isdigit():
            threads = int(os.environ["OMP_NUM_THREADS"])  # as a single run would take it
        free_gb = free_bytes(torch.device("cpu")) / 1e9
        places = sweeps.slots(self.n_jobs, threads, len(commands), gpus, cores, free_gb, self.ranks)
        if sweeps.run_jobs(commands, places, sweep, folders) is not None:
            raise KeyboardInterrupt
        return [
            _job_return(words, sweep.outcomes()[number], configs[number], self.config.hydra)
            for number, words in enumerate(job_overrides, initial_job_idx)
        ]


def _without_hydra(config: DictConfig) -> DictConfig:
    copy = config.copy()
    OmegaConf.set_struct(copy, False)
    del copy["hydra"]
    return copy


def _job_return(words: Sequence[str], outcome: Any, plain: dict[str, Any], hydra: Any) -> JobReturn:
    done = JobReturn(overrides=words, status=JobStatus.COMPLETED)  # an exit status is no exception for Hydra
    try:
        done.return_value = returned(plain, outcome.status, hydra)
    except RuntimeError as error:  # of a sweeper that optimises, and asks for it
        done.status, done.return_value = JobStatus.FAILED, error
    return done
