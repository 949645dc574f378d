"""What a site says about machine readers: robots.txt, X-Robots-Tag, meta robots, tdm-reservation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser

AGENT = "MegaPairs"  # the product token that robots.txt and X-Robots-Tag are matched with
META_BYTES = 64 * 1024  # of a page that is looked through for a meta tag
NO = ("noai", "noimageai", "noindex", "noimageindex", "none")  # directives that mean: not into a data set
AGENT_RULE = re.compile(r"^\s*([A-Za-z0-9_.\-]+)\s*:(.*)$", re.DOTALL)  # 'somebot: noindex, noai'
# directives that hold a colon themselves
AGENTLESS = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


def directive_in(values: Sequence[str]) -> str | None:
    """The first directive of X-Robots-Tag values (or of a meta tag's) that says no to us; those for other agents by
    name do not count.
    """
    for value in values:
        is_for_us = True
        for item in value.split(","):
            named = AGENT_RULE.match(item)
            if named and named[1].lower() not in AGENTLESS:
                is_for_us, item = named[1].lower() in (AGENT.lower(), "*"), named[2]
            if is_for_us and item.strip().lower() in NO:
                return item.strip().lower()
    return None


class _MetaRobots(HTMLParser):
    """Contents of <meta name="robots"> (or of our own name)."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "meta" and (found.get("name") or "").strip().lower() in ("robots", AGENT.lower()):
            self.values.append(found.get("content") or "")


def meta_directive(page: bytes) -> str | None:
    """The directive of a page's meta robots that says no, None when there is none."""
    parser = _MetaRobots()
    parser.feed(page[:META_BYTES].decode("utf-8", "replace"))
    return directive_in(parser.values)


def retry_after_s(value: str | None, now: float) -> float:
    """Seconds of a Retry-After header, a count or a date; 0 where it says nothing."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError):
        return 0.0
