"""The command line as it was typed, as Hydra wants it, and as it would be for one job of a sweep alone."""

import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from jointdreamer.cli.words import SWEEP_FUNCTION, as_typed, for_hydra, quoted, text_keys, unquoted, without_quotes
from jointdreamer.errors import UserError
from jointdreamer.project import CONF

GLOBS = ("runs", "study", "meshes", "pictures")  # settings that are one or several patterns of file names

# Hydra's; an unknown one would cost ten lines of usage
OPTIONS = {"-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info"}
OPTIONS |= {"-r", "--run", "-m", "--multirun", "-sc", "--shell-completion", "--experimental-rerun"}
OPTIONS |= {"-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"}
# Those that take the word after them
WITH_VALUE = {"-c", "--cfg", "-p", "--package", "-i", "--info", "--experimental-rerun"}
WITH_VALUE |= {"-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"}

typed: list[str] = []  # the command as it came (`main` changes `sys.argv` for Hydra); in a sweep, that of the one job


def is_multirun(words: list[str]) -> bool:
    """Whether the command line asks for a sweep."""
    return any(word in ("-m", "--multirun") or word.lower() == "hydra.mode=multirun" for word in words)


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
            if key == "logger" and (several := re.fullmatch(r"\[([\w,]+)\]", value)):  # as many as one likes
                names = several[1].split(",")
                if unknown := [name for name in names if name not in choices]:
                    raise UserError(f"unknown logger {unknown[0]!r}: choose of {', '.join(choices)}")
                word = f"logger=[{','.join(name for name in names if name != 'none') or 'none'}]"
            if not all(re.fullmatch(r"[\w./-]+|" + SWEEP_FUNCTION.pattern, without_quotes(name)) for name in names):
                if not multirun and re.fullmatch(r"[\w./,-]+", value):
                    raise UserError(f"{word}: several choices are a sweep: add -m")
                raise UserError(f"{word}: wanted the name of a choice: {', '.join(choices)}")
            if re.fullmatch(r"(true|false)(,(true|false))*", value):  # truth values to Hydra, and no names
                word = f"{key}={','.join(map(quoted, value.split(',')))}"
        done.append(word)
    asks = {"-h", "--help", "--hydra-help", "--version", "--shell-completion", "-sc"}
    if has_cuda is not None and word_of(done, "models") is None and not asks & set(done):
        done.append(f"models={'sd21' if has_cuda() else 'toybox'}")
    # its parser breaks where options stand between settings
    options, settings = split_words(done)
    return [*options, *settings]


def check_words(words: Sequence[str], multirun: bool) -> None:
    """Refuse, in one line, what is no option of Hydra and no setting."""
    if not multirun and len(images := [word for word in words if word.startswith("image=")]) > 1:
        raise UserError(f"two images, {images[0]} and {images[1]}: a run takes one; -m image=A,B makes a run of each")
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


def choices_of(group: str, folders: Sequence[Path]) -> list[str]:
    """The names of a group of configs, those in folders of their own included; none for what is no group."""
    files = [(folder / group, file) for folder in folders for file in sorted((folder / group).rglob("*.yaml"))]
    return list(dict.fromkeys(file.relative_to(top).with_suffix("").as_posix() for top, file in files))


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


def word_of(words: list[str], key: str) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{key}=")), None)


def own_words(overrides: list[str]) -> list[str]:
    """The words that, after `python train.py`, give the run of one job of the sweep that was typed alone."""
    gone = ("hydra.launcher", "hydra.sweep", "hydra.sweeper", "hydra.mode", "hydra/launcher", "hydra/sweeper")
    options, settings = split_words(typed[1:])
    own, texts = [word for word in options if word not in ("-m", "--multirun")], text_keys(config_folders(typed[1:]))
    for word in overrides:
        key, _, value = word.partition("=")
        bare = key.lstrip("+~")
        if bare in texts and (text := unquoted(value)) != value:
            own.append(f"{key}={as_typed(text, texts[bare])}")
        elif not bare.startswith(gone) and not (bare == "models" and word_of(settings, "models") is None):
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
    for group in ("scene", "distillation", "energy", "novel_view"):
        own = next(filter(None, (choice_of_page(page, group) for page in [*pages, "config"])), None)
        if group in typed and typed[group] not in (own, *re.split("[/_]", name)):
            name += f"_{typed[group]}"
    cfg.name = name


def choice_of_page(page: str, group: str) -> str | None:
    """What a page of conf/ chooses for a group; None for nothing."""
    file = CONF / f"{page}.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    choice = re.search(rf"^ *- (?:override /)?{group}: (\S+)", text, re.MULTILINE)
    return choice[1] if choice else None
