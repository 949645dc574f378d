"""What a page or a Markdown document consists of, as a browser or a Markdown renderer sees it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from markdown_it import MarkdownIt

VOID = {"meta", "img", "br", "link", "input", "hr"}
LOADS = {"script", "iframe", "object", "embed", "link", "base", "form"}


@dataclass
class Elements(HTMLParser):
    """All elements of a page and its text; raises where a tag is closed that is not open."""

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)  # tag, name, value
    text: str = ""
    open_tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser: `<path/>` of an SVG."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open_tags.pop()

    def handle_endtag(self, tag: str) -> None:
        """Called by the parser."""
        if not self.open_tags or self.open_tags.pop() != tag:
            raise AssertionError(f"</{tag}> at {self.getpos()}: not what is open")

    def handle_data(self, data: str) -> None:
        """Called by the parser."""
        self.text += data


def elements(page: str) -> Elements:
    """Parse a page.

    Raises:
        AssertionError: tags are not balanced.
    """
    parsed = Elements()
    parsed.feed(page)
    parsed.close()
    if parsed.open_tags:
        raise AssertionError(f"never closed: {parsed.open_tags}")
    return parsed


def assert_harmless(page: str, *, links: bool = False) -> Elements:
    """The page's elements, none of which runs or loads anything: no script, no handler, images only inside the page.

    Args:
        links: whether <a href> to other pages is expected.
    """
    parsed = elements(page)
    assert not LOADS & set(parsed.tags)
    assert not [a for a in parsed.attributes if a[1].startswith("on")]
    assert all(
        value.startswith(("data:image/jpeg;base64,", "cid:image-"))
        for _, name, value in parsed.attributes
        if name == "src"
    )
    targets = [value for _, name, value in parsed.attributes if name == "href"]
    assert links or all(target.startswith("#") for target in targets)
    assert not [t for t in targets if t.lower().startswith("javascript")]
    return parsed


@dataclass
class Fields(HTMLParser):
    """What a screen reader needs of a page: the faults that it would meet, in `faults`."""

    faults: list[str] = field(default_factory=list)
    headings: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    named: list[str] = field(default_factory=list)  # open elements whose name is their text, with the text so far

    def __post_init__(self) -> None:
        super().__init__()
        self._labels = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        values = {name: value or "" for name, value in attrs}
        where = f"<{tag} {values}> at {self.getpos()}"
        self._labels += tag == "label"
        is_field = tag in ("input", "select", "textarea") and values.get("type") != "hidden"
        if is_field and not self._labels and not values.get("aria-label"):
            self.faults.append(f"{where}: no label")
        if tag == "img" and "alt" not in values:
            self.faults.append(f"{where}: no alt")
        if tag == "th" and values.get("scope") not in ("col", "row"):
            self.faults.append(f"{where}: no scope")
        if int(values.get("tabindex") or 0) > 0:
            self.faults.append(f"{where}: changes the order of focus")
        if values.get("tabindex") == "0" and not (values.get("role") and values.get("aria-label")):
            self.faults.append(f"{where}: takes the focus without a name")
        if tag == "html" and not values.get("lang"):
            self.faults.append(f"{where}: no language")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "img" and self.named:
            self.named[-1] += values.get("alt", "")
        if tag in ("a", "button", "summary", "title"):
            self.named.append(values.get("aria-label", ""))

    def handle_endtag(self, tag: str) -> None:
        """Called by the parser."""
        self._labels -= tag == "label"
        if tag in ("a", "button", "summary", "title") and not self.named.pop().strip():
            self.faults.append(f"<{tag}> before {self.getpos()}: no name")

    def handle_data(self, data: str) -> None:
        """Called by the parser."""
        if self.named:
            self.named[-1] += data


def assert_accessible(page: str) -> None:
    """Labels, names, alternatives, headings in order, and focus in the order of the page (WCAG 2.2, level A and AA).

    What needs a rendered page is not looked at here: contrast is tests/pages/test_style.py's.
    """
    found = Fields()
    found.feed(page)
    found.close()
    assert found.faults == []
    assert found.headings[:1] == [1] and found.headings.count(1) == 1
    skipped = [pair for pair in zip(found.headings, found.headings[1:], strict=False) if pair[1] > pair[0] + 1]
    assert skipped == [], found.headings
    assert len(found.ids) == len(set(found.ids)), "an id twice"


def table_widths(text: str) -> list[list[int]]:
    """For each table of a Markdown document the count of cells of each row, the header first."""
    widths: list[list[int]] = []
    for token in markdown_tokens(text):
        if token.type == "table_open":
            widths.append([])
        elif token.type == "tr_open":
            widths[-1].append(0)
        elif token.type in ("th_open", "td_open"):
            widths[-1][-1] += 1
    return widths


def markdown_tokens(text: str) -> list[Any]:
    """All tokens of a Markdown document, block and inline, as GitHub's flavour reads it."""
    body = text.removeprefix("---\n").partition("\n---\n")[2] if text.startswith("---\n") else text
    out = []
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body):
        out += [token, *(token.children or [])]
    return out
