"""Inspect files in threads: as many as what their bytes come from allows; results in the files' order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from tasks.ingest.inspect import BLOCK_FILES, InspectedFile
from tasks.sources.files import SourceFile

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
    files: Iterable[SourceFile],
    inspect: Callable[[SourceFile], InspectedFile],
    threads: Threads,
    wanted: Callable[[], int] = never_limited,
) -> Generator[InspectedFile, None, None]:
    """`inspect` applied to all files in threads; results in the files' order, at most BLOCK_FILES under way.

    Args:
        files: in the order of the results.
        inspect: called in threads.
        threads: how many.
        wanted: images that are still wanted, a count. Not many more files than that are begun, so that a run with a
            small limit asks no site for what it will not take.
    """
    with ThreadPoolExecutor(threads.local) as local, ThreadPoolExecutor(threads.remote) as remote:
        pending: deque[Future[InspectedFile]] = deque()
        try:
            for file in files:
                pending.append((remote if file.is_remote else local).submit(inspect, file))
                while len(pending) >= min(BLOCK_FILES, max(AHEAD_FILES, 2 * wanted())):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
