"""What a page or a Markdown document consists of, as a browser or a Markdown renderer sees it."""

from __future__ import annotations

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
