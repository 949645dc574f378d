"""Decontaminate: hash a benchmark's images, so that ingest excludes them and their near copies.

    python -m tasks decontaminate build FOLDER --out FILE

Reads every image below FOLDER as ingest would. Writes FILE, a list for `ingest.benchmark_hashes`: one JSON object a
line (name, sha256 of the file, sha256 of the stored form, phash, thumbnail), which tasks/fingerprints/hash_lists.py
reads. Files that are not images are counted and left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import ConfigError, DataError
from tasks.ingest.normalize import normalize_image
from tasks.ingest.rules import NormalizationRules, NormalizedImage
from tasks.records import StageReport
from tasks.store import Store


def hash_images(folder: Path, rules: NormalizationRules) -> Iterator[dict[str, str] | None]:
    """For each file below the folder, by path: its line, or None where it is not an image."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        image = normalize_image(content, is_named_image=False, rules=rules)
        if not isinstance(image, NormalizedImage):
            yield None
            continue
        yield {
            "name": path.relative_to(folder).as_posix(),
            "sha256": hashlib.sha256(content).hexdigest(),
            "stored_sha256": hashlib.sha256(image.content).hexdigest(),
            "phash": f"{image.phash:016x}",
            "thumbnail": image.thumbnail.hex(),
        }


def build(folder: Path, out: Path, rules: NormalizationRules | None = None) -> StageReport:
    """Write the list.

    Args:
        folder: with the benchmark's images.
        out: the list.
        rules: as of ingest; by default ingest's, with images of any size.
    Raises:
        ConfigError: no such folder.
        DataError: no image in it.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"decontaminate: {folder} is not a folder; expected the folder of a benchmark's images; correct the path"
        )
    rows = list(hash_images(folder, rules or NormalizationRules(min_side_px=1)))
    hashed = [row for row in rows if row is not None]
    if not hashed:
        raise DataError(
            f"decontaminate: no image among the {len(rows)} files below {folder}; expected the benchmark's images; "
            "correct the path"
        )
    Store(out.parent).write_bytes(out, "".join(json.dumps(row) + "\n" for row in hashed).encode())
    return StageReport(
        "decontaminate", read=len(rows), written=len(hashed), new=len(rows), done=len(rows), notes=[str(out)]
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks decontaminate`."""
    parser.add_argument("action", choices=["build"], help="build: write the list")
    parser.add_argument("folder", type=Path, help="the benchmark's images")
    parser.add_argument("--out", type=Path, required=True, help="the list, for ingest.benchmark_hashes")


def run_command(args: argparse.Namespace) -> StageReport:
    """Write the list of a benchmark's image hashes."""
    return build(args.folder, args.out)
