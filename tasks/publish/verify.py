"""Check a clone against its version: which file is missing or altered, by name.

    python -m tasks verify [--root CLONE]

`dvc pull` refuses an altered object (the remote is verified) and names the folder that it could not make. `verify`
names the file in that folder; `python -m tasks pull` does both at once. Reads manifest.json (SHA-256 of every file of
the version), and for missing files dvc.lock, the .dvc files and the DVC cache. Exit 0: everything is as published; 65
otherwise. Needs neither DVC nor pyarrow.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tasks.errors import ConfigError, DataError
from tasks.publish.dvc_repo import locked_stages
from tasks.publish.published import MODEL_STAGES, cache_dir, file_sha256


def tracked_outputs(root: Path) -> Iterator[tuple[str, str]]:
    """(path, md5) of all that DVC brings into a clone: outputs in dvc.lock and of the .dvc files."""
    lock = root / "dvc.lock"
    for name, stage in locked_stages(lock.read_bytes() if lock.exists() else None).items():
        if name not in MODEL_STAGES:  # not in the cache: what a training won is models/promoted.dvc
            yield from ((out["path"], str(out["md5"])) for out in stage.get("outs", []))
    for pointer in sorted(p for top in ("data", "models", "reports") for p in (root / top).rglob("*.dvc")):
        for out in yaml.safe_load(pointer.read_text())["outs"]:
            yield (pointer.parent / out["path"]).relative_to(root).as_posix(), str(out["md5"])


class Undelivered(NamedTuple):
    """A file, or a folder's list of files, whose object the DVC cache lacks."""

    path: str
    object_path: str  # below the remote's root

    def __str__(self) -> str:
        what = ", the list of its files" if self.object_path.endswith(".dir") else ""
        return f"missing or altered in the remote: {self.path} (object {self.object_path}{what})"


def undelivered(root: Path, cache: Path | None = None) -> Iterator[Undelivered]:
    """What the DVC cache lacks: after a pull, what the remote did not deliver as it was published.

    Args:
        cache: the clone's DVC cache, when it is not the one in its config.local.
    """
    objects = (cache or cache_dir(root)) / "files" / "md5"
    for path, md5 in tracked_outputs(root):
        files = [(path, md5)]
        if md5.endswith(".dir") and (listing := objects / md5[:2] / md5[2:]).exists():
            files = [(f"{path}/{entry['relpath']}", entry["md5"]) for entry in json.loads(listing.read_text())]
        for name, file_md5 in files:
            if not (objects / file_md5[:2] / file_md5[2:]).exists():
                yield Undelivered(name, f"files/md5/{file_md5[:2]}/{file_md5[2:]}")


def check(root: Path) -> int:
    """Compare every file of manifest.json. Returns the count of files.

    Raises:
        DataError: names the files that are altered, missing, or not delivered by the remote.
        ConfigError: no manifest.json here.
    """
    path = root / "manifest.json"
    if not path.exists():
        raise ConfigError(f"{path}: missing; give a clone of the dataset's branch")
    manifest = json.loads(path.read_text())
    missing = [name for name in manifest if not (root / name).exists()]
    faults = [
        f"altered here: {name}"
        for name, entry in manifest.items()
        if name not in missing and file_sha256(root / name) != entry["sha256"]
    ]
    if missing:
        faults += [str(u) for u in undelivered(root)] or [f"missing here: {name}; run `dvc pull`" for name in missing]
    if faults:
        raise DataError(
            f"{root}: {len(faults)} of {len(manifest)} files are not as published\n  " + "\n  ".join(faults[:50])
        )
    return len(manifest)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks verify`."""
    parser.add_argument("--root", default=".", type=Path, help="the clone (default: the current folder)")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the clone with its manifest; {"root", "files": count}."""
    files = check(args.root)
    print(f"{args.root}: all {files} files are as published")
    return {"root": str(args.root), "files": files}
