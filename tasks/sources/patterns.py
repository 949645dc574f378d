"""Patterns of paths, the same for folders, tars, tables and buckets, as a shell with globstar and braces reads them.

`*` and `?` stay within one folder, `**` goes through any number of folders, `[ab]` is one of these characters, `{a,b}`
one of these texts, `{000..099}` one of these numbers, with as many digits where one of the two begins with a zero.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from dataclasses import dataclass

WILDCARDS = re.compile(r"[*?\[{]")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Pattern:
    """A compiled pattern.

    Attributes:
        text: as it is written.
        regex: what a path must be, with one group for each range of numbers.
        ranges: lowest and highest number of each.
    """

    text: str
    regex: re.Pattern[str]
    ranges: tuple[tuple[int, int], ...]

    def matches(self, path: str) -> bool:
        """Whether a path matches as a whole."""
        if path == self.text:
            return True
        match = self.regex.fullmatch(path)
        return match is not None and all(
            number is None or low <= int(number) <= high
            for number, (low, high) in zip(match.groups(), self.ranges, strict=True)
        )

    def matches_or_holds(self, path: str) -> bool:
        """Whether a path, or a folder that it lies in, matches."""
        parts = path.split("/")
        return any(self.matches("/".join(parts[:end])) for end in range(len(parts), 0, -1))


def split_pattern(path: str) -> tuple[str, str]:
    """(the folders before the first wildcard, the pattern behind them); '' for a path without a wildcard."""
    found = WILDCARDS.search(path)
    if found is None:
        return path, ""
    folder = path[: found.start()].rpartition("/")[0]
    start = len(folder) + 1 if path[: found.start()].count("/") else 0
    return (folder or ("/" if path.startswith("/") else "")), path[start:]


def literal_start(pattern: str) -> str:
    """What every path that matches begins with."""
    found = WILDCARDS.search(pattern)
    return pattern if found is None else pattern[: found.start()]


@functools.cache
def compile_pattern(pattern: str) -> Pattern:
    """Compile a pattern; a brace or bracket that is not closed is itself."""
    ranges: list[tuple[int, int]] = []
    return Pattern(pattern, re.compile(_translate(pattern, ranges), re.DOTALL), tuple(ranges))


def _translate(pattern: str, ranges: list[tuple[int, int]]) -> str:
    out, at = [], 0
    while at < len(pattern):
        rest = pattern[at:]
        if rest.startswith("**/"):
            out.append("(?:[^/]+/)*")
            at += 3
        elif rest.startswith("**"):
            out.append(".*")
            at += 2
        elif rest[0] in "*?":
            out.append("[^/]*" if rest[0] == "*" else "[^/]")
            at += 1
        elif found := _RANGE.match(rest):
            low, high = found[1], found[2]
            is_padded = len(low) > 1 and low[0] == "0" or len(high) > 1 and high[0] == "0"
            out.append(rf"(\d{{{max(len(low), len(high))}}})" if is_padded else r"(0|[1-9]\d*)")
            ranges.append((min(int(low), int(high)), max(int(low), int(high))))
            at += found.end()
        elif rest[0] == "[" and (end := rest.find("]", 2)) > 0:
            out.append(f"(?!/){fnmatch.translate(rest[: end + 1])[4:-3]}")  # within its (?s:...)\Z
            at += end + 1
        elif rest[0] == "{" and (parts := _alternatives(rest)) is not None:
            texts, length = parts
            out.append("(?:" + "|".join(_translate(text, ranges) for text in texts) + ")")
            at += length
        else:
            out.append(re.escape(rest[0]))
            at += 1
    return "".join(out)


def _alternatives(text: str) -> tuple[list[str], int] | None:
    """(the texts between the commas of the brace that a text begins with, its length); None where it is not closed."""
    depth, start, texts = 0, 1, []
    for at, char in enumerate(text):
        if char == "{":
            depth += 1
        elif char == "," and depth == 1:
            texts.append(text[start:at])
            start = at + 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return ([*texts, text[start:at]], at + 1) if texts else None
    return None
