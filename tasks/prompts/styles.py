"""Styles of instructions, and numbered lists of them."""

from __future__ import annotations

PARTIAL_STYLES = ("short",)  # styles of texts that may state one change of several


def numbered(style: str) -> tuple[str, int]:
    """A style's own name and its number: ('short', 2) for `short 2`, a short text about the second difference; 1 where
    it has none.
    """
    name, _, number = style.rpartition(" ")
    return (name, int(number)) if name and number.isdigit() else (style, 1)
