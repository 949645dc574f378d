"""The fake server of tests/support/fake_server.py as a process: started, restarted, and what it was paid for."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.models.llm.base import LlmConfig
from tasks.models.llm.openai_server import ServedCaptioner

PROGRAM = Path(__file__).with_name("fake_server.py")


class FakeServer:
    """A server on one port; calling it starts the process (again) with options and returns its URL."""

    def __init__(self, log: Path) -> None:
        """`log`: where the server writes one line per request that it answered."""
        self.log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._running: list[subprocess.Popen[str]] = []

    def __call__(self, **options: Any) -> str:
        self.stop()
        command = [sys.executable, str(PROGRAM), str(self.port), str(self.log), json.dumps(options)]
        self._running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        out = self._running[0].stdout
        assert out and out.readline() == "ready\n"
        return f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        """Kill the process."""
        while self._running:
            process = self._running.pop()
            process.kill()
            process.communicate()

    def process(self) -> subprocess.Popen[str]:
        """The running process."""
        return self._running[0]

    def paid(self) -> list[str]:
        """The SHA-256 of every request that was answered, in order."""
        return self.log.read_text().split() if self.log.exists() else []

    def forget(self) -> None:
        """Empty the log."""
        self.log.unlink(missing_ok=True)

    def most_in_flight(self) -> int:
        """The most requests at once so far, a count."""
        return int(self.log.with_name(f"{self.log.name}.most").read_text())


@contextmanager
def fake_server(log: Path) -> Iterator[FakeServer]:
    """A server that is stopped at the end."""
    server = FakeServer(log)
    try:
        yield server
    finally:
        server.stop()


def served_model(url: str, *, tries: int = 8, **config: Any) -> ServedCaptioner:
    """A client of the model `tiny` that does not wait between tries."""
    config = {"max_new_tokens": 9, **config}
    return ServedCaptioner(LlmConfig("tiny", engine="openai", url=url, **config), tries=tries, sleep=lambda _: None)
