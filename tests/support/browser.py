"""A page of the installed Chromium, whose every step waits for its condition, for ten minutes at most."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

LIMIT_MS = 600_000
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


@contextmanager
def open_page(chromium: str, **options: Any) -> Iterator["Page"]:
    """An empty page, wide enough for Airflow's UI unless the options say otherwise.

    Args:
        chromium: path of the browser, from the fixture of that name.
        options: of Playwright's Browser.new_page.
    """
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=LIMIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS), timeout=LIMIT_MS)
        page = browser.new_page(**{"viewport": {"width": 1400, "height": 1400}, **options})
        page.set_default_timeout(LIMIT_MS)
        page.set_default_navigation_timeout(LIMIT_MS)
        yield page
        browser.close()
