"""What the scripts share: Hydra composes the config, and a mistake in it costs one line and exit status 2."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from jointdreamer.arguments import check_arguments
from jointdreamer.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"
PROMPT_VARIABLE = "JOINTDREAMER_PROMPT"
GLOB_VARIABLES = {"runs": "JOINTDREAMER_RUNS", "study": "JOINTDREAMER_STUDY"}

# Settings that the scripts read themselves: kind, lowest and highest value, or the words to choose from.
NUMBERS: dict[str, tuple[type, float, float]] = {
    "seed": (int, 0, 2**32 - 1),
    "every.log": (int, 1, inf),
    "every.view": (int, 0, inf),
    "every.checkpoint": (int, 0, inf),
    "output.views": (int, 1, 10_000),
    "output.resolution": (int, 8, 4096),
    "output.fps": (int, 1, 240),
    "output.elevation_deg": (float, -90, 90),
    "output.distance": (float, 0.1, 1000),
    "output.fovy_deg": (float, 1, 179),
    "output.mesh_resolution": (int, 8, 1024),
    "distillation.mask_floor": (float, 0, 1),
}
CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "precision": ("no", "bf16"),
    "distillation.prior": ("text_to_image", "multi_view"),
    "distillation.weighting": ("sds", "uniform", "fantasia3d", "x0"),
    "distillation.mask": ("input", "gradient", "none"),
}
OPTIONAL = ("distillation.energy_limit", "distillation.x0_limit")  # numbers above 0, or null
TEXTS = ("name", "out_dir", "negative_prompt")
GROUPS = ("schedule", "energy", "models", "logger")

# Hydra's; an unknown one would cost ten lines of usage
OPTIONS = {"-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info"}
OPTIONS |= {"-r", "--run", "-m", "--multirun", "-sc", "--shell-completion", "--experimental-rerun"}
OPTIONS |= {"-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"}

_failures: list[int] = []
_typed: list[str] = []  # the command as it came


def main(config_name: str, task: Callable[[dict[str, Any]], int]) -> int:
    """Run `task` on the config that the command line composes, or on each config of a multirun; the exit status.

    A UserError, or a word that Hydra does not take, is one line on stderr and status 2. Anything else keeps its
    traceback (status 1). In a multirun a failed job does not stop the others; the status is the worst of all.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _failures.clear()
    _typed[:] = sys.argv
    multirun = any(word in ("-m", "--multirun") for word in sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to us instead of printing them at length

    def job(cfg: Any) -> None:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        try:
            status = task(with_prompt(plain))
        except UserError as error:
            status = complain(error)
        except Exception:  # a fault of ours
            traceback.print_exc()
            status = 1
        _failures.append(status)
        if multirun and status > 128:  # stopped by a signal: so is the sweep
            raise KeyboardInterrupt

    try:
        has_models = re.search(
            r"^  - models:", (CONF / f"{config_name}.yaml").read_text(encoding="utf-8"), re.MULTILINE
        )
        sys.argv[1:] = complete(sys.argv[1:], cuda_is_available if has_models else None, multirun)
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # not a job's: they keep their own
        return complain(explain(str(error), config_name))
    except OSError as error:
        return complain(f"{error}: choose another place with out_dir=...")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return max(_failures, default=0) if max(_failures, default=0) > 128 else 130
    return max(_failures, default=0)


def complain(error: Any) -> int:
    """Print one line on stderr; the exit status of a user's mistake."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2


def complete(words: list[str], has_cuda: Callable[[], bool] | None, multirun: bool) -> list[str]:
    """The command line as Hydra wants it: `models=` filled in, and a prompt and globs taken as typed.

    Hydra's grammar reads commas, quotes, colons and brackets in a value; a prompt is text. A single run's prompt
    therefore travels beside the grammar, in the environment. A multirun's stays Hydra's, where a comma separates runs.
    So do the globs of `runs=` and `study=`, one a line: of a word with braces a shell makes several, and all count.
    has_cuda: None where the config has no `models`.
    """
    for word in words:
        if word.startswith("-") and word.partition("=")[0] not in OPTIONS:
            raise UserError(f"unknown option {word.partition('=')[0]}: settings have no dashes, seed=1; see --help")
    done = []
    for key, variable in GLOB_VARIABLES.items():
        if globs := [word.removeprefix(f"{key}=") for word in words if word.startswith(f"{key}=")]:
            words = [word for word in words if not word.startswith(f"{key}=")]
            os.environ[variable] = "\n".join(globs)
            done.append(f"{key}=${{oc.env:{variable}}}")
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key == "prompt" and not multirun:
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]  # quoted for Hydra, as its own documentation says
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise UserError("the prompt is no UTF-8 text: is the terminal's encoding another one?") from error
            os.environ[PROMPT_VARIABLE] = value
            word = f"prompt=${{oc.env:{PROMPT_VARIABLE}}}"
        done.append(word)
    asks = {"-h", "--help", "--hydra-help", "--version", "--shell-completion", "-sc"}
    if has_cuda is not None and _models_word(done) is None and not asks & set(done):
        done.append(f"models={'sd21' if has_cuda() else 'toybox'}")
    # its parser breaks where options stand between settings
    settings = [word for word in done if word[:1] in ("+", "~") or ("=" in word and word[:1] != "-")]
    return [*(word for word in done if word not in settings), *settings]


def composed(config_name: str, words: list[str], models: str) -> dict[str, Any]:
    """The config that a script gets for `words`, for programs that only look into it; `models` where no word says so.

    Raises UserError for a word that Hydra does not take.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    words = words if _models_word(words) else [*words, f"models={models}"]
    _typed[:] = ["", *words]
    try:
        settings = complete(words, lambda: False, multirun=False)
        own = [Path(word.partition("=")[2]).absolute() for word in settings if word.startswith("--config-dir=")]
        overrides = [word for word in settings if not word.startswith("-")]
        overrides += [f"hydra.searchpath=['file://{own[0]}']"] if own else []
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            # `name` is filled by Hydra's runtime, which `compose` does not have
            plain: Any = OmegaConf.to_container(compose(config_name, [*overrides, "name=none"]), resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(str(error), config_name)) from error
    return plain


def _models_word(words: list[str]) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith("models=")), None)


def cuda_is_available() -> bool:
    """Whether torch sees a CUDA device (imports torch)."""
    import torch

    return torch.cuda.is_available()


def explain(message: str, config_name: str) -> str:
    """Hydra's message; for an unknown key or choice, with those that there are."""
    if "Config group override must be" in message:
        groups = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
        return f"{', '.join(groups)} want the name of a choice, not null: leave the word out"
    missing = r"Could not find '([^']+)/([^'/]*)'\s+Available options in '[^']*':\s+(.*?)\s+Config"
    if choice := re.search(missing, message, re.DOTALL):
        group, name, there = choice.groups()
        own = ", or your own with --config-dir FOLDER" if group == "energy" else ""
        return f"unknown {group} {name!r}: choose one of {', '.join(there.split())}{own}"
    unknown = re.search(r"Could not override '([\w.]+)'", message) or re.search(r"Key '([\w.]+)' is not in", message)
    if not unknown:
        return message
    from omegaconf import DictConfig, OmegaConf

    node: Any = compose_again(config_name)
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
    if own := re.search(r"(?:^|\n)(?:--config-dir|-cd)[=\n](.*)", "\n".join(_typed)):
        choices.append(f"hydra.searchpath=['file://{Path(own[1]).absolute()}']")
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
        if prompt is not None:
            raise UserError("prompt and prompt_file are both given: give one of them")
        from jointdreamer.prompts import read_prompts  # and with it torch: the other mistakes are answered sooner

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


def check(
    cfg: dict[str, Any],
    readers: Mapping[str, Callable],
    numbers: Mapping[str, tuple[type, float, float]] = NUMBERS,
    choices: Mapping[str, Sequence[str]] = CHOICES,
    optional: Sequence[str] = OPTIONAL,
    texts: Sequence[str] = TEXTS,
    groups: Sequence[str] = GROUPS,
) -> None:
    """Refuse, before anything is loaded, what the config may not say.

    readers: who takes a group of the config, {"cameras": Rig}; its signature says what the group may hold.
    The rest is what the script reads itself; by default train.py.
    Raises UserError, one line.
    """

    def value(key: str) -> Any:
        node: Any = cfg
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    for key in texts:
        if value(key) is None or (not str(cfg[key]).strip() and key != "negative_prompt"):
            raise UserError(f"{key} is empty: wanted a text")
        cfg[key] = str(cfg[key])  # a name of digits is a number to YAML
    for key, words in choices.items():
        if value(key) not in words:
            raise UserError(f"{key}={value(key)!r}: choose one of {', '.join(words)}")
    for key, (kind, low, high) in numbers.items():
        number = value(key)
        right = isinstance(number, int if kind is int else int | float) and not isinstance(number, bool)
        if not right or not low <= number <= high:
            most = f" to {high:g}" if high < 1e9 else " up"
            raise UserError(f"{key}={number!r}: wanted a {'whole ' if kind is int else ''}number from {low:g}{most}")
    for key in optional:
        limit = value(key)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or limit <= 0):
            raise UserError(f"{key}={limit!r}: wanted a number above 0, or null")
    for key in groups:
        if not isinstance(value(key), Mapping):
            raise UserError(f"{key}={value(key)!r}: wanted a group of settings, or leave it out")
    for key, reader in readers.items():
        check_arguments(reader, value(key), key, whole=False)
    if cfg["device"] == "cuda" and not cuda_is_available():
        raise UserError("device=cuda: torch sees no CUDA device; leave device out, or install a CUDA build of torch")


def models_line(cfg: Mapping[str, Any], device: Any) -> str:
    """Which pretrained models a run takes, and why; `device` is where they run."""
    name = cfg["models"]["name"]
    given = _models_word(_typed[1:]) is not None
    if name == "sd21" and str(device) == "cpu":
        return "models=sd21 on a CPU, where an object takes days (models=toybox: minutes)"
    if given:
        return f"models={name}, as asked"
    why = "a CUDA device is there" if name == "sd21" else "no CUDA device here; models=sd21 takes Stable Diffusion 2.1"
    return f"models={name} ({why})"


def typed_command() -> list[str]:
    """The command that came, as it came: `main` changes `sys.argv` for Hydra."""
    return ["python", *_typed]


def eval_orbit(output: Mapping[str, Any]) -> dict[str, float]:
    """The evaluation camera's height, distance and opening, as `orbit_cameras` takes them."""
    return {key: output[key] for key in ("elevation_deg", "distance", "fovy_deg")}
