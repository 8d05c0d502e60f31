"""A browser for tests of pages: Chrome, Chromium or Edge, wherever this machine has one, else Playwright's own."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

VARIABLE = "CHROME_PATH"
COMMANDS = (
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "chromium",
    "chromium-browser",
    "microsoft-edge",
    "microsoft-edge-stable",
)
PLACES = (
    "/opt/google/chrome/chrome",
    "/opt/microsoft/msedge/msedge",
    "/snap/bin/chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
MISSING = (
    "no Chrome, Chromium or Edge on this machine; type: .venv/bin/playwright install --with-deps chromium"
    f" (or set {VARIABLE} to the program of one)"
)


def find_browser(of_playwright: str) -> str | None:
    """The program of a browser: this machine's, or Playwright's own if that has been downloaded, or None."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    found = [path for command in COMMANDS if (path := shutil.which(command))]
    found += [path for path in (*PLACES, of_playwright) if Path(path).is_file()]
    return next(iter(found), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser without a window that ends with the block; AssertionError where the machine has none."""
    with sync_playwright() as playwright:
        program = find_browser(playwright.chromium.executable_path)
        assert program, MISSING
        # Playwright starts it without its sandbox, which root and many containers cannot use.
        browser = playwright.chromium.launch(executable_path=program, args=["--disable-quic"])
        try:
            yield browser
        finally:
            browser.close()
