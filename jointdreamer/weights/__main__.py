"""Fetch and check the pretrained models: python -m jointdreamer.weights list|prefetch|check [ROLE ...] [models=sd21]

    list        every role with its sources, licence and size, and where it is on this machine
    prefetch    download what energy=mvs reads (or another energy, or the roles named); the same command goes on after
                an interruption
    check       read what is at hand: whole, and of the sha256 that is known

The settings are train.py's: models.multi_view.source=FILE moves that role here, in the doctor and in a run.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jointdreamer.cli import main as cli
from jointdreamer.cli.messages import complain
from jointdreamer.errors import UserError, printable
from jointdreamer.terminal import safe_output

COMMANDS = ("list", "prefetch", "check")


def main(words: Sequence[str]) -> int:
    """Run the command; the exit status."""
    safe_output()
    if {"-h", "--help"} & set(words) or not words:
        print(__doc__)
        return 0 if words else 2
    try:
        command, *rest = words
        if command not in COMMANDS:
            raise UserError(f"unknown command {command!r}: choose one of {', '.join(COMMANDS)}")
        settings = [word for word in rest if "=" in word or word.startswith("-")]
        from jointdreamer.weights.roles import ROLES

        cfg = cli.composed("config", settings, models="sd21")
        roles = pick([word for word in rest if word not in settings], cfg["models"])
        if command == "prefetch" and not roles:
            roles = [role for role in pick(["all"], cfg["models"]) if cfg["energy"]["name"] in ROLES[role].needed_by]
        return {"list": show, "prefetch": prefetch, "check": check}[command](cfg["models"], roles)
    except UserError as error:
        return complain(error)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def pick(named: Sequence[str], models: Mapping[str, Any]) -> list[str]:
    """The roles named, or none. Raises UserError for one that these models do not have."""
    from jointdreamer.weights.roles import ROLES

    there = [role for role in ROLES if role in models]
    for role in named:
        if role not in (*there, "all"):
            raise UserError(f"unknown role {role!r} in models={models['name']}: choose all, {', '.join(there)}")
    return there if "all" in named else [role for role in there if role in named]


def here(models: Mapping[str, Any], role: str) -> Path | None:
    """Where a role's weights are on this machine, or None."""
    from jointdreamer.weights.find import locate

    try:
        return locate(models[role], role)
    except UserError:
        return None


def source_of(models: Mapping[str, Any], role: str, path: Path) -> Any:
    """Which of a role's sources `path` came from."""
    from jointdreamer.weights.find import sources

    listed = sources(models[role]["source"], role)
    return next((one for one in listed if here({role: {**models[role], "source": one}}, role) == path), path)


def show(models: Mapping[str, Any], roles: Sequence[str]) -> int:
    """Print every role (or those named) with its sources and where it is."""
    from jointdreamer.weights.find import gate, is_remote, sources
    from jointdreamer.weights.roles import about

    for role in roles or pick(["all"], models):
        known, path = about(role, models[role]), here(models, role)
        print(f"{role}: {known.title}; {known.use}")
        print(f"    {f'at hand: {printable(path)}' if path else 'not on this machine'}")
        listed = sources(models[role]["source"], role)
        if any(map(is_remote, listed)):
            print(f"    licence: {known.licence}; download: {size(known.gigabytes)}")
            print(f"    parts: {', '.join(dict.fromkeys(name.partition('/')[0] for name in known.needs))}")
        for source in listed:
            print(printable(f"    source: {source} {models[role].get('file') or ''}".rstrip()))
            if closed := gate(source):
                print(f"        {closed}")
    return 0


def size(gigabytes: float | None) -> str:
    """A download's size in words."""
    return "size not known" if gigabytes is None else f"about {gigabytes:g} GB"


def prefetch(models: Mapping[str, Any], roles: Sequence[str]) -> int:
    """Bring the roles here."""
    from jointdreamer.weights.checkpoint import PICKLES, read_checkpoint
    from jointdreamer.weights.find import locate
    from jointdreamer.weights.roles import about

    for role in roles:
        known = about(role, models[role])
        if here(models, role) is None:
            print(f"{role}: {known.title}, {size(known.gigabytes)}, licence {known.licence}", flush=True)
        path = locate(models[role], role, download=True)
        if path.is_file() and path.suffix in PICKLES:
            read_checkpoint(path)  # once: the next reader takes the safetensors
        print(f"{role}: {printable(path)}", flush=True)
    return 0


def check(models: Mapping[str, Any], roles: Sequence[str]) -> int:
    """Check the roles named, or all that are at hand; raises UserError for the first that an energy would trip over."""
    from jointdreamer.files import sha256
    from jointdreamer.weights.checkpoint import PICKLES, read_checkpoint
    from jointdreamer.weights.find import known_checksums, locate
    from jointdreamer.weights.folders import damaged, lacking
    from jointdreamer.weights.roles import about

    for role in roles or pick(["all"], models):
        path = here(models, role)
        if path is None:
            if role in roles:
                locate(models[role], role)  # says where it was looked for
            print(f"{role}: not on this machine ({about(role, models[role]).use})")
            continue
        fix = f"remove it and run `python -m jointdreamer.weights prefetch {role}`"
        if path.is_dir() and (parts := lacking(path, about(role, models[role]).needs)):
            raise UserError(f"{role}: there are no weights in {', '.join(parts)}; {fix}")
        if wrong := damaged(path):
            raise UserError(f"{role}: {wrong}; {fix}")
        if path.is_file() and path.suffix in PICKLES:
            read_checkpoint(path)
        known = known_checksums(source_of(models, role, path), path)
        for file, wanted in known.items():
            if (found := sha256(file)) != wanted:
                raise UserError(f"{role}: wrong checksum: {file} has sha256 {found}, wanted {wanted}; {fix}")
        checked = f"sha256 right of {len(known)} files" if known else "no sha256 is known"
        print(f"{role}: {printable(path)} is whole; {checked}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
