"""Debian's Chromium, driven by Playwright; tests are skipped with a reason where it is missing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT = 60_000
"""Milliseconds that a condition may take; tests wait for conditions and not for times."""


def chromium() -> str:
    """The path of the browser; skips the test where there is none."""
    pytest.importorskip("playwright", reason="Playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    return found


@contextmanager
def running_browser() -> Iterator[Any]:
    """A browser without a window."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, sync_playwright() as play:
        # --no-sandbox: containers that run as root have none
        browser = play.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            env={"HOME": home, "PATH": "/usr/bin:/bin"},
        )
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page that a test visits, in a browser profile of its own.

    Attributes:
      page: Playwright's page.
      faults: errors of the page's scripts, and requests that left the server.
    """

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **options)
        self.context.set_default_timeout(WAIT)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda request: self._check(request.url, address))
        self.page.goto(address)

    def ready(self) -> Any:
        """The page, once it knows what the server offers."""
        self.page.wait_for_selector("body[data-ready]")
        return self.page

    def _console(self, message: Any) -> None:
        # the browser itself logs every response of an error
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(message.text)

    def _check(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", f"blob:{address}")):
            self.faults.append(f"request to {url}")


def serious_problems(page: Any) -> list[str]:
    """What axe-core finds in the present state of a page and calls serious or critical."""
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    page.evaluate(axe)
    found = page.evaluate("axe.run()")
    return [
        f"{each['id']}: {node['html'][:200]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
