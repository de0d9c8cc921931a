"""What a browser says to a viser server and hears from it, without a browser."""

import io
import math
import socket
import struct
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

FOVY = math.radians(40)
FRONT = (0.5, -0.5, -0.5, 0.5)  # looks along -x, z up: right +y, down -z, forward -x


class FakeBrowser:
    """A websocket client of the server on `port` of this machine; `pictures` are the frames that `hear` heard."""

    def __init__(self, port: int, seconds: float = 20):
        import viser
        from websockets.sync.client import connect
        from websockets.typing import Subprotocol

        version = Subprotocol(f"viser-v{viser.__version__}")
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.socket = connect(f"ws://127.0.0.1:{port}", subprotocols=[version], max_size=None, proxy=None)
                break
            except OSError:
                assert time.monotonic() < deadline, "no server"
                time.sleep(0.002)
        self.pictures: list[np.ndarray] = []
        self.messages: list[dict[str, Any]] = []

    def look(self, wxyz: Any = FRONT, position: Any = (3.0, 0.0, 0.0), size: tuple[int, int] = (400, 300)) -> None:
        """Send the camera, as a browser does when it has moved."""
        self.say(
            type="ViewerCameraMessage", wxyz=wxyz, position=position, fov=FOVY, near=0.01, far=100.0,
            image_width=size[0], image_height=size[1], look_at=(0.0, 0.0, 0.0), up_direction=(0.0, 0.0, 1.0),
        )  # fmt: skip

    def say(self, **message: Any) -> None:
        import msgspec

        self.socket.send(msgspec.msgpack.encode(message))

    def hear(self, seconds: float = 0.3) -> list[dict[str, Any]]:
        """What comes until nothing has come for so long."""
        import msgspec
        import zstandard

        new: list[dict[str, Any]] = []
        while True:
            try:
                data = self.socket.recv(timeout=seconds)
            except TimeoutError:
                break
            assert isinstance(data, bytes)
            size = struct.unpack("<Q", data[8:16])[0]
            content = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data[16 : 16 + size]))
            new += content["messages"]
        for message in new:
            if message["type"] == "BackgroundImageMessage" and message["rgb_data"]:
                self.pictures.append(np.asarray(Image.open(io.BytesIO(message["rgb_data"])).convert("RGB")))
        self.messages += new
        return new

    def listen(self) -> None:
        """Take what comes, and look at nothing of it, until the server is gone."""
        for _ in self.socket:
            pass

    def close(self) -> None:
        self.socket.close()

    def vanish(self) -> None:
        """As a browser that is killed: no word of farewell."""
        with suppress(OSError):
            self.socket.socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "FakeBrowser":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
