"""A headless Chromium for tests, spoken to over its DevTools pipe: a page, what it logs, its mouse, a screenshot.

No driver or library is needed, so the tests run wherever a Chromium is installed (`apt-get install chromium`).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests import children

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """Return the path of a Chromium, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a headless Chromium; use it in a `with` block.

    Attributes:
        complaints: what the page's console and the browser had to complain about.
    """

    def __init__(self, executable: str, profile: Path, *, dark: bool = False) -> None:
        self.complaints: list[str] = []
        self._number = 0
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
        script = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'  # the numbers that Chromium expects
        command = ["bash", "-c", script, executable, *flags, "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._running = ExitStack()
        started = children.started(command, pass_fds=(to_browser, from_browser), **quiet)
        self._process = self._running.enter_context(started)
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._session: str | None = None

    def __enter__(self) -> Browser:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        size = {"width": 1280, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        return self

    def __exit__(self, *details: object) -> None:
        os.close(self._to)  # the browser ends with its pipe
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        os.close(self._from)
        self._running.close()

    def open(self, page: Path) -> None:
        """Show a file, and wait until it is loaded."""
        self.call("Page.navigate", url=page.resolve().as_uri())
        self._wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; what it throws is an assertion's failure."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, buttons: int = 0) -> None:
        """Move, press or release the mouse: `Moved`, `Pressed`, `Released`."""
        button = "none" if kind == "Moved" else "left"
        clicks = 0 if kind == "Moved" else 1
        event = {"type": f"mouse{kind}", "x": x, "y": y, "button": button, "buttons": buttons, "clickCount": clicks}
        self.call("Input.dispatchMouseEvent", **event)

    def click(self, selector: str) -> None:
        """Click in the middle of an element."""
        x, y = self.place(selector)
        self.mouse("Pressed", x, y, 1)
        self.mouse("Released", x, y)

    def place(self, selector: str, across: float = 0.5) -> tuple[float, float]:
        """Scroll an element into view and return a point in it, so far across from the left, half way down."""
        look = f"document.querySelector({json.dumps(selector)})"
        box = self.evaluate(f"{look}.scrollIntoView({{block: 'center'}}), {look}.getBoundingClientRect().toJSON()")
        return box["x"] + across * box["width"], box["y"] + box["height"] / 2

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        """Save a picture of the page."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(picture["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _wait_for(self, event: str) -> None:
        while self._receive().get("method") != event:
            pass

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._from, 1 << 16)
            assert chunk, "the browser has gone"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, parameters: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(parameters["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])
