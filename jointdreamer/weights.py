"""Fetch and check the pretrained models: python -m jointdreamer.weights list|prefetch|check [ROLE ...] [models=sd21]

    list        every role with its sources, licence and size, and where it is on this machine
    prefetch    download what the energies read (or the roles named); the same command goes on after an interruption
    check       read what is at hand: whole, and of the sha256 that is known

The settings are train.py's: models.multi_view.source=FILE moves that role here, in the doctor and in a run.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jointdreamer import cli
from jointdreamer.errors import UserError

COMMANDS = ("list", "prefetch", "check")


def main(words: Sequence[str]) -> int:
    """Run the command; the exit status."""
    if {"-h", "--help"} & set(words) or not words:
        print(__doc__)
        return 0 if words else 2
    try:
        command, *rest = words
        if command not in COMMANDS:
            raise UserError(f"unknown command {command!r}: choose one of {', '.join(COMMANDS)}")
        settings = [word for word in rest if "=" in word or word.startswith("-")]
        cfg = cli.composed("config", settings, models="sd21")
        roles = pick([word for word in rest if word not in settings], cfg["models"])
        return {"list": show, "prefetch": prefetch, "check": check}[command](cfg["models"], roles)
    except UserError as error:
        return cli.complain(error)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def pick(named: Sequence[str], models: Mapping[str, Any]) -> list[str]:
    """The roles named, or none. Raises UserError for one that these models do not have."""
    from jointdreamer.models.weights import ROLES

    there = [role for role in ROLES if role in models]
    for role in named:
        if role not in (*there, "all"):
            raise UserError(f"unknown role {role!r} in models={models['name']}: choose all, {', '.join(there)}")
    return there if "all" in named else [role for role in there if role in named]


def place(models: Mapping[str, Any], role: str, download: bool = False) -> Path:
    """Where a role's weights are. Raises UserError if nowhere."""
    from jointdreamer.models.weights import find_weights

    part = models[role]
    return find_weights(part["source"], role, file=part.get("file"), download=download)


def here(models: Mapping[str, Any], role: str) -> Path | None:
    """Where a role's weights are on this machine, or None."""
    try:
        return place(models, role)
    except UserError:
        return None


def source_of(models: Mapping[str, Any], role: str, path: Path) -> Any:
    """Which of a role's sources `path` came from."""
    from jointdreamer.models.weights import find_weights, sources

    for source in sources(models[role]["source"], role):
        try:
            if find_weights(source, role, file=models[role].get("file"), download=False) == path:
                return source
        except UserError:
            continue
    return path


def show(models: Mapping[str, Any], roles: Sequence[str]) -> int:
    """Print every role (or those named) with its sources and where it is."""
    from jointdreamer.models.weights import ROLES, is_remote, sources

    for role in roles or pick(["all"], models):
        about, path = ROLES[role], here(models, role)
        use = f"energy={'|'.join(about.needed_by)}" if about.needed_by else "registered; nothing reads it yet"
        print(f"{role}: {about.title}; {use}")
        print(f"    {f'at hand: {path}' if path else 'not on this machine'}")
        listed = sources(models[role]["source"], role)
        if any(map(is_remote, listed)):
            print(f"    licence: {about.licence}; download: {size(about.gigabytes)}")
        for source in listed:
            print(f"    source: {source} {models[role].get('file') or ''}".rstrip())
    return 0


def size(gigabytes: float | None) -> str:
    """A download's size in words."""
    return "size not known" if gigabytes is None else f"about {gigabytes:g} GB"


def prefetch(models: Mapping[str, Any], roles: Sequence[str]) -> int:
    """Bring the roles here: those named, or those that an energy reads."""
    from jointdreamer.models.checkpoint import PICKLES, read_checkpoint
    from jointdreamer.models.weights import ROLES

    for role in roles or [role for role in pick(["all"], models) if ROLES[role].needed_by]:
        about = ROLES[role]
        if here(models, role) is None:
            print(f"{role}: {about.title}, {size(about.gigabytes)}, licence {about.licence}", flush=True)
        path = place(models, role, download=True)
        if path.is_file() and path.suffix in PICKLES:
            read_checkpoint(path)  # once: the next reader takes the safetensors
        print(f"{role}: {path}", flush=True)
    return 0


def check(models: Mapping[str, Any], roles: Sequence[str]) -> int:
    """Check the roles named, or all that are at hand; raises UserError for the first that an energy would trip over."""
    from jointdreamer.files import sha256
    from jointdreamer.models.checkpoint import PICKLES, read_checkpoint
    from jointdreamer.models.weights import ROLES, damaged, known_checksums, lacking

    for role in roles or pick(["all"], models):
        path = here(models, role)
        if path is None:
            if role in roles:
                place(models, role)  # says where it was looked for
            print(f"{role}: not on this machine" + ("" if ROLES[role].needed_by else " (nothing reads it yet)"))
            continue
        fix = f"remove it and run `python -m jointdreamer.weights prefetch {role}`"
        if path.is_dir() and (parts := lacking(path, ROLES[role].needs)):
            raise UserError(f"{role}: there are no weights in {', '.join(parts)}; {fix}")
        if wrong := damaged(path):
            raise UserError(f"{role}: {wrong}; {fix}")
        if path.is_file() and path.suffix in PICKLES:
            read_checkpoint(path)
        known = known_checksums(source_of(models, role, path), path)
        for file, wanted in known.items():
            if (found := sha256(file)) != wanted:
                raise UserError(f"{role}: wrong checksum: {file} has sha256 {found}, wanted {wanted}; {fix}")
        print(f"{role}: {path} is whole; {f'sha256 right of {len(known)} files' if known else 'no sha256 is known'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
