"""The words of a command line, KEY=VALUE, and Hydra's grammar, which is for numbers and choices only.

Hydra reads commas, quotes, colons, brackets and `${` in every value. A prompt, a path or a name is text and is taken as
it was typed: whether a key holds text is read off the files of conf/, where its values are texts.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Hydra's functions of a sweep: prompt="choice(a, b)" is no text
SWEEP_FUNCTION = re.compile(r"(choice|shuffle|sort|tag|glob|range)\(.*\)", re.DOTALL)
NUMBER = re.compile(r"-?(0|[1-9]\d*)|-?(0|[1-9]\d{0,9})\.(0|\d{0,3}[1-9])", re.ASCII)  # as str() gives it back
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
IN_QUOTES = r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'"""


@dataclass(frozen=True)
class Text:
    """What a key of the config holds that is no number."""

    listed: bool = False  # [a, b] is a list of texts
    template: bool = False  # ${key} stands for that key's value, as in the key's own default
    open: bool = False  # null or auto in all of conf/: it may also hold a number
    prose: bool = False  # its default is the empty text, which says nothing: `null` is a word like any other


def text_keys(folders: Sequence[Path]) -> dict[str, Text]:
    """Dotted key -> Text, for the keys that hold text, or null, in all YAML files of the folders; Hydra's own apart.

    A key that holds a number, a truth value, a list of numbers or a group anywhere is left to Hydra's grammar.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, list[Any]] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            group = file.relative_to(folder).parts[:-1]
            if group[:1] == ("hydra",):
                continue
            try:
                source = file.read_text(encoding="utf-8-sig")
                content = yaml.load(source, loader)
            except (OSError, ValueError, yaml.YAMLError):
                continue  # Hydra says what is wrong with it, if it is asked for
            if isinstance(content, dict):
                whole = re.search(r"^#\s*@package\s+_global_", source, re.MULTILINE)
                for key, value in _leaves(content, "" if whole else ".".join(group[:1])):
                    found.setdefault(key, []).append(value)
    inner = {key.rpartition(".")[0] for key in found}
    kinds = {key: kind for key in found if key not in inner and (kind := _kind(key, found)) is not None}
    listed = {key.rpartition(".")[2] for key, kind in kinds.items() if kind.listed}  # every role's source
    return {key: replace(kind, listed=key.rpartition(".")[2] in listed) for key, kind in kinds.items()}


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if prefix or key not in ("defaults", "hydra"):
            name = f"{prefix}.{key}" if prefix else str(key)
            if isinstance(value, dict):
                yield from _leaves(value, name)
            elif key != "defaults":
                yield name, value


def _kind(key: str, found: Mapping[str, Sequence[Any]]) -> Text | None:
    values, seen = list(found[key]), {key}
    kept: list[Any] = []
    while values:
        value = values.pop()
        reference = REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if reference is None:
            kept.append(value)
        elif reference[1] not in seen:
            seen.add(reference[1])
            values += found.get(reference[1], [0])
    texts = [value for value in kept if value not in (None, "auto")]  # which stand for any kind
    lists = [value for value in texts if isinstance(value, list)]
    single = [value for value in texts if not isinstance(value, list)]
    if not all(lists) or not all(isinstance(one, str) for one in [*single, *(one for some in lists for one in some)]):
        return None
    template = any(isinstance(value, str) and "${" in value for value in found[key])
    return Text(bool(lists), template, not texts, "" in texts)


def for_hydra(value: str, kind: Text, multirun: bool = False) -> str:
    """A text value as it was typed -> as Hydra's grammar gives it back.

    `null` is null, but not in a prompt. Quotes around the whole are taken off. In a multirun commas separate values,
    but for those between quotes, and Hydra's choice(...) stays.
    """
    if multirun and SWEEP_FUNCTION.fullmatch(value.strip()):
        return value
    if kind.listed and value.startswith("[") and value.endswith("]"):
        return value
    pieces = split_values(value) if multirun else [without_quotes(value)]
    typed = split_values(value, bare=True) if multirun else [value]
    return ",".join(
        bare.strip() if _is_no_text(bare.strip(), kind) else quoted(text, kind.template)
        for text, bare in zip(pieces, typed, strict=True)
    )


def _is_no_text(bare: str, kind: Text) -> bool:
    return (bare == "null" and not kind.prose) or (kind.open and NUMBER.fullmatch(bare) is not None)


def as_typed(text: str, kind: Text | None = None) -> str:
    """What to type, for a single run, to get `text`: quoted where it would be taken for something else."""
    kind = kind or Text(open=True)
    listed = kind.listed and text.startswith("[") and text.endswith("]")
    if without_quotes(text) == text and not listed and not _is_no_text(text.strip(), kind):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def split_values(text: str, bare: bool = False) -> list[str]:
    """The values of a sweep: separated by commas, but for those between quotes; bare: with their quotes on."""
    piece = re.compile(rf"\s*(?:({IN_QUOTES})|([^,]*?))\s*(?:,|$)", re.DOTALL)
    values, start = [], 0
    while match := piece.match(text, start):
        whole, *inner, plain = match.groups()
        values.append(plain if whole is None else whole if bare else _unescaped(inner))
        if match.end() == len(text) and not match[0].endswith(","):
            break
        start = match.end()
    return values


def without_quotes(text: str) -> str:
    """`text`, or what stands between the quotes around all of it: Hydra's own documentation says to give them."""
    match = re.fullmatch(IN_QUOTES, text, re.DOTALL)
    return text if match is None else _unescaped(match.groups())


def _unescaped(inner: Sequence[str | None]) -> str:
    return re.sub(r"\\(['\"\\])", r"\1", next(part for part in inner if part is not None))


def quoted(text: str, template: bool = False) -> str:
    """Any text as a value of Hydra's grammar: backslashes count only before a quote, `${` or the end.

    template: `${key}` stays what it means to Hydra.
    """
    escape = r"(\\*)\$\{(?![^{}$]+\})" if template else r"(\\*)\$\{"
    text = re.sub(escape, lambda match: 2 * match[1] + "\\${", text)
    text = re.sub(r"(\\*)'", lambda match: 2 * match[1] + "\\'", text)
    text = re.sub(r"\\+\Z", lambda match: 2 * match[0], text)
    return f"'{text}'"


def unquoted(value: str) -> str:
    """The text that `quoted` made `value` of; a value without quotes is itself."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return value
    text = re.sub(r"\\+\Z", lambda match: match[0][: len(match[0]) // 2], value[1:-1])
    text = re.sub(rf"(\\+){value[0]}", lambda match: match[1][: len(match[1]) // 2] + value[0], text)
    return re.sub(r"(\\+)\$\{", lambda match: match[1][: len(match[1]) // 2] + "${", text)
