"""A page of the installed Chromium, whose every step waits for its condition, for ten minutes at most."""

from collections.abc import Iterator, Sequence
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


def start_from_form(chromium: str, url: str, credentials: tuple[str, str], dag_id: str,
                    fields: Sequence[tuple[str, str, str]]) -> None:  # fmt: skip
    """Start a run as a person does: log in, press Trigger, open the fields' sections, fill them in, press Trigger.

    Args:
        chromium: path of the browser.
        url: of Airflow.
        credentials: name and password.
        dag_id: whose run is started.
        fields: heading of the form's section, name of the field, what is typed into it.
    """
    from playwright.sync_api import expect

    user, password = credentials
    with open_page(chromium) as page:
        page.goto(f"{url}/dags/{dag_id}")
        page.fill("input[name=username]", user)
        page.fill("input[name=password]", password)
        page.click("button[type=submit]")
        page.wait_for_url(f"**/dags/{dag_id}")
        page.get_by_role("button", name="Trigger").first.click()
        dialog = page.get_by_role("dialog")
        expect(dialog.locator("input[name=element_limit]")).to_be_visible()
        for heading, name, text in fields:
            field = dialog.locator(f"input[name=element_{name}]")
            if not field.is_visible():
                dialog.get_by_role("button", name=heading).click()
            expect(field).to_be_visible()
            field.fill(text)
            field.press("Tab")
        dialog.get_by_role("button", name="Trigger", exact=True).click()
        expect(dialog).not_to_be_visible()
