"""A browser without a window, which spends its time on the pages and not on drawing them smoothly."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Why tests that need the browser are skipped without it.
REASON = "no Chromium on PATH: the UIs are not looked at (apt-get install chromium)"
#: Marks of files whose tests need the browser.
MARKS = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PROGRAM, reason=REASON),
]
PATIENCE = 60_000  # milliseconds; a busy machine's first page takes its time
#: Debian's script asks for a GPU to draw pages. Without a GPU, an emulated one takes as long as the pages themselves.
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-gpu-rasterization", "--disable-software-rasterizer", "--no-first-run",
    "--disable-background-networking", "--disable-sync", "--disable-component-update",
]  # fmt: skip
#: Run in each document before its own scripts: an animation, such as the wheel of a page that waits, is drawn sixty
#: times a second.
_WITHOUT_ANIMATIONS = """
const still = new CSSStyleSheet();
still.replaceSync('*, *::before, *::after { animation: none !important; transition: none !important }');
document.adoptedStyleSheets = [...document.adoptedStyleSheets, still];
"""


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """Run the browser while the block runs."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    """A user's session: cookies and storage of its own; ``options`` are those of `Browser.new_context`."""
    context = browser.new_context(
        **{"viewport": {"width": 1500, "height": 950}, "reduced_motion": "reduce"} | options
    )
    context.set_default_timeout(PATIENCE)
    context.add_init_script(_WITHOUT_ANIMATIONS)
    return context
