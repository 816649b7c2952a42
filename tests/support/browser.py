"""Debian's Chromium without a window, driven by its own protocol (Chrome DevTools Protocol) over a WebSocket."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
import re
import time
from pathlib import Path

from support.fetched import fetch_or_skip
from support.waiting import wait_until
from websockets.sync.client import connect

from virtserial.rig.cell import Cell
from virtserial.rig.programs import programs

WORDS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-default-browser-check",
    "--disable-renderer-backgrounding", "--disable-background-timer-throttling", "--disable-features=Translate",
    "--hide-scrollbars", "--remote-debugging-port=0", "--user-data-dir=/tmp/profile", "--remote-allow-origins=*",
)  # fmt: skip
START_TIME = 60
KEYS = {
    "Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), "ArrowDown": (40, ""), "ArrowUp": (38, ""),
    "ArrowLeft": (37, ""), "ArrowRight": (39, ""), "Backspace": (8, ""), " ": (32, " "),
}  # fmt: skip
CONTROL, SHIFT = 2, 8


@contextlib.contextmanager
def chromium(folder):
    """A Chromium that starts; yields a function that opens a page: (url, width, height, phone) -> Page."""
    root = fetch_or_skip(programs, "chromium", "fonts-dejavu-core").root
    (folder / "cell").mkdir()
    output = folder / "chromium.log"
    with Cell(root, folder / "cell", [], {}) as cell, contextlib.ExitStack() as stack:
        cell.start(["/usr/lib/chromium/chromium", *WORDS, "about:blank"], output)

        @functools.cache
        def control():
            found = wait_until(
                lambda: re.search(r"listening on (ws://127\.0\.0\.1:\d+)(/\S+)", output.read_text()), START_TIME,
                "chromium did not start",
            )  # fmt: skip
            return found[1], stack.enter_context(contextlib.closing(Cdp(found[1] + found[2])))

        def open_page(url, width=1280, height=800, phone=False):
            base, browser = control()
            # A context of its own has its own cookies.
            context = browser.call("Target.createBrowserContext")["browserContextId"]
            target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
            page = Page(f"{base}/devtools/page/{target}", url, width, height, phone)
            page.ends = functools.partial(browser.call, "Target.disposeBrowserContext", browserContextId=context)
            return page

        yield open_page


class Cdp:
    """A connection of the protocol."""

    def __init__(self, where):
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(connect(where, max_size=None, open_timeout=30, ping_interval=None))
        self._numbers = itertools.count(1)
        self.events = []

    def call(self, method, **parameters):
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def close(self):
        self._stack.close()


class Page(Cdp):
    """A page, as a person has it before them."""

    def __init__(self, where, url, width, height, phone):
        super().__init__(where)
        self.ends = lambda: None
        self.forgives = ""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height, phone)
        self.go(url)

    def go(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def resize(self, width, height, phone=False):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def run(self, script):
        """Evaluate an expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, (script, result["exceptionDetails"]["exception"])
        return result["result"].get("value")

    def wait(self, script, seconds=60):
        """Wait until an expression is true; return its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"{script}\n{self.text()}\n{self.complaints()}"
            time.sleep(0.05)
        return value

    def text(self):
        """What the page says."""
        return self.run("document.body.innerText")

    def screen(self):
        """The visible terminal's text."""
        return self.run("document.querySelector('.panel:not([hidden]) .xterm-rows, #player .xterm-rows')?.innerText")

    def expect(self, wanted, seconds=60):
        """Wait until the terminal shows a text."""
        deadline = time.monotonic() + seconds
        while wanted not in (shown := (self.screen() or "").replace("\xa0", " ")):
            assert time.monotonic() < deadline, f"{wanted!r} is not in {shown!r}\n{self.complaints()}"
            time.sleep(0.05)

    def click(self, selector):
        """Press the mouse on what a selector finds."""
        x, y = self.wait(
            f"(() => {{ const found = document.querySelector({selector!r}); if (!found) return null;"
            "found.scrollIntoView({block: 'nearest'}); const box = found.getBoundingClientRect();"
            "return box.width ? [box.x + box.width / 2, box.y + box.height / 2] : null; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text):
        """Type letters, one key at a time."""
        for letter in text:
            self.press("Enter" if letter in "\r\n" else letter)

    def press(self, key, modifiers=0):
        """Press and release a key."""
        code, text = KEYS.get(key, (ord(key.upper()) if key.isalnum() and len(key) == 1 else 0, key))
        words = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        if modifiers & CONTROL or not text:
            self.call("Input.dispatchKeyEvent", type="rawKeyDown", **words)
        else:
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **words)
        self.call("Input.dispatchKeyEvent", type="keyUp", **words)

    def escape(self, key):
        """The console's own keys: Ctrl-], then one more."""
        self.press("]", CONTROL)
        self.press(key)

    def close(self):
        """Close the page, and forget its cookies."""
        super().close()
        self.ends()

    def complaints(self):
        """What the page's scripts and its policy of content complained of."""
        self.run("0")
        found = []
        for event in self.events:
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
            if event["method"] == "Runtime.exceptionThrown":
                found.append(event["params"]["exceptionDetails"]["exception"].get("description", "?"))
        return found

    def requests(self):
        """The URLs that the page asked for."""
        self.run("0")
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path):
        """Save what is seen, as PNG."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
