"""Processes of this machine, found by what they run."""

from __future__ import annotations

import contextlib
from pathlib import Path


def find_stages(folder: Path, stage: str = "") -> list[int]:
    """Process ids of `python -m tasks <stage>` that run in a folder below `folder`; of every stage when '' is asked."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            cwd = (entry / "cwd").resolve()
            is_stage = len(words) > 3 and words[1:3] == ["-m", "tasks"] and stage in ("", words[3])
            if is_stage and cwd.is_relative_to(folder.resolve()):
                pids.append(int(entry.name))
    return pids
