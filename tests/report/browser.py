"""Debian's chromium without a window, driven over its debugging pipe; nothing but the standard library.

The protocol: https://chromedevtools.github.io/devtools-protocol, one JSON object and a zero byte at a time.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


def find_browser() -> str:
    """Path of a browser; the test is skipped where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser ({', '.join(NAMES)}); install one: apt-get install chromium")
    return found


class Browser:
    """One page in a browser of its own; use it in a `with`.

    Attributes:
        requests: addresses that were asked for.
        problems: exceptions and error messages of the page.
    """

    def __init__(self, profile: Path, *, width: int = 1200, height: int = 900) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        words = [find_browser(), *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]

        def place_pipes() -> None:
            # The browser reads commands from descriptor 3 and answers on 4; both may be taken by the other's copy.
            high = os.dup2(to_browser, 200), os.dup2(from_browser, 201)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            words, preexec_fn=place_pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._rest, self._number, self._session = b"", 0, None
        self._answers: dict[int, dict] = {}
        self.requests: list[str] = []
        self.problems: list[str] = []
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._session = None
            self.send("Browser.close", timeout_s=5)
        except (TimeoutError, OSError):
            pass
        finally:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
            os.close(self._out)
            os.close(self._in)

    def send(self, method: str, timeout_s: float = 60, **params: Any) -> dict:
        """Ask for something and wait for the answer."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout_s
        while number not in self._answers:
            self._receive(end)
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, path: Path) -> None:
        """Open a file from disk and wait until it has been read."""
        self.send("Page.navigate", url=path.as_uri())
        self.wait_for("document.readyState === 'complete' && location.protocol === 'file:'")

    def run(self, expression: str) -> Any:
        """Value of an expression (of a promise: what it gives) in the page."""
        result = self.send("Runtime.evaluate", 300, expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = 120) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + timeout_s
        while not self.run(expression):
            assert time.monotonic() < end, f"{expression} did not come true; {self.problems}"
            self._receive_for(0.1)

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of an element, which is scrolled into sight."""
        box = self.run(
            f"(() => {{ const it = document.querySelector({json.dumps(selector)}); "
            "it.scrollIntoView({block: 'center', behavior: 'instant'}); const box = it.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press and release a key, such as Enter or ArrowDown."""
        codes = {"Enter": 13, "ArrowDown": 40, "ArrowUp": 38, "Tab": 9}
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **more)

    def screenshot(self, *, whole: bool = False) -> bytes:
        """What is seen as PNG; `whole` takes all of the page."""
        content = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        return base64.b64decode(content)

    def _receive_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self._receive(end)
            except TimeoutError:
                return

    def _receive(self, end: float) -> None:
        ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise TimeoutError("the browser does not answer")
        content = os.read(self._in, 1 << 20)
        if not content:
            raise OSError("the browser has ended")
        *messages, self._rest = (self._rest + content).split(b"\0")
        for message in map(json.loads, messages):
            self._take(message)

    def _take(self, message: dict) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        params = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message["method"] == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        elif message["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.problems.append(str(params["args"]))
