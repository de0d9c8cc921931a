"""What the scripts share: Hydra composes the config, and a mistake in it costs one line and exit status 2."""

import atexit
import gc
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

from jointdreamer.cli.command_line import complete, config_folders, is_multirun, split_words, typed, word_of
from jointdreamer.cli.job import Job
from jointdreamer.cli.messages import complain, explain
from jointdreamer.cli.words import quoted
from jointdreamer.errors import UserError
from jointdreamer.project import CONF
from jointdreamer.terminal import safe_output, use_utf8

LARGE = ("sd21", "sdxl", "sd35", "if")  # models that are made for a GPU
_read: dict[str, Any] | None = None  # the config that `read_command` composed


def read_command(config_name: str) -> None:
    """Compose the config of a single run for the `main` to come, or end here: after --help, or a word with a mistake.

    For the top of a script, before imports that take seconds. A multirun is composed by `main`.
    """
    global _read
    if is_multirun(sys.argv[1:]):
        return
    found: list[dict[str, Any]] = []
    status = main(config_name, lambda cfg: found.append(cfg) or 0)
    if not found:
        sys.exit(status)
    _read = found[0]


def main(config_name: str, task: Callable[[dict[str, Any]], int]) -> int:
    """Run `task` on the config that the command line composes, or on each config of a multirun; the exit status.

    A UserError, or a word that Hydra does not take, is one line on stderr and status 2. Anything else keeps its
    traceback (status 1). In a multirun a failed job does not stop the others; at its end a line for each job says what
    became of it, and the status is the worst of all.
    """
    global _read
    if _read is not None and Job.current is not None:
        cfg, _read, job = _read, None, Job.current
        job.task = task
        return _guarded(config_name, job, lambda: job.run(cfg))
    use_utf8()
    safe_output()
    import hydra
    from hydra._internal.hydra import Hydra

    atexit.register(gc.freeze)  # what is left dies with the process: to look for cycles in it first takes a second
    typed[:] = sys.argv
    multirun = is_multirun(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to us instead of printing them at length
    Job.current = job = Job(task, multirun)
    if multirun and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        return complain("torchrun starts the ranks of one run: a sweep has hydra/launcher=local hydra.launcher.ranks=2")
    if multirun:  # the processes that a launcher starts import us too
        path = [str(CONF.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)

    def compose_and_run() -> None:
        page = (CONF / f"{config_name}.yaml").read_text(encoding="utf-8")
        has_models = re.search(r"^  - models:", page, re.MULTILINE)
        sys.argv[1:] = complete(sys.argv[1:], cuda_is_available if has_models else None, multirun)
        # --help asks for all groups twice, and Hydra copies the whole config for each folder
        Hydra.list_all_config_groups = cache(Hydra.list_all_config_groups)
        if not any("hydra.mode" in word for word in sys.argv):  # else it composes all once more to find none
            Hydra.get_mode = lambda *_, **__: None
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()

    return _guarded(config_name, job, compose_and_run)


def _guarded(config_name: str, job: Job, run: Callable[[], Any]) -> int:
    """The exit status of a command after `run`; a mistake, an interruption or a reader that is gone is no traceback."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        run()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # not a job's: they keep their own
        return complain(explain(str(error), config_name))
    except BrokenPipeError:  # who read our output has enough of it: `| head -1`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    except ConnectionError as error:
        return complain(f"the launcher found nobody to give the jobs to: {error}")
    except OSError as error:
        return complain(f"{error}: choose another place with out_dir=...")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return job.finish(interrupted=True)
    except Exception as error:  # the launcher's, after a job that died without a word; or at once, without its cluster
        if job.sweep is None or not any(job.sweep.outcome(number) for number in range(len(job.sweep.jobs))):
            if "srun" not in str(error):
                raise
            return complain("no SLURM here (no srun): start the sweep on a login node, or take hydra/launcher=local")
        traceback.print_exc()
    return job.finish()


def composed(config_name: str, words: list[str], models: str) -> dict[str, Any]:
    """The config that a script gets for `words`, for programs that only look into it; `models` where no word says so.

    Raises UserError for a word that Hydra does not take.
    """
    words = words if word_of(words, "models") else [*words, f"models={models}"]
    typed[:] = ["", *words]
    try:
        settings = complete(words, lambda: False, multirun=False)
    except ValueError as error:
        raise UserError(explain(str(error), config_name)) from error
    overrides = split_words(settings)[1]
    overrides += [f"hydra.searchpath=[{quoted(f'file://{own}')}]" for own in config_folders(words)[1:]]
    # `name` is filled by Hydra's runtime, which `compose` does not have
    return resolved(config_name, [*overrides, "name=none"])


def resolved(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The config that Hydra composes of overrides in its own grammar, also while it runs a job.

    Raises UserError for what it does not take.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    here = GlobalHydra.instance().is_initialized()
    try:
        with nullcontext() if here else initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            plain: Any = OmegaConf.to_container(compose(config_name, list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(str(error), config_name)) from error
    return plain


def cuda_is_available() -> bool:
    """Whether torch sees a CUDA device (imports torch)."""
    import torch

    return torch.cuda.is_available()


def models_line(cfg: Mapping[str, Any], device: Any) -> str:
    """Which pretrained models a run takes, and why; `device` is where they run."""
    name = cfg["models"]["name"]
    given = word_of(typed[1:], "models") is not None
    if name in LARGE and str(device) == "cpu":
        return f"models={name} on a CPU, where an object takes days (models=toybox: minutes)"
    if given:
        return f"models={name}, as asked"
    why = "a CUDA device is there" if name == "sd21" else "no CUDA device here; models=sd21 takes Stable Diffusion 2.1"
    return f"models={name} ({why})"


def typed_command() -> list[str]:
    """The command that came, as it came (`main` changes `sys.argv` for Hydra); in a sweep, that of the one job."""
    return ["python", *typed]
