"""A real vLLM server on this machine's CPU, for the contract test and the benchmark: started, waited for by its
progress, stopped.

Its start is imports: vLLM in two processes (on a CPU it always spawns the second), and the first time on a machine in a
third one, which looks at the model's class and remembers it in VLLM_CACHE_ROOT. `--enforce-eager` leaves out
compilation, `--skip-mm-profiling` a pass over the largest images there could be. On a busy machine the imports take
minutes (docs/decisions/0042), so no fixed time tells whether the server hangs: it is given up when none of its
processes has computed for IDLE_S, or after START_S whatever they do.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

START_S = 900.0  # s
IDLE_S = 120.0  # s
LOG_TAIL = 4000  # characters of the log in an error
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
FLAGS: tuple[str, ...] = (
    "--dtype",
    "float32",
    "--enforce-eager",
    "--skip-mm-profiling",
    "--max-model-len",
    "512",
    "--max-num-seqs",
    "64",
)
FLAGS += ("--kv-cache-memory-bytes", str(256 << 20), "--limit-mm-per-prompt", json.dumps({"image": 2, "video": 0}))
FLAGS += ("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}))


class ServerDidNotStart(Exception):
    """The server died, or does nothing any more; the message holds its log's end."""


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        url: ends in /v1.
        process: the one that was started.
        start_s: wall time until it answered, s.
    """

    url: str
    process: psutil.Process
    start_s: float

    def cpu_s(self) -> float:
        """CPU-seconds of its processes so far, the living ones."""
        return cpu_s_of(self.process)


def cpu_s_of(process: psutil.Process) -> float:
    """CPU-seconds of a process and its descendants so far; of those that ended, what they handed to a parent that
    waited.
    """
    total = 0.0
    try:
        for one in (process, *process.children(recursive=True)):
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
    except psutil.NoSuchProcess:
        pass
    return total


@contextmanager
def serving(python: str, model: str, log: Path, *, name: str = "tiny", flags: Sequence[str] = ()) -> Iterator[Server]:
    """Serve `model` under `name` with the vLLM of the interpreter `python`; what it says goes to `log`.

    Raises:
        ServerDidNotStart: it died, no process of it computed for IDLE_S, or START_S are over.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        "--served-model-name",
        name,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with open(log, "wb") as out:
        started = subprocess.Popen(
            [*command, *FLAGS, *flags], stdout=out, stderr=out, env=os.environ | ENVIRONMENT, start_new_session=True
        )
    process = psutil.Process(started.pid)
    try:
        url = f"http://127.0.0.1:{port}/v1"
        yield Server(url, process, _wait(started, process, f"{url}/models", log))
    finally:
        everyone = [process, *process.children(recursive=True)] if process.is_running() else []
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        for one in everyone:
            if one.is_running():
                one.kill()


def _wait(started: subprocess.Popen[bytes], process: psutil.Process, url: str, log: Path) -> float:
    """Wait until GET url is answered; s."""
    start = progress = time.monotonic()
    busiest = 0.0
    while True:
        try:
            if httpx.get(url, timeout=10).status_code == 200:
                return time.monotonic() - start
        except httpx.TransportError:
            pass
        now, spent = time.monotonic(), cpu_s_of(process)
        if spent > busiest:
            busiest, progress = spent, now
        problem = ""
        if started.poll() is not None:
            problem = f"it ended with exit code {started.returncode}"
        elif now - progress > IDLE_S:
            problem = f"no process of it has computed for {IDLE_S:.0f} s"
        elif now - start > START_S:
            problem = f"it does not answer after {START_S:.0f} s"
        if problem:
            raise ServerDidNotStart(
                f"vLLM's server: {problem} (wall {now - start:.0f} s, {busiest:.0f} CPU-s). "
                f"{log}:\n{log.read_text(errors='replace')[-LOG_TAIL:]}"
            )
        time.sleep(1)
