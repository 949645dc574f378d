"""Mine in parts against mine in one process: CPU-seconds and memory of the parts, candidates on disk, merge, select.

    python -m benchmarks.parts [--n 200000] [--parts 8] [--neighbours 50] [--memory-mib 1024] [--folder .run/benchmarks]

One encoder, one thread, one batch of n drawn vectors (512 numbers each) in a store in a temporary folder. The whole and
every part are processes of their own, as Airflow starts them. Checked: the files of both are the same bytes.

The last line is JSON: n, dims, parts, whole (cpu_s, peak_mib), part (cpu_s and peak_mib, the largest of all, and
total_cpu_s), merge (cpu_s, peak_mib), candidates_mib on disk before the merge, select (cpu_s, peak_mib), is_equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import fair_environment, parse_arguments, peak_mib
from benchmarks.weeks import BATCHES, fill, params_of
from tasks.config import Params
from tasks.store import Store

LOW, HIGH = 0.8, 0.96


def settings(neighbours: int, memory_mib: int) -> Params:
    """The parameters of every process."""
    params = params_of(BATCHES[0], neighbours, LOW, HIGH)
    return params.model_copy(update={"mine": params.mine.model_copy(update={"memory_mib": memory_mib})})


def work(stage: str, root: Path, part: tuple[int, int] | None, params: Params) -> dict[str, float]:
    """Run one stage, or a part of it, in this process; its CPU-seconds without imports, and its peak memory."""
    import torch  # noqa: F401 - an import is no part of the work

    from tasks.mine import stage as mine
    from tasks.select import stage as select

    start = time.process_time()
    if stage == "mine":
        mine.run(params, Store(root), "semantic", part=part)
    else:
        select.run(params, Store(root))
    return {"cpu_s": round(time.process_time() - start, 2), "peak_mib": peak_mib()}


def in_process(args: argparse.Namespace, stage: str, root: Path, part: int = 0) -> dict[str, float]:
    """`work` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.parts", "--work", stage, "--root", str(root), "--part", str(part)]
    for name in ("parts", "neighbours", "memory_mib"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    print(f"{stage} {f'part {part}' if part else root.name}: {figures}", flush=True)
    return figures


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of the files of neighbours, by name."""
    files = sorted((root / "data" / "neighbours" / "semantic").glob("*.parquet"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def measure(args: argparse.Namespace) -> dict[str, object]:
    """The benchmark's figures."""
    from benchmarks.vectors import stored

    vectors = stored("clustered", args.n, args.folder)
    with tempfile.TemporaryDirectory() as folder:
        whole, parted = Path(folder) / "whole", Path(folder) / "parts"
        for root in (whole, parted):
            fill(Store(root), BATCHES[0], vectors, 0)
        alone = in_process(args, "mine", whole)
        parts = [in_process(args, "mine", parted, number) for number in range(1, args.parts + 1)]
        candidates = sum(path.stat().st_size for path in (parted / ".run").rglob("*.npy"))
        merge = in_process(args, "mine", parted)
        is_equal = digests(whole) == digests(parted) != {}
        selected = in_process(args, "select", parted)
    total = round(sum(part["cpu_s"] for part in parts), 2)
    largest = {name: max(part[name] for part in parts) for name in ("cpu_s", "peak_mib")}
    figures: dict[str, object] = {"n": args.n, "dims": int(vectors.shape[1]), "parts": args.parts, "whole": alone}
    figures |= {"part": {**largest, "total_cpu_s": total}, "merge": merge, "select": selected}
    return figures | {"candidates_mib": round(candidates / 2**20, 1), "is_equal": is_equal}


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measure, print, return the last line's object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--neighbours", type=int, default=50)
    parser.add_argument("--memory-mib", type=int, default=1024, help="mine.memory_mib")
    parser.add_argument("--folder", type=Path, default=Path(".run/benchmarks"), help="where the vectors are kept")
    for name in ("--work", "--root", "--part"):  # of a process that does one step
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parse_arguments(parser, argv, {"n": 900, "parts": 3, "neighbours": 4})
    if args.work:
        part = (int(args.part), args.parts) if int(args.part) else None
        figures: dict[str, object] = dict(
            work(args.work, Path(args.root), part, settings(args.neighbours, args.memory_mib))
        )
    else:
        figures = measure(args)
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("parts")
    sys.exit(0 if main().get("is_equal", True) else 1)
