"""Shared by the benchmarks: a fair environment for every process that is timed, its peak memory, and the arguments."""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections.abc import Sequence
from typing import Any

SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def fair_environment(name: str) -> None:
    """Start `benchmarks.<name>` again without what slows the peer down, one thread for every library."""
    if any(v in os.environ for v in SLOWING) or any(os.environ.get(v) != "1" for v in THREADS):
        environment = {k: v for k, v in os.environ.items() if k not in SLOWING} | dict.fromkeys(THREADS, "1")
        os.execve(sys.executable, [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], environment)


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, quick: dict[str, Any]
) -> argparse.Namespace:
    """The parsed arguments; with `--quick` the values of `quick` stand in for those that are not given.

    Args:
        parser: of a benchmark; gets the option `--quick`.
        argv: arguments, or None for the process's own.
        quick: by name of the argument; small enough that the benchmark ends within seconds.
    """
    small = ", ".join(f"{name} {value}" for name, value in quick.items())
    parser.add_argument("--quick", action="store_true", help=f"ends within seconds, no figure to quote: {small}")
    if "--quick" in (sys.argv[1:] if argv is None else argv):
        parser.set_defaults(**quick)
    return parser.parse_args(argv)


def peak_mib() -> float:
    """Peak memory of this process so far, MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
