"""Processes and their children, by Linux's /proc and prctl."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from pathlib import Path

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Run in a new child on Linux: it gets SIGTERM when the thread that started it ends.

    So a killed demo leaves no process behind.
    """
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def process_family(pids: set[int]) -> set[int]:
    """The processes, their children, and theirs, by /proc; without /proc the processes alone."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = entry.read_text()
            parents[int(entry.parent.name)] = int(text[text.rindex(")") + 2 :].split()[1])
    family = set(pids)
    while True:
        children = {pid for pid, parent in parents.items() if parent in family} - family
        if not children:
            return family
        family |= children


def is_alive(pid: int) -> bool:
    """Whether a process runs (one that has ended but was not collected counts as ended)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        return text[text.rindex(")") + 2] != "Z"
    except OSError:
        return False
