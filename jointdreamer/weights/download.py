"""Downloads that go on where they were interrupted, each file checked against the sha256 that is known of it.

The hub's own client begins a broken file again (2.4 gives every attempt a temporary file of its own, and removes it),
and compares sizes only. So the large files are put into its cache from here, under the names that it would give them;
the small ones, the links and the bookkeeping stay its business.
"""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from jointdreamer.errors import UserError
from jointdreamer.files import disk_full, is_disk_full, sha256

SHA256 = r"[0-9a-f]{64}"
TIMEOUT_SECONDS = 10.0


def download(
    url: str, target: Path, size: int | None = None, checksum: str | None = None, headers: dict[str, str] | None = None
) -> Path:
    """Bring `url` to the file `target`, which appears whole or not at all; what is there already is not asked for.

    size: bytes expected, if known. checksum: sha256 expected, if known.

    Raises UserError for content of another sha256 (which is removed) and on a full disk; the client's own errors when
    the connection fails for good: the part that came stays for the next attempt.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with WeakFileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return target
        done = part.stat().st_size if part.exists() else 0
        if size is not None and done > size:
            part.unlink()
            done = 0
        try:
            if size is None or done < size:
                with part.open("ab") as file:
                    http_get(url, file, resume_size=done, headers=headers, expected_size=size)
        except OSError as error:
            raise disk_full(target) if is_disk_full(error, target.parent) else error from error
        if checksum is not None and (found := sha256(part)) != checksum:
            part.unlink()
            raise UserError(f"wrong checksum: {url} has sha256 {found}, wanted {checksum}; removed, try another source")
        part.replace(target)
    return target


def download_url(url: str, folder: Path) -> Path:
    """One file by its address, kept in `folder` under its own name and its server's mark of this version."""
    from huggingface_hub import get_hf_file_metadata

    known = get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
    mark = re.sub(r"[^\w-]", "", known.etag or "")[:16]
    return download(known.location, url_folder(url, folder) / (mark or "file") / _name(url), known.size)


def downloaded_url(url: str, folder: Path) -> Path | None:
    """The newest file that `download_url` has brought from there, if it has."""
    files = [file for file in url_folder(url, folder).glob(f"*/{glob.escape(_name(url))}") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


def url_folder(url: str, folder: Path) -> Path:
    """Where the versions of a file lie."""
    return folder / "downloads" / re.sub(r"[^\w.-]+", "-", url.partition("://")[2])[-120:]


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


def download_hub_files(repo: str, files: Sequence[str], revision: str | None, checksums: dict[str, str]) -> None:
    """The large ones of a repository's `files` into the hub's cache; each must have the sha256 that the hub says.

    checksums: sha256 that a file must have whatever the hub says. Raises as `download`.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    for file in files:
        url = hf_hub_url(repo, file, revision=revision, endpoint=constants.ENDPOINT)
        known = get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
        if not re.fullmatch(SHA256, known.etag or ""):  # in the repository itself, and small
            continue
        if known.etag != checksums.get(file, known.etag):
            raise UserError(f"wrong checksum: {repo} offers {file} with sha256 {known.etag}, wanted {checksums[file]}")
        download(url, blobs / str(known.etag), known.size, known.etag, build_hf_headers())
