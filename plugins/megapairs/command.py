"""Run one stage as a command and read its report. Free of Airflow, so that any scheduler could use it.

A stage runs as a process in a process group of its own, so that it can be ended with everything that it started. Each
line that it prints goes to a callback at once; the last line of standard output is its StageReport as JSON; its exit
code says what to do next (tasks/errors.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LAST_LINES = 20  # of a failing stage, in the exception and in the mail, a count
KILL_AFTER_S = 10.0  # a stage that ignores SIGTERM for this long is killed


@dataclasses.dataclass
class Ending:
    """How a stage ended.

    Attributes:
        code: its exit code; -n when signal n ended it.
        report: its StageReport, None when it printed none.
        last_lines: at most LAST_LINES, those of standard error at the end.
    """

    code: int
    report: dict[str, Any] | None
    last_lines: list[str]


def stage_command(
    stage: str, item: str | None = None, part: str | None = None, more: tuple[str, ...] = ()
) -> list[str]:
    """The command line of a stage: the same as in dvc.yaml and in a terminal.

    Args:
        stage: its name.
        item: the encoder of embed and mine, the table of validate.
        part: 'i/n'.
        more: further arguments.
    """
    python = os.environ.get("TASKS_PYTHON") or sys.executable
    return [python, "-m", "tasks", stage, *([item] if item else []), *(["--part", part] if part else []), *more]


def parse_report(line: str) -> dict[str, Any] | None:
    """The line as a StageReport's mapping, or None when it is none."""
    if not line.startswith("{"):
        return None
    try:
        report = json.loads(line)
    except ValueError:
        return None
    return report if isinstance(report, dict) and "stage" in report else None


class StageProcess:
    """A running stage; `wait` to its end, or `kill` it with everything that it started."""

    def __init__(self, command: list[str], cwd: Path, environment: Mapping[str, str]) -> None:
        self.command = command
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )

    def wait(self, on_line: Callable[[str], None]) -> Ending:
        """Wait until the stage ends; every line but the report's goes to `on_line` as it is printed."""
        process = self._process
        assert process.stdout is not None and process.stderr is not None
        errors: deque[str] = deque(maxlen=LAST_LINES)
        lines: deque[str] = deque(maxlen=LAST_LINES)

        def read_errors(stream: Any) -> None:
            for line in stream:
                errors.append(line.rstrip())
                on_line(line.rstrip())

        reader = threading.Thread(target=read_errors, args=(process.stderr,), daemon=True)
        reader.start()
        report = None
        for line in process.stdout:
            parsed = parse_report(line.strip())
            if parsed is not None:
                report = parsed
            else:
                lines.append(line.rstrip())
                on_line(line.rstrip())
        code = process.wait()
        reader.join(timeout=5)
        return Ending(code, report, (list(lines) + list(errors))[-LAST_LINES:])

    def kill(self) -> None:
        """End the process group: SIGTERM, and SIGKILL where it still runs after KILL_AFTER_S."""
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, signal_number)
            except ProcessLookupError:
                return
            try:
                self._process.wait(timeout=KILL_AFTER_S)
                return
            except subprocess.TimeoutExpired:
                continue
