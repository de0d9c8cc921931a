"""Find pretrained weights: from the name of their source to a folder or file on this disk.

A role's sources stand in conf/models/*.yaml (`models.ROLE.source`): one, or a list that is tried in order. A source is
a local folder or file, a hub id "org/repo" or "org/repo@revision", or the https address of a file. What is local comes
first, then the hub's cache; the network only when HF_HUB_OFFLINE allows it, and after one short probe: left to
themselves the hub's clients retry every file for 23 seconds.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jointdreamer.errors import UserError
from jointdreamer.project import PACKAGE
from jointdreamer.weights.checkpoint import advice, cache_folder, file_keys, first_line
from jointdreamer.weights.download import download_hub_files, download_url, downloaded_url
from jointdreamer.weights.folders import NETWORKS, WEIGHTS, Distilled, lacking, refuse_distilled_folder, wanted_files
from jointdreamer.weights.roles import GATED, ROLES, SHA256, Role, about

HUB_ID = r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w.-]+))?"
PROBE_SECONDS = 7.0


def locate(settings: Mapping[str, Any], role: str, download: bool = False) -> Path:
    """Where a role's weights are, by its settings in conf/models. Raises UserError, one line, if nowhere."""
    file, known = settings.get("file"), about(role, settings)
    needs = None if file else known.needs
    return find_weights(settings["source"], role, file=file, needs=needs, download=download, known=known)


def find_weights(
    source: str | Path | Sequence[str],
    role: str,
    file: str | None = None,
    needs: Sequence[str] | None = None,
    hint: str | None = None,
    download: bool = True,
    known: Role | None = None,
) -> Path:
    """The local path of some weights: a folder, or one file.

    source: a local path ("jointdreamer/..." is also looked for beside the package), a hub id "org/repo" or
        "org/repo@revision", the https address of a file, or a list of these: first what is at hand, then downloads
    role: one of ROLES, or what it is for in words, e.g. "autoencoder"; opens the error
    file: the one file wanted from a folder or repository; ignored if the source is itself a file
    needs: files that a folder must contain; their folders are what is downloaded. By default the role's
    hint: what to do when nothing is found
    download: whether the network may be asked for what is neither local nor in a cache
    known: what is known of the role; by default what ROLES says

    Raises UserError, one line, with everything that was tried, and for a network that is distilled for one guidance.
    """
    known = known or ROLES.get(role)
    if needs is None:
        needs = known.needs if known and not file else ()
    wanted = [file] if file else list(needs)
    folder_only = bool(needs) and not file and not (known and known.one_file)
    all_sources = sources(source, role)
    tried: dict[str, list[str]] = {str(one): [] for one in all_sources}
    for one in all_sources:
        found = _at_hand(one, file, wanted, tried[str(one)], patient=download and not _offline())
        if found is not None:
            if folder_only and found.is_file():
                raise UserError(_not_a_folder(found, known.title if known else role, needs, file_keys(found)))
            refuse_distilled_folder(found, wanted)
            return found
    for one in all_sources:
        if folder_only and _is_url(one):
            raise UserError(_not_a_folder(one, known.title if known else role, needs, []))
        found = _from_network(one, file, wanted, tried[str(one)], download)
        if found is not None:
            return found
    raise UserError(_not_found(role, known, file, tried, hint))


def _not_found(
    role: str, known: Role | None, file: str | None, tried: Mapping[str, Sequence[str]], hint: str | None
) -> str:
    """What to say of weights that are nowhere: every source with why not, and what to do."""
    usual = (known.hint or f"name a folder or file, models.{role}.source=...") if known else "give a local folder"
    hint = hint or usual
    if hub := next(filter(None, map(_hub_id, tried)), None):
        repo, revision = hub
        words = ["hf download", repo, file, f"--revision {revision}" if revision else None]
        models = f" models={known.models}" if known and known.models else ""
        ours = f"`python -m jointdreamer.weights prefetch {role}{models}` or " if known else ""
        hint = f"run {ours}`{' '.join(filter(None, words))}` where there is a network, or {hint}"
    sources_tried = ", ".join(f"{source} ({'; '.join(reasons)})" for source, reasons in tried.items())
    return f"{known.title if known else role} not found: {sources_tried}; {hint}"


def _not_a_folder(source: str | Path, title: str, needs: Sequence[str], keys: Sequence[str]) -> str:
    """What to say of a file where a folder is wanted: what it holds, and what to do with it."""
    what = advice(keys).replace("from_single_file('FILE')", f"from_single_file({str(source)!r})")
    return f"{title}: {source} is one file: wanted a folder with {', '.join(needs)}{what}"


def sources(source: str | Path | Sequence[str], role: str) -> list[str | Path]:
    """A role's sources in their order. Raises UserError if there is none, or if one is no text."""
    listed: list[str | Path] = [source] if isinstance(source, str | Path) else [*(source or ())]
    if not listed or not all(isinstance(one, str | Path) and str(one).strip() for one in listed):
        raise UserError(
            f"{role}: source {source!r} names no weights: wanted a folder, a file, a hub id, or a list of them"
        )
    return listed


def is_remote(source: str | Path) -> bool:
    """Whether a source is a hub id or an address, not a path."""
    return _is_url(source) or _hub_id(source) is not None


def gate(source: str | Path) -> str | None:
    """What to do for a source that gives its weights only to an account, where there is no token; else None."""
    from huggingface_hub import get_token

    hub = _hub_id(source)
    return None if hub is None or hub[0] not in GATED or get_token() else _closed(hub[0])


def _closed(repo: str) -> str:
    """What to do for a gated repository without a token."""
    return f"gated: accept its licence on https://huggingface.co/{repo} and log in, `hf auth login` or HF_TOKEN=..."


def local_path(source: str | Path) -> Path | None:
    """The folder or file on this disk that a source names; None for one that names none."""
    return next((path for path in _local_candidates(source) if path.exists()), None)


def known_checksums(source: str | Path, path: Path) -> dict[Path, str]:
    """File -> the sha256 that it must have, of the weights that came from `source` to `path`: ours, else the hub's."""
    hub = _hub_id(source)
    if not hub:
        return {}
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.*") if file.suffix in WEIGHTS)
    ours, known = SHA256.get(hub[0], {}), {}
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        blob = file.resolve().name  # in the hub's cache a large file is called by its sha256
        if name in ours or re.fullmatch(r"[0-9a-f]{64}", blob):
            known[file] = ours.get(name, blob)
    return known


def _at_hand(source: str | Path, file: str | None, wanted: list[str], tried: list[str], patient: bool) -> Path | None:
    """The source on this disk; None, and why not in `tried`.

    patient: whether a download may complete what the hub's cache has only in part.
    """
    if _is_url(source):
        path = downloaded_url(str(source), cache_folder())
        if path is None:
            tried.append("not downloaded")
        return path
    for path in _local_candidates(source):
        if path.is_file():
            return path
        if path.is_dir():
            missing = [name for name in wanted if not (path / name).exists()]
            if not missing:
                return path / file if file else path
            refuse_distilled_folder(path, wanted)
            tried.append(f"folder {path} lacks {', '.join(missing)}")
        else:
            tried.append("no such folder" if _hub_id(source) else f"no file or folder {path}")
    hub = _hub_id(source)
    if not hub:
        return None
    from huggingface_hub import try_to_load_from_cache

    repo, revision = hub
    names = wanted or ["model_index.json"]
    for version in dict.fromkeys((revision, None)):  # what other programs fetched of its main branch is good enough
        for name in NETWORKS:
            if isinstance(config := try_to_load_from_cache(repo, name, revision=version), str):
                refuse_distilled_folder(Path(config).parents[1], wanted)
        cached = [try_to_load_from_cache(repo, name, revision=version) for name in names]
        if all(isinstance(path, str) for path in cached):
            first = Path(str(cached[0]))
            folder = first.parents[len(Path(names[0]).parts) - 1]
            if file or not (patient and lacking(folder, names)):
                return first if file else folder
    tried.append("not in the hub's cache")
    return None


def _from_network(source: str | Path, file: str | None, wanted: list[str], tried: list[str], download: bool) -> Any:
    hub = _hub_id(source)
    if not hub and not _is_url(source):
        return None
    if closed := gate(source):
        tried.append(closed)
    if not download:
        tried.append("not downloaded for a CPU, where such a model takes days")
        return None
    if _offline():
        tried.append("HF_HUB_OFFLINE is set")
        return None
    if closed:
        return None
    from huggingface_hub import get_token

    try:
        return _from_hub(*hub, file, wanted) if hub else download_url(str(source), cache_folder())
    except Distilled:
        raise
    except Exception as error:  # the hub's client lets the errors of its HTTP library through, whatever that is
        if hub and type(error).__name__ == "GatedRepoError":
            not_accepted = f"gated: this account has not accepted the licence on https://huggingface.co/{hub[0]}"
            tried.append(not_accepted if get_token() else _closed(hub[0]))
            return None
        kind = f"{'hub' if hub else 'download'}: {type(error).__name__}"
        tried.append(str(error) if isinstance(error, UserError) else f"{kind}: {first_line(error)}")
        return None


def _from_hub(repo: str, revision: str | None, file: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    version: dict[str, Any] = {"revision": revision} if revision else {}
    info = HfApi().model_info(repo, timeout=PROBE_SECONDS, **version)  # the probe
    checksums = SHA256.get(repo, {})
    if file:
        download_hub_files(repo, [file], revision, checksums)
        return Path(hf_hub_download(repo, file, **version))
    there = [one.rfilename for one in info.siblings or ()]
    for name in (name for name in NETWORKS if name in there and not {*NETWORKS}.isdisjoint(wanted)):
        config = Path(hf_hub_download(repo, name, **version))  # before gigabytes that are of no use
        refuse_distilled_folder(config.parents[1], wanted)
    patterns = wanted_files(there, wanted)
    download_hub_files(repo, [name for name in patterns if name.endswith(WEIGHTS)], revision, checksums)
    return Path(snapshot_download(repo, allow_patterns=patterns, **version))


def _local_candidates(source: str | Path) -> list[Path]:
    path = Path(source).expanduser()
    beside_package = PACKAGE.parent / path
    if path.parts[:1] == (PACKAGE.name,) and beside_package != path.absolute():
        return [path, beside_package]
    return [path]


def _is_url(source: str | Path) -> bool:
    return re.match(r"https?://", str(source)) is not None


def _hub_id(source: str | Path) -> tuple[str, str | None] | None:
    """(repository, revision) if the source is a hub id and not a path that is there."""
    found = re.fullmatch(HUB_ID, str(source))
    return (found[1], found[2]) if found and not Path(source).exists() else None


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
