"""Worker processes that decode images, each under a memory limit and a deadline: no file can stop the batch.

    python -m tasks.ingest.workers RULES_JSON MEMORY_MIB CPU_S

starts one: it reads files on stdin and answers on stdout.

A worker loads Pillow, OpenCV and numpy, never torch. It gets no credentials and no paths: it receives bytes and returns
bytes. Its address space is limited to what it has at start plus MEMORY_MIB, so that a decompression bomb meets
MemoryError. The deadline counts CPU time (ITIMER_PROF, whose default action ends the process even inside a decoder), so
that a busy machine does not make a good file late. A wall-clock limit guards against a worker that hangs.

A file whose worker dies, or a large one that a used worker cannot decode, is tried once more in a new worker, then
rejected, and the batch goes on (see `ImageWorkers.read`). Nothing that a worker returns is unpickled. Answers depend
only on the bytes and the rules, so the number of workers, and what each decoded before, do not affect the result.
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
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tasks.ingest.normalize import NO_MEMORY, configure_decoders, normalize_image
from tasks.ingest.rules import NormalizationRules, NormalizedImage, Rejection

REQUEST = struct.Struct(">Q?")  # length of the file, bytes; is_named_image
ANSWER = struct.Struct(">QQQ?")  # length of the JSON, of the stored image, of its grid, bytes; is_spent
# Wall-clock limit of one file: the worker's start, plus this multiple of its CPU deadline.
WALL_FACTOR = 30
START_S = 120.0
MIB = 1 << 20
SPENT_MIB = 96  # by which an idle worker's address space may have grown since its start
# A worker that only tells whether memory was what a file lacked gets this many times the memory of others, and at least
# what the greediest decoder takes for the most pixels allowed: 22 bytes each, WebP with transparency.
ROOMY, ROOMY_BYTES_A_PIXEL = 4, 32
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PIPE_BYTES = MIB  # Linux's limit for unprivileged users; its default is 64 KiB
ROOT = Path(__file__).resolve().parents[2]  # the checkout, from which `-m tasks.ingest.workers` is found
# glibc gives freed memory back to the kernel at once, and every file's pixels would be new pages: 1 ms of CPU time
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * MIB), "MALLOC_TRIM_THRESHOLD_": str(48 * MIB)}
ENVIRONMENT = ("PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")  # variables a worker gets


class WorkerDied(Exception):
    """A worker ended or hung while it decoded a file.

    Attributes:
        exit_code: negative for a signal; None when it hung and was killed.
    """

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def read_exactly(stream: IO[bytes], count: int) -> bytes:
    """This many bytes of a stream.

    Raises:
        EOFError: the other side is gone.
    """
    content = stream.read(count) if count else b""
    if len(content) != count:
        raise EOFError
    return content


def enlarge_pipe(pipe: IO[bytes]) -> None:
    """Let a whole image fit into a pipe, so that the two processes switch once a file; where possible."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class Worker:
    """One child process; used by one thread at a time."""

    def __init__(self, rules: NormalizationRules, memory_mib: int, cpu_s: float) -> None:
        arguments = [json.dumps(asdict(rules)), str(memory_mib), str(cpu_s)]
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {name: value for name, value in os.environ.items() if name in ENVIRONMENT}
        self.is_spent = False  # its address space has grown for good: a new worker should take its place
        self.wall_s = START_S + cpu_s * WALL_FACTOR
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks.ingest.workers", *arguments],  # -P: no module from the current folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders print warnings there
            env={**environment, **one_thread, **KEEP_MEMORY, "PYTHONPATH": str(ROOT)},
        )
        assert self.child.stdin and self.child.stdout
        for pipe in (self.child.stdin, self.child.stdout):
            enlarge_pipe(pipe)
        self._poll = select.poll()
        self._poll.register(self.child.stdout, select.POLLIN)

    def normalize(self, content: bytes, is_named_image: bool) -> NormalizedImage | Rejection:
        """The worker's answer for one file.

        Raises:
            WorkerDied: it ended, or hung and was killed.
        """
        assert self.child.stdin and self.child.stdout
        try:
            self.child.stdin.write(REQUEST.pack(len(content), is_named_image))
            self.child.stdin.write(content)
            self.child.stdin.flush()
            if not self._poll.poll(self.wall_s * 1000):
                raise TimeoutError
            lengths = ANSWER.unpack(read_exactly(self.child.stdout, ANSWER.size))
            fields = json.loads(read_exactly(self.child.stdout, lengths[0]))
            stored, grid = (read_exactly(self.child.stdout, length) for length in lengths[1:3])
            self.is_spent = lengths[3]
        except TimeoutError:
            self.child.kill()
            self.child.wait()
            raise WorkerDied(None) from None
        except (EOFError, BrokenPipeError):
            raise WorkerDied(self.child.wait()) from None
        return NormalizedImage.from_json(stored, fields, grid) if stored else Rejection(**fields)

    def close(self) -> None:
        """End the process."""
        for stream in (self.child.stdin, self.child.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.child.wait()


class ImageWorkers:
    """At most `count` workers, each started when it is first needed; `read` may be called from that many threads."""

    def __init__(self, rules: NormalizationRules, *, count: int, memory_mib: int, cpu_s: float) -> None:
        self.rules, self.memory_mib, self.cpu_s = rules, memory_mib, cpu_s
        # last in, first out: few files start few workers
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._idle.empty():
            if worker := self._idle.get():
                worker.close()

    def pids(self) -> list[int]:
        """Process ids of the idle workers; for measurements and tests."""
        return [worker.child.pid for worker in list(self._idle.queue) if worker]

    def read(self, content: bytes, *, is_named_image: bool) -> NormalizedImage | Rejection:
        """As tasks.ingest.normalize.normalize_image, in a worker.

        The answer does not depend on what the worker did before: a large file that a used worker rejects, and any file
        that ended its worker, is tried once more in a new one. A file that ends two workers is rejected: `too_costly`
        when a limit ended them, else `undecodable`. So is a file that a new worker cannot decode for want of memory:
        not every decoder says so, and a last try with much more memory tells whether that was it.
        """
        if not content:
            return normalize_image(content, is_named_image=is_named_image, rules=self.rules)
        worker = self._idle.get()
        try:
            is_used = worker is not None
            worker, result = self._attempt(worker, content, is_named_image)
            if isinstance(result, Rejection) and result.is_costly and (is_used or worker is None):
                if worker:
                    worker.close()
                worker, result = self._attempt(None, content, is_named_image)
            if isinstance(result, Rejection) and result.is_costly and result.reason == "undecodable":
                result = self._name_shortage(content, is_named_image, result)
            return result
        finally:
            self._idle.put(worker)

    def _attempt(
        self, worker: Worker | None, content: bytes, is_named_image: bool
    ) -> tuple[Worker | None, NormalizedImage | Rejection]:
        """The answer of this worker, or of a new one, and the worker; None where it is not to be used again."""
        worker = worker or Worker(self.rules, self.memory_mib, self.cpu_s)
        try:
            result = worker.normalize(content, is_named_image)
        except WorkerDied as died:
            worker.close()
            return None, self._rejection(died.exit_code)
        if worker.is_spent:
            worker.close()
            return None, result
        return worker, result

    def _name_shortage(self, content: bytes, is_named_image: bool, rejection: Rejection) -> Rejection:
        """The rejection of a file that a new worker calls undecodable: `too_costly` where more memory decodes it."""
        memory_mib = max(self.memory_mib * ROOMY, self.rules.max_pixels * ROOMY_BYTES_A_PIXEL // MIB)
        worker = Worker(self.rules, memory_mib, self.cpu_s)
        try:
            result = worker.normalize(content, is_named_image)
        except WorkerDied:
            return rejection
        finally:
            worker.close()
        return Rejection("too_costly", NO_MEMORY) if isinstance(result, NormalizedImage) else rejection

    def _rejection(self, exit_code: int | None) -> Rejection:
        """Why a file is rejected whose worker ended with this code."""
        if exit_code == -signal.SIGPROF:
            return Rejection("too_costly", f"not decoded within {self.cpu_s:g} CPU-seconds, twice", is_costly=True)
        if exit_code is None or exit_code == -signal.SIGKILL:
            return Rejection("too_costly", "the worker was killed over it, twice", is_costly=True)
        ending = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
        return Rejection("undecodable", f"the decoder crashed over it, twice ({ending})", is_costly=True)


@cache
def _statm() -> int:
    """File descriptor of this process's memory figures, which stays open: it is read after every file."""
    return os.open("/proc/self/statm", os.O_RDONLY)


def address_space_mib() -> float:
    """Size of this process's address space, MiB; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0.0
    return int(os.pread(_statm(), 100, 0).split()[0]) * PAGE_BYTES / MIB


def limit_memory(more_mib: int) -> None:
    """Limit this process's address space to what it has now plus `more_mib` MiB, and write no core dumps."""
    if sys.platform == "linux":
        limit = int((address_space_mib() + more_mib) * MIB)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends, which lives as long as the stage."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def main(rules_json: str, memory_mib: str, cpu_s: str) -> None:
    """Answer requests until stdin ends."""
    die_with_parent()
    rules = NormalizationRules(**json.loads(rules_json))
    files, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may mix with the answers
    configure_decoders()
    normalize_image(b"", is_named_image=True, rules=rules)  # loads the plugins before memory is limited
    start_mib = address_space_mib()
    limit_memory(int(memory_mib))
    while header := files.read(REQUEST.size):
        size, is_named_image = REQUEST.unpack(header)
        content = read_exactly(files, size)
        signal.setitimer(signal.ITIMER_PROF, float(cpu_s))
        result = normalize_image(content, is_named_image=is_named_image, rules=rules)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if isinstance(result, NormalizedImage):
            stored, grid, values = result.content, result.grid, result.to_json(has_grid=False)
        else:
            stored, grid, values = b"", b"", asdict(result)
        fields = json.dumps(values).encode()
        del content, result
        is_spent = address_space_mib() - start_mib > SPENT_MIB
        answers.write(ANSWER.pack(len(fields), len(stored), len(grid), is_spent) + fields + stored + grid)
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
