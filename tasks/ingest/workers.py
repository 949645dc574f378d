"""Worker processes that decode: each under a memory limit and a deadline, so that no file can take the batch with it.

    python -m tasks.image_workers RULES_JSON MEMORY_MIB CPU_S        what a worker is started as; reads files from stdin, answers on stdout

A worker holds Pillow, OpenCV and numpy, never torch, no credential of its own and no path: it is handed bytes and hands
bytes back. Its address space is limited to what it has at start plus `memory_mib`, so a bomb meets MemoryError. The
deadline counts CPU time (ITIMER_PROF, whose default action ends the process even inside a decoder): a busy machine does
not make a good file late. A wall-clock limit stands behind it.

A worker that dies costs its file: that is tried once more in a new worker, then becomes a row, and the batch goes on.
Nothing a worker says is unpickled. Answers depend on the bytes and the rules alone, so neither the number of workers
nor their order shows.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import resource
import select
import signal
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tasks.ingest.normalize import NormalizedImage, Refusal, Rules, be_strict, read_image

ASK = struct.Struct(">Q?")  # bytes of the file, is_named_image
ANSWER = struct.Struct(">QQ")  # bytes of the JSON, bytes of the stored image
# a file may wait this much longer than its CPU deadline, and this time for the worker's start, before its worker counts
# as hung
WALL_FACTOR = 30
START_S = 120.0
MIB = 1 << 20
PIPE_BYTES = MIB  # what Linux lets everybody have; 64 KiB is its default


class Died(Exception):
    """A worker ended, or hung, over a file; args: signal or exit code (negative: signal), None when it hung."""


def read_exactly(stream: IO[bytes], count: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: the other side is gone.
    """
    content = stream.read(count) if count else b""
    if len(content) != count:
        raise EOFError
    return content


def widen(pipe: IO[bytes]) -> None:
    """Let a whole image lie in a pipe, so that the two processes take turns once a file; where the system does not
    allow it, more often.
    """
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class Worker:
    """One child process; used by one thread at a time."""

    def __init__(self, rules: Rules, memory_mib: int, cpu_s: float) -> None:
        arguments = [json.dumps(asdict(rules)), str(memory_mib), str(cpu_s)]
        root = str(Path(__file__).resolve().parents[2])
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {
            k: v
            for k, v in os.environ.items()
            if k in ("PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
        }
        self.wall_s = START_S + cpu_s * WALL_FACTOR
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tasks.ingest.workers", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders chatter there
            env={**environment, **threads, "PYTHONPATH": root},
        )
        assert self.child.stdin and self.child.stdout
        for pipe in (self.child.stdin, self.child.stdout):
            widen(pipe)
        self._answers = select.poll()
        self._answers.register(self.child.stdout, select.POLLIN)

    def ask(self, content: bytes, is_named_image: bool) -> NormalizedImage | Refusal:
        """The worker's answer.

        Raises:
            Died: it ended, or hung and was killed.
        """
        assert self.child.stdin and self.child.stdout
        try:
            self.child.stdin.write(ASK.pack(len(content), is_named_image))
            self.child.stdin.write(content)
            self.child.stdin.flush()
            if not self._answers.poll(self.wall_s * 1000):
                raise TimeoutError
            lengths = ANSWER.unpack(read_exactly(self.child.stdout, ANSWER.size))
            facts = json.loads(read_exactly(self.child.stdout, lengths[0]))
            stored = read_exactly(self.child.stdout, lengths[1])
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                self.child.kill()
            code = self.child.wait()
            raise Died(None if isinstance(error, TimeoutError) else code) from None
        return NormalizedImage.of(stored, facts) if stored else Refusal(**facts)

    def close(self) -> None:
        """End it."""
        for stream in (self.child.stdin, self.child.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.child.wait()


class ImageWorkers:
    """At most `count` workers, each started when it is first needed; `read` may be called from so many threads."""

    def __init__(self, rules: Rules, *, count: int, memory_mib: int, cpu_s: float) -> None:
        self.rules, self.memory_mib, self.cpu_s = rules, memory_mib, cpu_s
        # the one that worked last goes first: few files start few workers
        self._free: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._free.empty():
            if worker := self._free.get():
                worker.close()

    def pids(self) -> list[int]:
        """Process ids of the workers that run and wait; for measurements and tests."""
        return [worker.child.pid for worker in list(self._free.queue) if worker]

    def read(self, content: bytes, *, is_named_image: bool) -> NormalizedImage | Refusal:
        """As tasks.images.read_image, in a worker. What kills two workers is too_costly where the limits did it, else
        undecodable.
        """
        if not content:
            return read_image(content, is_named_image=is_named_image, rules=self.rules)
        worker = self._free.get()
        code: int | None = 0
        try:
            for _ in range(2):
                worker = worker or Worker(self.rules, self.memory_mib, self.cpu_s)
                try:
                    return worker.ask(content, is_named_image)
                except Died as died:
                    worker.close()
                    worker, code = None, died.args[0]
                    if code == -signal.SIGPROF:
                        break
        finally:
            self._free.put(worker)
        if code == -signal.SIGPROF:
            return Refusal("too_costly", f"not decoded within {self.cpu_s:g} CPU-seconds")
        if code is None or code == -signal.SIGKILL:
            return Refusal("too_costly", "the worker was killed over it, twice")
        return Refusal(
            "undecodable",
            f"the decoder crashed over it, twice ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})",
        )


def limit_memory(more_mib: int) -> None:
    """From here on this process may take so much more address space, MiB."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + more_mib * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(rules_json: str, memory_mib: str, cpu_s: str) -> None:
    """Answer until stdin ends."""
    if sys.platform == "linux":
        import ctypes

        # PR_SET_PDEATHSIG: of the thread that started it, which lives as long as the stage's pool
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    rules = Rules(**json.loads(rules_json))
    files, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not answer
    be_strict(rules)
    read_image(b"", is_named_image=True, rules=rules)  # the plugins are loaded before the limit counts
    limit_memory(int(memory_mib))
    while header := files.read(ASK.size):
        size, is_named_image = ASK.unpack(header)
        content = read_exactly(files, size)
        signal.setitimer(signal.ITIMER_PROF, float(cpu_s))
        found = read_image(content, is_named_image=is_named_image, rules=rules)
        signal.setitimer(signal.ITIMER_PROF, 0)
        stored = found.content if isinstance(found, NormalizedImage) else b""
        facts = json.dumps(found.facts() if isinstance(found, NormalizedImage) else asdict(found)).encode()
        answers.write(ANSWER.pack(len(facts), len(stored)) + facts + stored)
        answers.flush()
        del content, found


if __name__ == "__main__":
    main(*sys.argv[1:])
