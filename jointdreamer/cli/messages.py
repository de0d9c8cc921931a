"""What a mistake in a command says: one line, with what there is instead."""

import os
import re
import sys
from typing import Any

from jointdreamer.cli.command_line import choices_of, config_folders, typed, word_of
from jointdreamer.cli.words import quoted
from jointdreamer.errors import one_line
from jointdreamer.project import CONF
from jointdreamer.runs.versions import renamed

# Launchers that Hydra has as packages of their own: the extra of ours that installs each
LAUNCHER_EXTRAS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}

TAKE_MORE = ("distillation.terms.", "schedule.loss.")  # parts and losses take keys that no file lists


def complain(error: Any) -> int:
    """Print one line on stderr, once for all ranks of a run; the exit status of a user's mistake."""
    if speaks():
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
    return 2


def speaks() -> bool:
    """Whether this process says what went wrong; of several ranks one does."""
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return True
    from jointdreamer.ranks import may_speak  # and with it torch

    return may_speak()


def explain(message: str, config_name: str) -> str:
    """Hydra's message; for an unknown key or choice, with those that there are."""
    if "Config group override must be" in message:
        groups = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
        return (
            f"{', '.join(groups)} want the name of a choice, not null or a number: leave the word out for the default"
        )
    launcher = re.search(r"Could not (?:find|load) 'hydra/launcher/(\w+)'", message)
    if launcher and launcher[1] in LAUNCHER_EXTRAS:
        chosen = word_of(typed, "hydra/launcher") or launcher[1]
        extra = f"pip install -e '.[{LAUNCHER_EXTRAS[launcher[1]]}]'"
        return f"hydra/launcher={chosen} is not installed: {extra}; hydra/launcher=local needs nothing"
    if page := re.search(r"Could not find '(given_image|schedule)/([^'/]+)/([^']+)'", message):
        group, models, rest = page.groups()
        made = [name for name in choices_of("models", [CONF]) if (CONF / group / name / f"{rest}.yaml").is_file()]
        if made:
            asked = word_of(typed, "experiment")
            what = f"experiment={asked}" if asked else f"{group}={models}/{rest}"
            return f"{what} is made for models={' and '.join(made)}, not for {models}: take one of them"
    missing = r"Could not find '([^']+)/([^'/]*)'\s+(?:Available options in '[^']*':\s+(.*?)\s+)?Config"
    if choice := re.search(missing, message, re.DOTALL):
        group, name, there = choice.groups()
        if now := renamed(f"{group}/{name}"):
            return f"experiment={group.partition('/')[2]}/{name} is the same run as {now}: take that"
        # Hydra leaves out those that lie in a folder of their own
        there = " ".join(dict.fromkeys([*(there or "").split(), *choices_of(group, config_folders(typed[1:]))]))
        own = ", or your own with --config-dir FOLDER" if group == "energy" else ""
        return f"unknown {group} {name!r}: choose one of {', '.join(there.split())}{own}"
    unknown = re.search(r"Could not override '([\w.]+)'", message) or re.search(r"Key '([\w.]+)' is not in", message)
    if not unknown:
        return message
    from omegaconf import DictConfig, OmegaConf

    node: Any = compose_again(config_name)
    if now := renamed(unknown[1], str(OmegaConf.select(node, "energy.name"))):
        return f"unknown key {unknown[1]!r}: it is called {now} now"
    *parents, key = unknown[1].split(".")
    for parent in parents:
        inner = OmegaConf.select(node, parent) if isinstance(node, DictConfig) and parent in node else None
        if not isinstance(inner, DictConfig):
            break
        node = inner
    if parents == ["viewer"] and list(node) == ["open"]:
        return f"{unknown[1]}: there is no viewer to set that of; add viewer=true"
    there = f"unknown key {unknown[1]!r}: there are {', '.join(str(k) for k in node)}"
    if not unknown[1].startswith(TAKE_MORE):
        return there
    return f"{there}; one that a class takes and no file sets is added with +: +{unknown[1]}=..."


def compose_again(config_name: str) -> Any:
    """The config with the choices that were typed, for its keys; with the default choices if those do not compose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    choices = [word for word in typed if "." not in word and (CONF / word.partition("=")[0]).is_dir() and "=" in word]
    choices += [f"hydra.searchpath=[{quoted(f'file://{own}')}]" for own in config_folders(typed)[1:]]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        try:
            return compose(config_name, choices)
        except Exception:  # this is only for a better message
            return compose(config_name)
