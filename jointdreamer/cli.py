"""What the scripts share: Hydra composes the config, and a mistake in it costs one line and exit status 2."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jointdreamer.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"
PROMPT_VARIABLE = "JOINTDREAMER_PROMPT"

_failures: list[int] = []


def main(config_name: str, task: Callable[[dict[str, Any]], int]) -> int:
    """Run `task` on the config that the command line composes, or on each config of a multirun; the exit status.

    A UserError, or a word that Hydra does not take, is one line on stderr and status 2. Anything else keeps its
    traceback (status 1). In a multirun a failed job does not stop the others; the status is the worst of all.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    multirun = any(word in ("-m", "--multirun") for word in sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to us instead of printing them at length
    sys.argv[1:] = complete(sys.argv[1:], cuda_is_available, multirun)

    def job(cfg: Any) -> None:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        try:
            status = task(with_prompt(plain))
        except UserError as error:
            status = complain(error)
        except Exception:
            if not multirun:
                raise
            import traceback

            traceback.print_exc()
            status = 1
        _failures.append(status)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        return complain(explain(str(error), config_name))
    except UserError as error:
        return complain(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return max(_failures, default=0)


def complain(error: Any) -> int:
    """Print one line on stderr; the exit status of a user's mistake."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2


def complete(words: list[str], has_cuda: Callable[[], bool], multirun: bool) -> list[str]:
    """The command line as Hydra wants it: `models=` filled in, and a prompt taken as typed.

    Hydra's grammar reads commas, quotes, colons and brackets in a value; a prompt is text. A single run's prompt
    therefore travels beside the grammar, in the environment. A multirun's stays Hydra's, where a comma separates runs.
    """
    done = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key == "prompt" and not multirun:
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]  # quoted for Hydra, as its own documentation says
            if "\0" in value:
                raise UserError("the prompt holds a NUL character")
            os.environ[PROMPT_VARIABLE] = value
            word = f"prompt=${{oc.env:{PROMPT_VARIABLE}}}"
        done.append(word)
    asks = {"-h", "--help", "--hydra-help", "--version", "--shell-completion", "-sc"}
    if not any(word.startswith("models=") for word in done) and not asks & set(done):
        done.append(f"models={'sd21' if has_cuda() else 'toybox'}")
    return done


def cuda_is_available() -> bool:
    """Whether torch sees a CUDA device (imports torch)."""
    import torch

    return torch.cuda.is_available()


def explain(message: str, config_name: str) -> str:
    """Hydra's message; for an unknown key, with the keys that there are."""
    unknown = re.search(r"Could not override '([\w.]+)'", message) or re.search(r"Key '([\w.]+)' is not in", message)
    if not unknown:
        return message
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig, OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        node: Any = compose(config_name)
    *parents, key = unknown[1].split(".")
    for parent in parents:
        inner = OmegaConf.select(node, parent) if isinstance(node, DictConfig) and parent in node else None
        if not isinstance(inner, DictConfig):
            break
        node = inner
    return f"unknown key {unknown[1]!r}: there are {', '.join(str(k) for k in node)}"


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
        try:
            lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"prompt_file={file}: cannot be read ({error})") from error
        if not isinstance(number, int) or not 0 <= number < len(lines):
            raise UserError(f"prompt_id={number}: {file} has the lines 0 to {len(lines) - 1}")
        prompt = lines[number]
    elif number is not None:
        raise UserError(f"prompt_id={number} without a prompt_file: name the file, prompt_file=prompts/janus16.txt")
    if prompt is None or not str(prompt).strip():
        raise UserError('no prompt: say what to make, e.g. prompt="a red robot with a blue hat"')
    cfg["prompt"] = str(prompt)
    return cfg


def models_line(cfg: Mapping[str, Any]) -> str:
    """Which pretrained models a run takes, and why."""
    name = cfg["models"]["name"]
    given = any(word.startswith("models=") for word in _typed)
    if given:
        return f"models={name}, as asked"
    why = "a CUDA device is there" if name == "sd21" else "no CUDA device here; models=sd21 takes Stable Diffusion 2.1"
    return f"models={name} ({why})"


_typed = list(sys.argv[1:])


def eval_orbit(output: Mapping[str, Any]) -> dict[str, float]:
    """The evaluation camera's height, distance and opening, as `orbit_cameras` takes them."""
    return {key: output[key] for key in ("elevation_deg", "distance", "fovy_deg")}
