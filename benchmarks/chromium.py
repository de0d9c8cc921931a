"""Chromium without a window, driven over its DevTools protocol; no package beside the browser itself is needed.

The protocol's messages go through a pair of pipes (--remote-debugging-pipe: JSON, a zero byte after each).
"""

import base64
import itertools
import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 300  # seconds: drawing without a GPU on cores that others use takes what it takes
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # in a container, as root
    "--use-angle=swiftshader",  # WebGL without a GPU
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--mute-audio",
    "--remote-debugging-pipe",
)


def find() -> str | None:
    """The browser's path: $CHROMIUM, or the first of its names on the PATH; None without one."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. Every request it makes and every error it reports is in `requests` and `errors`."""

    def __init__(self, read: int, write: int) -> None:
        self.pipe, self.write, self.numbers, self.buffer = read, write, itertools.count(1), b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(read, selectors.EVENT_READ)
        self.session: str | None = None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict:
        """A command of the protocol and its result. Raises RuntimeError where the browser refuses it."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session and not method.startswith("Browser."):
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while True:
            answer = self.receive(end - time.monotonic())
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def receive(self, seconds: float) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            if not self.selector.select(max(0, end - time.monotonic())):
                raise TimeoutError("Chromium says nothing")
            block = os.read(self.pipe, 2**20)
            if not block:
                raise RuntimeError("Chromium is gone")
            self.buffer += block
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        event, params = message.get("method"), message.get("params", {})
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details["text"])))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(str([entry.get("value", entry.get("description")) for entry in params["args"]]))
        elif event == "Page.javascriptDialogOpening":
            self.errors.append(f"dialog: {params['message']}")
            number = next(self.numbers)
            accept = {"id": number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            os.write(self.write, json.dumps({**accept, "sessionId": self.session}).encode() + b"\0")
        return message

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise. Raises RuntimeError if it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE) -> float:
        """Wait until the expression is true; how many seconds that took. Raises TimeoutError."""
        start = time.monotonic()
        while not self.js(expression):
            if time.monotonic() - start > seconds:
                raise TimeoutError(f"{expression} is not true after {seconds} s; errors: {self.errors[:5]}")
            time.sleep(0.02)
        return time.monotonic() - start

    def open(self, path: Path) -> float:
        """Open a file and wait for its page to say that it is ready; how many seconds that took."""
        start = time.monotonic()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.documentElement?.dataset.ready === 'true' && document.readyState === 'complete'")
        return time.monotonic() - start

    def download_to(self, folder: Path) -> None:
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=False)

    def forget(self) -> None:
        """As if nothing had been open before: no storage of file:// pages, no requests or errors noted."""
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        self.call("Storage.clearDataForOrigin", origin="file://", storageTypes="all")
        self.requests.clear()
        self.errors.clear()

    def size(self, width: int, height: int, mobile: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def key(self, key: str) -> None:
        """Press and release a key, as the keyboard does: with its text where it has one."""
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        code = {"Enter": 13, "Backspace": 8, "ArrowLeft": 37, "ArrowRight": 39}.get(key, ord(key[0].upper()))
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path, full: bool = False) -> None:
        image = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]
        path.write_bytes(base64.b64decode(image))


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A browser of its own, with its profile in `folder`."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # the browser wants them as 3 and 4, which may be in use here: both are first moved out of the way
    ends = [os.dup2(to_browser[0], 210, inheritable=True), os.dup2(from_browser[1], 211, inheritable=True)]

    def place() -> None:
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    command = [str(find()), *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    process = subprocess.Popen(
        command, preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for end in (to_browser[0], from_browser[1], *ends):
        os.close(end)
    try:
        page = Page(from_browser[0], to_browser[1])
        yield page
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser[0])
        os.close(to_browser[1])


# how often a page asks for a WebGL context, counted from its first line on
COUNT_CONTEXTS = """
window.contexts = new Set();
for (const kind of [HTMLCanvasElement, window.OffscreenCanvas]) {
  const original = kind.prototype.getContext;
  kind.prototype.getContext = function (type, ...rest) {
    const context = original.call(this, type, ...rest);
    if (/webgl/.test(type) && context) window.contexts.add(context);
    return context;
  };
}
"""


def load_all(page: Page, seconds: float = PATIENCE) -> int:
    """Bring every object of an open report into view, one by one; how many models loaded. Raises TimeoutError."""
    page.js("void (window.boxes = [...document.querySelectorAll('.view')])")
    count = page.js("boxes.length")
    for number in range(count):
        page.js(f"boxes[{number}].scrollIntoView({{block: 'center', behavior: 'instant'}})")
        page.wait(f"boxes[{number}].classList.contains('loaded')", seconds)
    return count
