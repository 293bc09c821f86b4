"""Headless Chromium, and a playground in a separate process, for tests of the page in a browser."""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    "--disable-gpu",
    "--disable-background-networking",  # no requests of the browser itself
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # requests to other hosts fail, and so does the test, even with a network
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
# the command, in a process that reports every connection and name lookup outside this machine
SERVER = """
import sys

def watch(event, args):
    if event == "socket.connect":
        where = args[1]
    elif event == "socket.getaddrinfo":
        where = args[0]
    else:
        return
    host = where[0] if isinstance(where, tuple) else where
    if host not in (None, "127.0.0.1", "localhost", "::1") and not str(host).startswith("/"):
        print("OUTSIDE", event, where, file=sys.stderr, flush=True)

sys.addaudithook(watch)
sys.argv[0] = "torch-dropblock"
from torch_dropblock.__main__ import main
main()
"""


class Server:
    def __init__(self, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, "playground", "--no-open", *map(str, arguments)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.said = []
        self.listener = threading.Thread(target=lambda: self.said.extend(self.process.stderr))
        self.listener.start()
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        self.url = found and found[0]

    def interrupt(self, signal):
        """End the server; return its exit code and its standard error."""
        self.process.send_signal(signal)
        code = self.process.wait(20)
        self.listener.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return code, "".join(self.said)


@contextmanager
def chromium():
    """Start a browser, or skip the test if none is installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright to drive a browser with")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS + root)
        yield browser
        browser.close()


class Visitor:
    """A browser window with the page, and the list of its errors.

    Windows share a profile, whose cache makes the page load in half the time, unless one is `apart` or has options.
    """

    def __init__(self, browser, url, apart=False, **options):
        self.shares = not (apart or options)
        if self.shares and browser.contexts:
            self.context = browser.contexts[0]
        else:
            self.context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
            self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.wrong = []
        self.page.on("console", lambda said: said.type == "error" and self.wrong.append(f"console: {said.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("response", lambda got: got.status >= 400 and self.wrong.append(f"{got.status} {got.url}"))
        self.page.on("request", self._check)
        self.page.on("requestfailed", self._failed)
        self.page.on("websocket", lambda socket: self._check(socket))
        self.url = url
        self.page.goto(url)
        for part in ("#mask img", "#curve", "#code .cm-line >> nth=0", "#schedule"):
            self.page.locator(part).wait_for()

    def _check(self, request):
        if not request.url.startswith((f"{self.url}/", "data:", "blob:")):
            self.wrong.append(f"request to {request.url[:200]}")

    def _failed(self, request):
        # the page closes these streams itself: answers when complete, heartbeats when the page is left
        stream = re.search("/gradio_api/(queue/data|heartbeat/)", request.url)
        if not (stream and request.failure == "net::ERR_ABORTED"):
            self.wrong.append(f"{request.failure} {request.url[:200]}")

    def close(self):
        (self.page if self.shares else self.context).close()

    def numbers(self):
        """Return the table of numbers, by name."""
        return dict(
            zip(
                self.page.locator("#numbers dt").all_inner_texts(),
                self.page.locator("#numbers dd").all_inner_texts(),
                strict=True,
            )
        )

    def noted(self, section):
        return self.page.locator(f"#{section} .note").inner_text().replace("\N{NO-BREAK SPACE}", " ")

    def picture(self, where):
        """Return the pixels of the picture in this part of the page."""
        source = self.page.locator(f"{where} img").first.get_attribute("src")
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        return np.array(Image.open(io.BytesIO(data)))

    def rendered(self, where):
        """Return a screenshot of this part of the page."""
        return np.array(Image.open(io.BytesIO(self.page.locator(where).screenshot())).convert("RGB"))

    def slide(self, control, value):
        self.page.locator(f"#{control} input[type=range]").fill(str(value))

    def choose(self, label):
        self.page.get_by_role("radio", name=label, exact=True).check()

    def copied(self):
        """Press the copy button of the code; return the content of the clipboard."""
        self.page.locator("#code button[aria-label=Copy]").click()
        return self.page.evaluate("navigator.clipboard.readText()")
