"""Shared by the benchmarks: a fair environment for every process that is timed, and its peak memory."""

from __future__ import annotations

import os
import resource
import sys

SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def fair_environment(name: str) -> None:
    """Start `benchmarks.<name>` again without what slows the peer down, one thread for every library."""
    if any(v in os.environ for v in SLOWING) or any(os.environ.get(v) != "1" for v in THREADS):
        environment = {k: v for k, v in os.environ.items() if k not in SLOWING} | dict.fromkeys(THREADS, "1")
        os.execve(sys.executable, [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], environment)


def peak_mib() -> float:
    """Peak memory of this process so far, MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
