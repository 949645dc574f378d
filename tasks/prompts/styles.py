"""Styles of instructions. A style may end in a number: `short 2` is a short text about the second difference."""

from __future__ import annotations

PARTIAL_STYLES = ("short",)  # styles whose texts may state one of several changes


def split_style(style: str) -> tuple[str, int]:
    """A style's name and its number: ('short', 2) for `short 2`; the number is 1 where there is none."""
    name, _, number = style.rpartition(" ")
    return (name, int(number)) if name and number.isdigit() else (style, 1)


def is_partial(style: str) -> bool:
    """Whether texts of this style may state one of several changes."""
    return split_style(style)[0] in PARTIAL_STYLES
