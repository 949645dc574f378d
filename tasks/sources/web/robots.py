"""Opt-out directives of a site for crawlers: X-Robots-Tag headers and meta robots tags; and its Retry-After header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser

AGENT = "MegaPairs"  # product token that robots.txt and X-Robots-Tag rules are matched against
META_BYTES = 64 * 1024  # of a page that is searched for a meta tag
OPT_OUT = ("noai", "noimageai", "noindex", "noimageindex", "none")  # directives that exclude a file from a data set
AGENT_RULE = re.compile(r"^\s*([A-Za-z0-9_.\-]+)\s*:(.*)$", re.DOTALL)  # 'somebot: noindex, noai'
# directives with a colon of their own, which is not the end of an agent's name
AGENTLESS = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


def find_opt_out(values: Sequence[str]) -> str | None:
    """The first opt-out directive of X-Robots-Tag values (or of a meta tag's), None without one.

    Directives addressed to other agents by name are ignored.
    """
    for value in values:
        is_for_us = True
        for item in value.split(","):
            rule = AGENT_RULE.match(item)
            if rule and rule[1].lower() not in AGENTLESS:
                is_for_us, item = rule[1].lower() in (AGENT.lower(), "*"), rule[2]
            if is_for_us and item.strip().lower() in OPT_OUT:
                return item.strip().lower()
    return None


class _MetaRobots(HTMLParser):
    """Contents of <meta name="robots"> and of <meta name="MegaPairs">."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "meta" and (values.get("name") or "").strip().lower() in ("robots", AGENT.lower()):
            self.values.append(values.get("content") or "")


def find_page_opt_out(page: bytes) -> str | None:
    """The first opt-out directive of a page's meta robots tags, None without one."""
    parser = _MetaRobots()
    parser.feed(page[:META_BYTES].decode("utf-8", "replace"))
    return find_opt_out(parser.values)


def parse_retry_after(value: str | None, now: float) -> float:
    """Seconds of a Retry-After header, which holds a count or a date; 0 where it is absent or unreadable.

    Args:
        value: of the header.
        now: the clock's time, s since the epoch.
    """
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError):
        return 0.0
