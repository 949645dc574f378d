"""What only a rendered page shows: axe-core's rules of WCAG A and AA, nothing wider than the screen, nothing that runs.

Pages are looked at light and dark, on a wide screen and on a phone. They come from a function, without a server.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.support.browser import open_page
from tests.support.fake_run import image

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

ORIGIN = "http://testserver"  # the host name of Starlette's TestClient
WIDTHS_PX = (1280, 390)
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
RUN = """async (tags) => (await axe.run(document, {runOnly: tags, resultTypes: ["violations"]})).violations
  .flatMap((rule) => rule.nodes.map((node) => `${rule.id}: ${node.target} ${node.failureSummary} ${node.html}`))"""

WIDE = """() => [...document.body.querySelectorAll("*")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
  .slice(-3).map((e) => e.outerHTML.slice(0, 150))"""


@contextmanager
def page_of(chromium: str, send: Callable[..., Any]) -> Iterator[tuple["Page", list[str]]]:
    """A browser's page whose requests a function answers, and what went wrong in it: dialogs and console errors.

    Args:
        chromium: path of the browser, from the fixture of that name.
        send: method, address, headers and content -> answer with status_code, headers and content: TestClient.request.
    """

    def answer(route: "Route") -> None:
        asked = route.request
        headers = {name: asked.headers[name] for name in ("accept", "content-type") if name in asked.headers}
        more = {"headers": headers, "content": asked.post_data_buffer, "follow_redirects": True}
        given = send(asked.method, asked.url.removeprefix(ORIGIN), **more)
        route.fulfill(status=given.status_code, headers=dict(given.headers), body=given.content)

    with open_page(chromium, viewport={"width": WIDTHS_PX[0], "height": 900}) as page:
        problems: list[str] = []
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.route("**/*", answer)
        yield page, problems


def faults_of(page: "Page") -> list[str]:
    """What a rendered page breaks, in each colour scheme at each width; it may be shown from any address."""
    from axe_playwright_python.base import AXE_SCRIPT

    page.evaluate(AXE_SCRIPT)
    faults: list[str] = []
    for width in WIDTHS_PX:
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            faults += [f"{width} px, {scheme}: {fault}" for fault in page.evaluate(RUN, WCAG)]
        if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
            faults.append(f"{width} px: the page is {wide} px wide: {page.evaluate(WIDE)}")
    return faults


def assert_rendered_well(chromium: str, send: Callable[..., Any], addresses: Iterable[str]) -> None:
    """Open each address and look at the page; all faults of all pages are told at once.

    Raises:
        AssertionError: a page breaks a rule, is too wide, shows a dialog or logs an error.
    """
    with page_of(chromium, send) as (page, problems):
        faults: list[str] = []
        for address in addresses:
            shown = page.goto(f"{ORIGIN}{address}")
            if shown and not shown.ok:  # Chromium logs the status of a page that says that there is none
                problems.clear()
            faults += [f"{address}: {fault}" for fault in (*faults_of(page), *problems)]
            problems.clear()
    assert faults == [], "\n".join(faults)


def answers_from(pages: Mapping[str, str]) -> Callable[..., Any]:
    """A function for `assert_rendered_well` that answers with these pages, and with an image for every other address.

    Args:
        pages: address -> HTML.
    """

    def send(method: str, address: str, **_: Any) -> Any:
        page = pages.get(address)
        kind = "image/jpeg" if page is None else "text/html; charset=utf-8"
        content = image(1) if page is None else page.encode()
        return SimpleNamespace(status_code=200, headers={"content-type": kind}, content=content)

    return send
