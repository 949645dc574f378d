"""Commands that die by SIGKILL in their middle."""

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until


def kill_when(
    is_time: Callable[[], bool], command: Sequence[str], cwd: Path, *, with_children: bool = True, **options: Any
) -> None:
    """Start a command and kill it as soon as the condition holds.

    Args:
        is_time: the condition; asked every 2 ms.
        with_children: kill what it started too; else those must end by themselves.
        options: of subprocess.Popen.
    Raises:
        AssertionError: the command ended before the condition held.
    """
    process = subprocess.Popen(command, cwd=cwd, start_new_session=True, stdout=subprocess.DEVNULL, **options)

    def is_time_to_kill() -> bool:
        assert process.poll() is None, f"ended with {process.returncode} before it could be killed"
        return is_time()

    try:
        wait_until(is_time_to_kill, "the moment of the kill", poll_s=0.002)
    finally:
        if process.poll() is None:
            (os.killpg if with_children else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
