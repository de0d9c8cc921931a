"""The lock of a run folder: one process at a time works in it."""

import errno
import logging
import os
from pathlib import Path

from jointdreamer.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: runs without the lock
    fcntl = None

log = logging.getLogger(__name__)


def lock(path: Path) -> int | None:
    """Lock `path/.lock` until `unlock` or the end of the process, however it ends."""
    handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise UserError(
                f"another process (pid {holder}) is working in {path}: wait for it, stop it, or choose another name=..."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            log.warning("%s cannot be locked (%s): take care to run only one process in it", path, error.strerror)
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle


def unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
