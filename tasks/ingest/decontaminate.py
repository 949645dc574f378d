"""Decontaminate: hashes of a benchmark's images, so that ingest keeps them and their near copies out of the training
data.

    python -m tasks decontaminate build FOLDER --out FILE

Reads every image below FOLDER as ingest would, writes FILE: one JSON object a line (name, sha256 of the file, sha256 of
the stored form, phash, thumbnail), the form that `ingest.benchmark_hashes` names and tasks/fingerprints/hash_lists.py
reads. Files that are no images are counted and left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import ConfigError, DataError
from tasks.ingest.normalize import NormalizedImage, Rules, read_image
from tasks.records import StageReport
from tasks.store import Store


def hashes_of(folder: Path, rules: Rules) -> Iterator[dict[str, str] | None]:
    """For each file below the folder, by path: its line, or None where it is no image."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        found = read_image(content, is_named_image=False, rules=rules)
        if not isinstance(found, NormalizedImage):
            yield None
            continue
        yield {
            "name": path.relative_to(folder).as_posix(),
            "sha256": hashlib.sha256(content).hexdigest(),
            "stored_sha256": hashlib.sha256(found.content).hexdigest(),
            "phash": f"{found.phash:016x}",
            "thumbnail": found.thumbnail.hex(),
        }


def build(folder: Path, out: Path, rules: Rules | None = None) -> StageReport:
    """Write the list.

    Raises:
        ConfigError: no such folder.
        DataError: no image in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"decontaminate: {folder} is no folder; name the one with the benchmark's images")
    lines = list(hashes_of(folder, rules or Rules(min_side_px=1)))
    kept = [line for line in lines if line is not None]
    if not kept:
        raise DataError(f"decontaminate: no image among the {len(lines)} files below {folder}")
    Store(out.parent).write_bytes(out, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return StageReport(
        "decontaminate", read=len(lines), written=len(kept), new=len(lines), done=len(lines), notes=[str(out)]
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks decontaminate`."""
    parser.add_argument("action", choices=["build"], help="build: write the list")
    parser.add_argument("folder", type=Path, help="the benchmark's images")
    parser.add_argument("--out", type=Path, required=True, help="the list, for ingest.benchmark_hashes")


def run_command(args: argparse.Namespace) -> StageReport:
    """Write the list of a benchmark's image hashes."""
    return build(args.folder, args.out)
