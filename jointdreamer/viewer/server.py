"""The web server of the viewer: viser, an extra of the package. On stdout it says nothing: that is for results."""

import errno
import ipaddress
import logging
import random
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any

from jointdreamer.arguments import Range
from jointdreamer.errors import UserError
from jointdreamer.runs.checkpoint import random_state, set_random_state

log = logging.getLogger(__name__)

TRIED_PORTS = 100  # above the one that is asked for


@dataclass(frozen=True)
class ViewerSettings:
    """Where the viewer is, and how fine it draws."""

    open: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, Range(0, 65535)] = 8080  # 0: any that is free
    resolution: Annotated[int, Range(32, 1024)] = 256  # pixels along a side of a picture, at most
    mesh_resolution: Annotated[int, Range(8, 256)] = 96


def check_viewer(settings: ViewerSettings) -> None:
    """Raise UserError, one line, where a viewer could not be opened: before anything is loaded."""
    if settings.open:
        if find_spec("viser") is None:
            raise UserError("the viewer needs viser, which is not installed: pip install -e '.[viewer]'")
        free_port(settings.host, settings.port)


def free_port(host: str, port: int) -> int:
    """`port`, or the next one that is free. Raises UserError for a host that is no address of this machine."""
    family = address_of(host)[0]
    wanted = range(port, min(port + TRIED_PORTS, 65536)) if port else ()
    for candidate in (*wanted, 0):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
            try:
                probe.bind((host, candidate))
                return probe.getsockname()[1]
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise UserError(
                        f"viewer.host={host}: {error.strerror or error}; wanted an address of this machine, 127.0.0.1"
                    ) from error
    raise UserError(f"viewer.port={port}: no port of {host} is free")


def address_of(host: str) -> tuple[socket.AddressFamily, str]:
    """The family and the number of a host's address. Raises UserError for a name without one."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"viewer.host={host}: no such address; wanted one of this machine, 127.0.0.1") from error
    return family, str(address[0])


@contextmanager
def random_untouched() -> Iterator[None]:
    """A block after which the global random generators stand where they stood: training goes on as if it had not been.

    rich and imageio draw from Python's when they are imported.
    """
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def open_server(host: str, port: int) -> Any:
    """A running viser.ViserServer; a line in the log says where it is. Raises UserError as `check_viewer` does."""
    address = ipaddress.ip_address(address_of(host)[1].partition("%")[0])
    free = free_port(host, port)
    with random_untouched():
        import rich
        import viser
        from websockets.asyncio import connection

        connection.random = random.Random()  # type: ignore[attr-defined]  # its pings would draw from training's
        rich.reconfigure(quiet=True)  # viser prints with it, on stdout
        logging.getLogger("websockets").setLevel(logging.CRITICAL)  # a traceback for each client that is no browser
        warnings.filterwarnings("ignore", "Queued a .* on a closed connection")  # a browser that is gone
        server = viser.ViserServer(host=host, port=free, label="JointDreamer", verbose=False)
        server.get_event_loop().set_exception_handler(_one_line)
        server.request_share_url = _refuse  # type: ignore[method-assign]  # would show the run to the whole internet
        server.gui.configure_theme(show_share_button=False, show_logo=False, control_width="large")
    found = server.get_port()
    if port and found != port:
        log.warning("viewer: port %d is in use, taking %d", port, found)
    shown = f"[{host}]" if ":" in host else host
    log.info("viewer: http://%s:%d", "localhost" if address.is_unspecified else shown, found)
    if not address.is_loopback:
        log.warning("viewer.host=%s: anyone on the network can look at this run, and pause it", host)
    return server


def _refuse(verbose: bool = True) -> None:
    return None


def _one_line(loop: Any, context: dict[str, Any]) -> None:
    """What a message that is no browser's provokes in viser's tasks."""
    log.debug("viewer: %s", context.get("exception") or context.get("message"))
