"""Waiting for a condition: as short as the machine allows, and never a bare number of seconds."""

import time
from collections.abc import Callable

LIMIT_S = 600.0  # far beyond what a busy machine needs: reached only when the condition never comes true


def wait_until(is_true: Callable[[], bool], what: str, *, poll_s: float = 0.02, limit_s: float = LIMIT_S) -> None:
    """Return as soon as the condition holds.

    Args:
        is_true: asked every `poll_s` seconds; raises where waiting has become pointless (a process has ended).
        what: the condition in words, for the error.
    Raises:
        AssertionError: it did not hold within `limit_s`.
    """
    end = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < end, f"not within {limit_s:.0f} s: {what}"
        time.sleep(poll_s)
