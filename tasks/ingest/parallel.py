"""Inspect files in threads: as many as what their bytes come from allows; results in the files' order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from tasks.ingest.inspect import BLOCK_FILES, InspectedFile
from tasks.ingest.lanes import PlacedFile

REMOTE_THREADS = 32  # threads that wait for the network; limits per host hold beside (tasks/sources/web/hosts.py)
AHEAD_FILES = 16  # files under way, at least, when only a few more are wanted


@dataclass(frozen=True)
class Threads:
    """How many threads read and decode.

    Attributes:
        local: for files of this machine's disks: as many as decode, a count.
        remote: for files that come over a network, whatever their source's path is, a count.
    """

    local: int
    remote: int = REMOTE_THREADS


def never_limited() -> int:
    """The default of `map_in_order`: as many files under way as there may be."""
    return BLOCK_FILES


def map_in_order(
    files: Iterable[PlacedFile],
    inspect: Callable[[PlacedFile], InspectedFile],
    threads: Threads,
    wanted: Callable[[], int] = never_limited,
    ready: Callable[[PlacedFile], InspectedFile | None] | None = None,
) -> Generator[tuple[PlacedFile, InspectedFile, bool], None, None]:
    """`inspect` applied to all files in threads; results in the files' order, at most BLOCK_FILES under way.

    Args:
        files: in the order of the results.
        inspect: called in threads.
        threads: how many.
        wanted: images that are still wanted, a count. Not many more files than that are begun, so that a run with a
            small limit asks no site for what it will not take.
        ready: the result of a file that is inspected already, None for others; called in order.
    Yields:
        The file, its result, and whether the result is new.
    """
    with ThreadPoolExecutor(threads.local) as local, ThreadPoolExecutor(threads.remote) as remote:
        pending: deque[tuple[PlacedFile, InspectedFile | Future[InspectedFile]]] = deque()
        try:
            for placed in files:
                result: InspectedFile | Future[InspectedFile] | None = ready(placed) if ready else None
                if result is None:
                    result = (remote if placed.file.is_remote else local).submit(inspect, placed)
                pending.append((placed, result))
                while len(pending) >= min(BLOCK_FILES, max(AHEAD_FILES, 2 * wanted())):
                    yield _finished(*pending.popleft())
            while pending:
                yield _finished(*pending.popleft())
        finally:
            for _, result in pending:
                if isinstance(result, Future):
                    result.cancel()


def _finished(
    placed: PlacedFile, result: InspectedFile | Future[InspectedFile]
) -> tuple[PlacedFile, InspectedFile, bool]:
    return (placed, result.result(), True) if isinstance(result, Future) else (placed, result, False)
