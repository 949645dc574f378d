"""Great Expectations' Data Docs, readable without a network: GX's pages take their whole look from public CDNs.

A small stylesheet for the classes that they use (tasks/pages/templates/data_docs.css) goes first into each page's head,
so that Bootstrap, where it loads, comes after it and wins. The index builds its table with a script from a CDN, too: a
plain list of the checks is put above it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from tasks.pages.render import html

TIME = re.compile(r"^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)\S*Z$")  # of a validation, as in its folder's name


@functools.cache
def style() -> str:
    """The stylesheet's element."""
    return html("data_docs_style.html.j2").strip()


def with_style(page: str) -> str:
    """The page with the stylesheet at the head's start; unchanged where it is there already."""
    return page if style() in page else page.replace("<head>", "<head>" + style(), 1)


def with_checks(index: str, pages: Sequence[str]) -> str:
    """The index page with links to the pages of checks, suite by suite, the newest of a suite first.

    Args:
        index: the page's text.
        pages: paths from its folder, validations/<suite>/<run>/<time>/<page>.
    """
    ordered = sorted(pages, key=lambda path: path.split("/")[-2], reverse=True)
    ordered.sort(key=lambda path: path.split("/")[1])
    checks = [
        {"path": path, "suite": path.split("/")[1], "time": TIME.sub(r"\1-\2-\3 \4:\5 UTC", path.split("/")[-2])}
        for path in ordered
    ]
    return index.replace("<body>", "<body>" + html("data_docs_checks.html.j2", checks=checks), 1)


def make_readable(folder: Path) -> None:
    """Every page below the folder `with_style`, its index `with_checks`; done once, whatever the number of calls."""
    for path in folder.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        if style() in page:
            continue
        if path == folder / "index.html":
            checks = [p.relative_to(folder).as_posix() for p in folder.glob("validations/*/*/*/*.html")]
            page = with_checks(page, checks)
        path.write_text(with_style(page), encoding="utf-8")
