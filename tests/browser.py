"""Headless Chromium for tests of pages: a small client of its DevTools protocol, over a pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import TIMEOUT_S

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
"""Path of the browser; empty if it is not installed."""

_OPTIONS = (
    "--headless",
    "--no-first-run",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Tab:
    """One page of a browser.

    Args:
        to_browser: file descriptor for requests, each a JSON document that ends with a zero byte.
        from_browser: file descriptor of answers and events.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._number = to_browser, from_browser, 0
        self._rest = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        """All events so far."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            request["sessionId"] = self._session
        os.write(self._to, json.dumps(request).encode() + b"\0")
        while (message := self._read()).get("id") != self._number:
            self.events.append(message)
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def open(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Open a file, and wait until it has loaded.

        Args:
            path: of the HTML file.
            width: of the window in CSS pixels; below 500 it is a phone's.
            dark: whether the user prefers dark colours.
        """
        phone = width < 500
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=844 if phone else 900, deviceScaleFactor=1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in JavaScript, awaited if it is a promise."""
        done = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened, besides itself and what it contains."""
        asked = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [each["request"]["url"] for each in asked if each.get("type") != "Document"]
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG file."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def _read(self) -> dict[str, Any]:
        deadline_s = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select(
                [self._from], [], [], max(0.0, deadline_s - time.monotonic())
            )
            data = os.read(self._from, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)


@contextmanager
def opened_browser(folder: Path) -> Generator[Tab]:
    """A browser with an empty profile in a folder, and its page."""
    (from_test, to_browser), (from_browser, to_test) = os.pipe(), os.pipe()
    ends = from_test, to_test
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    words = [CHROMIUM, *_OPTIONS, *sandbox, f"--user-data-dir={folder}/profile"]
    # The browser reads requests from descriptor 3 and writes answers to 4.
    shell = ["bash", "-c", 'exec "${@:3}" 3<&"$1" 4>&"$2"', "bash", *map(str, ends)]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [*shell, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=ends
        )
    for end in ends:
        os.close(end)
    try:
        yield Tab(to_browser, from_browser)
    finally:
        os.close(to_browser)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser)
