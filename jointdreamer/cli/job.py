"""One job: the task of a script on one config, in this process or in one that a launcher started."""

import contextlib
import gc
import importlib.util
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from jointdreamer.cli.command_line import own_words, settle_name, typed
from jointdreamer.cli.messages import complain, speaks
from jointdreamer.errors import UserError, one_line
from jointdreamer.runs.signals import Stop, hand_on

SPAWN = "jointdreamer.cli.spawn"


class Job:
    """What Hydra calls with each config. A launcher may pickle it and call it on another machine.

    task: takes the resolved config, returns the exit status. In a sweep (multirun) the outcome goes to its folder, and
    a signal stops the sweep.
    """

    current: ClassVar["Job | None"] = None  # what this process gave Hydra

    def __init__(self, task: Callable[[dict[str, Any]], int], multirun: bool):
        self.task, self.multirun = task, multirun
        self.typed, self.cwd = list(typed), os.getcwd()
        self.sweep: Any = None
        self.status = 0  # the worst so far, of the jobs in this process
        self.away = False  # in a process that a launcher started

    def __call__(self, cfg: Any) -> float:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        settle_name(cfg, HydraConfig.get().overrides.task)
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        if not self.multirun:
            status, _ = self.run(plain)
            return status

        from jointdreamer.cli.sweeps import Outcome

        Job.current = self  # on the other side of a pickle too
        hydra = HydraConfig.get()
        sweep = self.sweep = self.sweep or begin_sweep(Path(hydra.sweep.dir))
        number = hydra.job.num
        if self.away:
            _leave_terminal(self.cwd)
            if sweep.stop_file.exists():
                sweep.write(number, Outcome(130))
                return 130
            sweep.mark_started(number)
        typed[:] = self.typed
        typed[1:] = own_words([*hydra.overrides.hydra, *hydra.overrides.task])
        try:
            with _stopped_by(sweep.stop_file) if self.away else contextlib.nullcontext():
                ranks = ranks_of(hydra.launcher) if self.away else 1
                status, error = self.run(plain) if ranks == 1 else self.run_ranks(ranks)
        except KeyboardInterrupt:
            sweep.write(number, Outcome(130, folder_of(plain)))
            if not self.away:
                raise
            return 130
        sweep.write(number, Outcome(status, folder_of(plain), error))
        if status > 128:  # stopped by a signal: so is the sweep, and a launcher elsewhere may requeue the job
            if not self.away:
                raise KeyboardInterrupt
            try:
                hand_on(status - 128)
            except Exception as error:  # whatever a launcher raises; what became of the job is written already
                print(f"not started again: {one_line(error)}", file=sys.stderr)
        return returned(plain, status, hydra)

    def run(self, plain: dict[str, Any]) -> tuple[int, str | None]:
        """The task's exit status, and what went wrong as one line."""
        said = None
        if self.multirun:
            gc.collect()  # the networks of the job before this one hang in cycles: nobody else would free them in time
        try:
            status = self.task(with_prompt(plain))
        except UserError as error:
            said, status = one_line(error), complain(error)
        except Exception as error:  # a fault of ours
            if speaks():
                traceback.print_exc()
            said, status = f"{type(error).__name__}: {one_line(error)}"[:500], 1
        self.status = max(self.status, status)
        return status, said

    def run_ranks(self, ranks: int) -> tuple[int, str | None]:
        """`run` in several processes on this machine, which a launcher gave as many GPUs."""
        from jointdreamer.cli.spawn import spawn

        status = spawn(ranks, [task_file(self.task), *typed[1:]])
        said = (
            None if status in (0, *range(129, 256)) else f"it ended with status {status}: see the launcher's own logs"
        )
        self.status = max(self.status, status)
        return status, said

    def finish(self, interrupted: bool = False) -> int:
        """Sum the sweep up on stdout, if there was one; the exit status of the command."""
        status = self.status
        if self.sweep is not None and self.sweep.jobs:
            if interrupted:
                self.sweep.stop_file.touch()
                if self.sweep.unfinished():
                    print("waiting for the running jobs to save; once more leaves them alone", file=sys.stderr)
                try:
                    self.sweep.wait_for_started(seconds=300)
                except KeyboardInterrupt:
                    print("not waiting for the jobs that are left", file=sys.stderr)
            print(*self.sweep.summary(), sep="\n")
            status = max(status, self.sweep.status)
        return max(status, 130) if interrupted and status <= 128 else status

    # Functions of a script are pickled by the script's file: on the other side it is not __main__

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "away": True, "sweep": self.sweep}
        if (file := task_file(self.task)) and "<" not in self.task.__qualname__:
            state["task"] = (file, self.task.__qualname__)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.task, tuple):
            file, name = self.task
            spec = importlib.util.spec_from_file_location(Path(file).stem, file)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self.task = getattr(module, name)


def returned(plain: dict[str, Any], status: int, hydra: Any) -> float:
    """What a sweeper gets of a job: the exit status, or with `objective` its number; NaN without one.

    Raises RuntimeError where a sweeper that optimises (not ours, by hydra.sweeper) waits for the number: to it that is
    a trial that failed.
    """
    if plain.get("objective") is None:
        return status
    failed = f"the run ended with status {status}"
    if status == 0 and (folder := folder_of(plain)) is not None:
        from jointdreamer.cli.objective import objective_of

        try:
            return objective_of(plain, Path(folder))
        except UserError as error:
            failed = one_line(error)
            complain(error)
    if not hydra.sweeper._target_.endswith(".RunSweeper"):
        raise RuntimeError(failed)
    return math.nan


def task_file(task: Callable[..., Any]) -> str:
    """The script of a task; empty for what is no function of one."""
    code = getattr(task, "__code__", None)
    return str(Path(code.co_filename).absolute()) if code is not None else ""


def ranks_of(launcher: Any) -> int:
    """How many ranks share a job: as many as a SLURM or Ray launcher gives it GPUs."""
    from omegaconf import OmegaConf

    given = OmegaConf.select(launcher, "gpus_per_node") or OmegaConf.select(launcher, "ray.remote.num_gpus")
    return max(1, given) if isinstance(given, int) else 1


def begin_sweep(folder: Path) -> Any:
    """The Sweep in `folder` that this process's job belongs to."""
    from jointdreamer.cli.sweeps import Sweep

    if Job.current is None:
        return Sweep(folder.absolute())
    if Job.current.sweep is None:
        Job.current.sweep = Sweep(folder.absolute())
    return Job.current.sweep


def _leave_terminal(cwd: str) -> None:
    """In a launcher's process: no Ctrl-C of the terminal, it comes by the stop file; the folder of the command."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    with contextlib.suppress(OSError):
        os.chdir(cwd)


@contextlib.contextmanager
def _stopped_by(file: Path) -> Iterator[None]:
    """Send SIGTERM to this process, once, when `file` is there and the run listens: it saves and stops."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            # before its loop, the launcher's own handler would swallow the signal, or end the process without a word;
            # a second signal would abort a run that is about to save
            listener = signal.getsignal(signal.SIGTERM)
            if isinstance(listener, Stop) and listener.requested is None and file.exists():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def with_prompt(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config with its prompt found: given, or line `prompt_id` of `prompt_file`.

    With a given image the prompt may be empty, and what is in its files is noted, so that a run notices another one.
    Names of files become texts, those of digits too.

    Raises UserError without a prompt, with an empty one, with both, or for a line that is not there.
    """
    if "prompt_file" not in cfg:
        return cfg
    cfg |= {key: str(cfg[key]) for key in ("prompt_file", "image", "mask") if cfg.get(key) is not None}
    prompt, file, number = cfg["prompt"], cfg.pop("prompt_file"), cfg.pop("prompt_id")
    if file is not None:
        if prompt:
            raise UserError("prompt and prompt_file are both given: give one of them")
        from jointdreamer.priors.prompts import (
            read_prompts,  # and with it torch: the other mistakes are answered sooner
        )

        lines = read_prompts(file)
        if not isinstance(number, int) or not 0 <= number < len(lines):
            came = "no prompt_id" if number is None else f"prompt_id={number}"
            raise UserError(f"{came}: {file} has the lines 0 to {len(lines) - 1}")
        prompt = lines[number]
    elif number is not None:
        raise UserError(f"prompt_id={number} without a prompt_file: name the file, prompt_file=prompts/toybox16.txt")
    blank = prompt is None or not str(prompt).strip()
    if cfg.get("image") is not None:
        from jointdreamer.reference import content

        cfg["image_sha256"] = content(cfg["image"], cfg["mask"])
    elif cfg.get("mask") is not None:
        raise UserError(f"mask={cfg['mask']} without a picture: give it as well, image=FILE")
    elif blank and not _is_told_picture(cfg["distillation"]["terms"]):  # else the picture is what is missing first
        raise UserError('no prompt: say what to make, e.g. prompt="a red robot with a blue hat"')
    cfg["prompt"] = "" if blank else str(prompt)
    return cfg


def _is_told_picture(terms: Mapping[str, Any]) -> bool:
    """Whether a term, by its names alone, is told a picture: to know of classes too would take seconds of imports."""
    given = [one for one in terms.values() if isinstance(one, Mapping)]
    return any(one.get("kind") == "reference" or one.get("prior") in ("novel_view", "imagedream") for one in given)


def folder_of(plain: Mapping[str, Any]) -> str | None:
    """The run folder of a config; None if it has none."""
    if not {"out_dir", "name", "prompt", "seed"} <= plain.keys():
        return None
    from jointdreamer.runs.folder import folder_for

    try:
        return str(folder_for({**plain, "name": str(plain["name"])}))
    except (UserError, TypeError, AttributeError):  # the task says what is wrong with them
        return None


def is_complete(plain: dict[str, Any], folder: str | None) -> bool:
    """Whether `train` would find nothing to do, without starting it; False where it would complain."""
    if folder is None or not Path(folder, "result.json").exists():
        return False
    from jointdreamer.comparison import compare
    from jointdreamer.runs import folder as run
    from jointdreamer.schedules import Plan

    try:
        return run.is_complete(Path(folder), plain, Plan(plain["schedule"]).steps, compare)
    except UserError:
        return False
