"""What the scripts share: Hydra composes the config, and a mistake in it costs one line and exit status 2."""

import atexit
import contextlib
import gc
import importlib.util
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from jointdreamer.cli.words import SWEEP_FUNCTION, as_typed, for_hydra, quoted, text_keys, unquoted, without_quotes
from jointdreamer.errors import UserError, one_line
from jointdreamer.project import ROOT
from jointdreamer.runs.signals import Stop, hand_on
from jointdreamer.terminal import safe_output, use_utf8

CONF = ROOT / "conf"
GLOBS = ("runs", "study")  # settings that are one or several patterns of file names

# Hydra's; an unknown one would cost ten lines of usage
OPTIONS = {"-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info"}
OPTIONS |= {"-r", "--run", "-m", "--multirun", "-sc", "--shell-completion", "--experimental-rerun"}
OPTIONS |= {"-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"}
# Those that take the word after them
WITH_VALUE = {"-c", "--cfg", "-p", "--package", "-i", "--info", "--experimental-rerun"}
WITH_VALUE |= {"-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"}

# Launchers that Hydra has as packages of their own: the extra of ours that installs each
LAUNCHER_EXTRAS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}

_typed: list[str] = []  # the command as it came
_job: "Job | None" = None  # what this process gave Hydra
_read: dict[str, Any] | None = None  # the config that `read_command` composed


def read_command(config_name: str) -> None:
    """Compose the config of a single run for the `main` to come, or end here: after --help, or a word with a mistake.

    For the top of a script, before imports that take seconds. A multirun is composed by `main`.
    """
    global _read
    gc.disable()  # until the loop: a second of passes over half a million objects that imports make and nobody drops
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
    global _job, _read
    if _read is not None and _job is not None:
        cfg, _read, _job.task = _read, None, task
        try:
            _job.run(cfg)
        except BrokenPipeError:
            _mute()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return _job.finish(interrupted=True)
        return _job.finish()
    use_utf8()
    safe_output()
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    atexit.register(gc.freeze)  # what is left dies with the process: to look for cycles in it first takes a second
    _typed[:] = sys.argv
    multirun = is_multirun(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to us instead of printing them at length
    _job = job = Job(task, multirun)
    if multirun:  # the processes that a launcher starts import us too
        path = [str(CONF.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
    try:
        has_models = re.search(
            r"^  - models:", (CONF / f"{config_name}.yaml").read_text(encoding="utf-8"), re.MULTILINE
        )
        sys.argv[1:] = complete(sys.argv[1:], cuda_is_available if has_models else None, multirun)
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # not a job's: they keep their own
        return complain(explain(str(error), config_name))
    except BrokenPipeError:  # who read our output has enough of it: `| head -1`
        _mute()
        return job.finish()
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


def _mute() -> None:
    """Nobody reads our output any more."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


class Job:
    """What Hydra calls with each config. A launcher may pickle it and call it on another machine.

    task: takes the resolved config, returns the exit status. In a sweep (multirun) the outcome goes to its folder, and
    a signal stops the sweep.
    """

    def __init__(self, task: Callable[[dict[str, Any]], int], multirun: bool):
        self.task, self.multirun = task, multirun
        self.typed, self.cwd = list(_typed), os.getcwd()
        self.sweep: Any = None
        self.status = 0  # the worst so far, of the jobs in this process
        self.away = False  # in a process that a launcher started

    def __call__(self, cfg: Any) -> int:
        global _job
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        settle_name(cfg, HydraConfig.get().overrides.task)
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        if not self.multirun:
            status, _ = self.run(plain)
            return status

        from jointdreamer.cli.sweeps import Outcome

        _job = self  # on the other side of a pickle too
        hydra = HydraConfig.get()
        sweep = self.sweep = self.sweep or begin_sweep(Path(hydra.sweep.dir))
        number = hydra.job.num
        if self.away:
            _leave_terminal(self.cwd)
            if sweep.stop_file.exists():
                sweep.write(number, Outcome(130))
                return 130
            sweep.mark_started(number)
        _typed[:] = self.typed
        _typed[1:] = own_words([*hydra.overrides.hydra, *hydra.overrides.task])
        try:
            with _stopped_by(sweep.stop_file) if self.away else contextlib.nullcontext():
                status, error = self.run(plain)
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
        return status

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
            traceback.print_exc()
            said, status = f"{type(error).__name__}: {one_line(error)}"[:500], 1
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
        code = getattr(self.task, "__code__", None)
        if code is not None and "<" not in self.task.__qualname__:
            state["task"] = (str(Path(code.co_filename).absolute()), self.task.__qualname__)
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


def begin_sweep(folder: Path) -> Any:
    """The Sweep in `folder` that this process's job belongs to."""
    from jointdreamer.cli.sweeps import Sweep

    if _job is None:
        return Sweep(folder.absolute())
    if _job.sweep is None:
        _job.sweep = Sweep(folder.absolute())
    return _job.sweep


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


def is_multirun(words: list[str]) -> bool:
    """Whether the command line asks for a sweep."""
    return any(word in ("-m", "--multirun") or word.lower() == "hydra.mode=multirun" for word in words)


def own_words(overrides: list[str]) -> list[str]:
    """The words that, after `python train.py`, give the run of one job of this process's sweep alone."""
    gone = ("hydra.launcher", "hydra.sweep", "hydra.sweeper", "hydra.mode", "hydra/launcher", "hydra/sweeper")
    typed = _job.typed[1:] if _job is not None else []
    options, settings = split_words(typed)
    own, texts = [word for word in options if word not in ("-m", "--multirun")], text_keys(config_folders(typed))
    for word in overrides:
        key, _, value = word.partition("=")
        bare = key.lstrip("+~")
        if bare in texts and (text := unquoted(value)) != value:
            own.append(f"{key}={as_typed(text, texts[bare])}")
        elif not bare.startswith(gone) and not (bare == "models" and _word_of(settings, "models") is None):
            own.append(word)
    return own


def settle_name(cfg: Any, words: Sequence[str]) -> None:
    """Add to a run's `name` the choices that were typed and that it does not say: experiment=smoke energy=cls is
    smoke_cls, and not in the folder of experiment=smoke. What the chosen pages choose themselves adds nothing.

    words: the settings of the one job, as Hydra has them.
    """
    typed = {key.lstrip("+~"): value for key, _, value in (word.partition("=") for word in words)}
    if "name" in typed or "name" not in cfg:
        return
    pages = [f"{group}/{typed[group]}" for group in ("experiment", "distillation") if group in typed]
    name = str(cfg.name)
    for group in ("distillation", "energy", "novel_view"):
        own = next(filter(None, (choice_of_page(page, group) for page in [*pages, "config"])), None)
        if group in typed and typed[group] not in (own, *re.split("[/_]", name)):
            name += f"_{typed[group]}"
    cfg.name = name


def choice_of_page(page: str, group: str) -> str | None:
    """What a page of conf/ chooses for a group, itself or by the experiment that it starts from; None for nothing."""
    file = CONF / f"{page}.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if choice := re.search(rf"^ *- (?:override /)?{group}: (\S+)", text, re.MULTILINE):
        return choice[1]
    base = re.search(r"^ *- /(experiment/\S+)", text, re.MULTILINE)
    return choice_of_page(base[1], group) if base else None


def folder_of(plain: Mapping[str, Any]) -> str | None:
    """The run folder of a config; None if it has none."""
    if not {"out_dir", "name", "prompt", "seed"} <= plain.keys():
        return None
    from jointdreamer.runs.folder import run_path

    try:
        return str(run_path(plain["out_dir"], str(plain["name"]), plain["prompt"], plain["seed"]))
    except (UserError, TypeError, AttributeError):  # the task says what is wrong with them
        return None


def complain(error: Any) -> int:
    """Print one line on stderr; the exit status of a user's mistake."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 2


def complete(words: list[str], has_cuda: Callable[[], bool] | None, multirun: bool) -> list[str]:
    """The command line as Hydra wants it: `models=` filled in, and texts and globs taken as typed.

    Hydra's grammar reads commas, quotes, colons and brackets in a value; a prompt, a path or a name is text, and is
    quoted for Hydra (`words`). In a multirun commas separate texts; one that has commas is given in quotes:
    prompt='"a corgi, 8K", a cat'.
    So are the globs of `runs=` and `study=`, one a line: of a word with braces a shell makes several, and all count.
    has_cuda: None where the config has no `models`.
    """
    check_words(words, multirun)
    done, texts = [], text_keys(config_folders(words))
    for key in GLOBS:
        if globs := [word.removeprefix(f"{key}=") for word in words if word.startswith(f"{key}=")]:
            words = [word for word in words if not word.startswith(f"{key}=")]
            done.append(f"{key}={quoted(chr(10).join(globs))}")
    for word in words:
        key, equals, value = word.partition("=")
        if equals and (kind := texts.get(key.lstrip("+"))) is not None:
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"the {key} is no UTF-8 text: is the terminal's encoding another one?") from error
            word = f"{key}={for_hydra(value, kind, multirun)}"
        elif equals and (choices := choices_of(key, config_folders(words))):
            names = [value] if SWEEP_FUNCTION.fullmatch(value) or not multirun else value.split(",")
            if not all(re.fullmatch(r"[\w./-]+|" + SWEEP_FUNCTION.pattern, without_quotes(name)) for name in names):
                if not multirun and re.fullmatch(r"[\w./,-]+", value):
                    raise UserError(f"{word}: several choices are a sweep: add -m")
                raise UserError(f"{word}: wanted the name of a choice: {', '.join(choices)}")
        done.append(word)
    asks = {"-h", "--help", "--hydra-help", "--version", "--shell-completion", "-sc"}
    if has_cuda is not None and _word_of(done, "models") is None and not asks & set(done):
        done.append(f"models={'sd21' if has_cuda() else 'toybox'}")
    # its parser breaks where options stand between settings
    options, settings = split_words(done)
    return [*options, *settings]


def choices_of(group: str, folders: Sequence[Path]) -> list[str]:
    """The names of a group of configs, those in folders of their own included; none for what is no group."""
    files = [(folder / group, file) for folder in folders for file in sorted((folder / group).rglob("*.yaml"))]
    return list(dict.fromkeys(file.relative_to(top).with_suffix("").as_posix() for top, file in files))


def check_words(words: Sequence[str], multirun: bool) -> None:
    """Refuse, in one line, what is no option of Hydra and no setting."""
    before = ""
    for number, word in enumerate(words):
        if word.startswith("-") and word.partition("=")[0] not in OPTIONS:
            raise UserError(f"unknown option {word.partition('=')[0]}: settings have no dashes, seed=1; see --help")
        if word.startswith("hydra/launcher=") and not multirun:
            raise UserError(f"{word} without -m: a launcher starts the jobs of a sweep; python train.py -m ...")
        if "=" not in word and word[:1] not in ("-", "~") and before not in WITH_VALUE:
            key, equals, value = before.partition("=")
            value = " ".join([value, *takewhile(lambda one: "=" not in one and one[:1] != "-", words[number:])])
            hint = f'quote the {key}: {key}="{value}"' if equals else "wanted KEY=VALUE, seed=1; see --help"
            raise UserError(f"{word!r} is no setting: {hint}")
        before = word


def config_folders(words: Sequence[str]) -> list[Path]:
    """conf/, and the folder of --config-dir."""
    for word, after in zip(words, [*words[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        if option in ("--config-dir", "-cd") and (value or after):
            return [CONF, Path(value if equals else after).absolute()]
    return [CONF]


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """The options among `words`, values in words of their own included, and the settings."""
    settings = [word for word in words if word[:1] in ("+", "~") or ("=" in word and word[:1] != "-")]
    return [word for word in words if word not in settings], settings


def composed(config_name: str, words: list[str], models: str) -> dict[str, Any]:
    """The config that a script gets for `words`, for programs that only look into it; `models` where no word says so.

    Raises UserError for a word that Hydra does not take.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    words = words if _word_of(words, "models") else [*words, f"models={models}"]
    _typed[:] = ["", *words]
    try:
        settings = complete(words, lambda: False, multirun=False)
        overrides = split_words(settings)[1]
        overrides += [f"hydra.searchpath=[{quoted(f'file://{own}')}]" for own in config_folders(words)[1:]]
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            # `name` is filled by Hydra's runtime, which `compose` does not have
            plain: Any = OmegaConf.to_container(compose(config_name, [*overrides, "name=none"]), resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(str(error), config_name)) from error
    return plain


def _word_of(words: list[str], key: str) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{key}=")), None)


def cuda_is_available() -> bool:
    """Whether torch sees a CUDA device (imports torch)."""
    import torch

    return torch.cuda.is_available()


def explain(message: str, config_name: str) -> str:
    """Hydra's message; for an unknown key or choice, with those that there are."""
    if "Config group override must be" in message:
        groups = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
        return (
            f"{', '.join(groups)} want the name of a choice, not null or a number: leave the word out for the default"
        )
    launcher = re.search(r"Could not (?:find|load) 'hydra/launcher/(\w+)'", message)
    if launcher and launcher[1] in LAUNCHER_EXTRAS:
        chosen = _word_of(_typed, "hydra/launcher") or launcher[1]
        extra = f"pip install -e '.[{LAUNCHER_EXTRAS[launcher[1]]}]'"
        return f"hydra/launcher={chosen} is not installed: {extra}; hydra/launcher=local needs nothing"
    missing = r"Could not find '([^']+)/([^'/]*)'\s+Available options in '[^']*':\s+(.*?)\s+Config"
    if choice := re.search(missing, message, re.DOTALL):
        group, name, there = choice.groups()
        # Hydra leaves out those that lie in a folder of their own
        there = " ".join(dict.fromkeys([*there.split(), *choices_of(group, config_folders(_typed[1:]))]))
        own = ", or your own with --config-dir FOLDER" if group == "energy" else ""
        return f"unknown {group} {name!r}: choose one of {', '.join(there.split())}{own}"
    unknown = re.search(r"Could not override '([\w.]+)'", message) or re.search(r"Key '([\w.]+)' is not in", message)
    if not unknown:
        return message
    from omegaconf import DictConfig, OmegaConf

    from jointdreamer.runs.versions import renamed

    node: Any = compose_again(config_name)
    if now := renamed(unknown[1], str(OmegaConf.select(node, "energy.name"))):
        return f"unknown key {unknown[1]!r}: it is called {now} now"
    *parents, key = unknown[1].split(".")
    for parent in parents:
        inner = OmegaConf.select(node, parent) if isinstance(node, DictConfig) and parent in node else None
        if not isinstance(inner, DictConfig):
            break
        node = inner
    return f"unknown key {unknown[1]!r}: there are {', '.join(str(k) for k in node)}"


def compose_again(config_name: str) -> Any:
    """The config with the choices that were typed, for its keys; with the default choices if those do not compose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    choices = [word for word in _typed if "." not in word and (CONF / word.partition("=")[0]).is_dir() and "=" in word]
    choices += [f"hydra.searchpath=[{quoted(f'file://{own}')}]" for own in config_folders(_typed)[1:]]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        try:
            return compose(config_name, choices)
        except Exception:  # this is only for a better message
            return compose(config_name)


def with_prompt(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config with its prompt found: given, or line `prompt_id` of `prompt_file`.

    Raises UserError without a prompt, with an empty one, with both, or for a line that is not there.
    """
    if "prompt_file" not in cfg:
        return cfg
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
    if prompt is None or not str(prompt).strip():
        raise UserError('no prompt: say what to make, e.g. prompt="a red robot with a blue hat"')
    cfg["prompt"] = str(prompt)
    return cfg


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


def models_line(cfg: Mapping[str, Any], device: Any) -> str:
    """Which pretrained models a run takes, and why; `device` is where they run."""
    name = cfg["models"]["name"]
    given = _word_of(_typed[1:], "models") is not None
    if name == "sd21" and str(device) == "cpu":
        return "models=sd21 on a CPU, where an object takes days (models=toybox: minutes)"
    if given:
        return f"models={name}, as asked"
    why = "a CUDA device is there" if name == "sd21" else "no CUDA device here; models=sd21 takes Stable Diffusion 2.1"
    return f"models={name} ({why})"


def typed_command() -> list[str]:
    """The command that came, as it came (`main` changes `sys.argv` for Hydra); in a sweep, that of the one job."""
    return ["python", *_typed]
