"""Check a clone against its version: which file is missing, altered or no part of it, by name.

    python -m tasks verify [--root CLONE]

`dvc pull` refuses an altered object (the remote is verified) and names the folder that it could not make. `verify`
names the file in that folder; `python -m tasks pull` does both at once. Compared are the data and the gallery with the
SHA-256 of manifest.json (itself with version.json), models and reports with the MD5 that DVC tracks. A file that lies
beside them and that the card's `*.parquet` would load is a fault too. What `python -m tasks pull TARGET` left out is
"not pulled" and none. Exit 0: everything is as published; 65 otherwise. Needs neither DVC nor pyarrow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tasks.errors import ConfigError, DataError
from tasks.publish.published import cache_dir, file_sha256
from tasks.publish.remote import Output, folder_list, object_path, outputs_of

PULLED = Path(".dvc", "tmp", "megapairs-pulled.json")  # targets of all `tasks pull` of this clone; [] for everything
FAULTS_SHOWN = 50


def tracked_outputs(root: Path) -> list[Output]:
    """All that DVC brings into a clone, by its checked-out dvc.lock and .dvc files."""
    paths = [root / "dvc.lock", *(p for top in ("data", "models", "reports") for p in (root / top).rglob("*.dvc"))]
    return list(outputs_of({p.relative_to(root).as_posix(): p.read_bytes() for p in paths if p.is_file()}))


def pulled_targets(root: Path) -> list[str] | None:
    """What `tasks pull` was asked for in this clone: paths, [] for everything, None where it never ran."""
    path = root / PULLED
    targets: list[str] | None = json.loads(path.read_text()) if path.exists() else None
    return targets


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
    cache = cache or cache_dir(root)
    for path, md5 in tracked_outputs(root):
        entries = folder_list(md5, cache, None) if md5.endswith(".dir") else None
        files = [(path, md5)] if entries is None else [(f"{path}/{name}", file_md5) for name, file_md5 in entries]
        for name, file_md5 in files:
            if not (cache / object_path(file_md5)).exists():
                yield Undelivered(name, object_path(file_md5))


class Survey(NamedTuple):
    """What a clone holds of its version.

    Attributes:
        files: that were compared, a count.
        faults: a sentence each.
        not_pulled: folders and files that nobody asked for.
    """

    files: int
    faults: list[str]
    not_pulled: list[str]


def file_md5(path: Path) -> str:
    """MD5 (hex) of a file, read in blocks."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(root: Path) -> tuple[dict[str, Any], list[str]]:
    """(manifest.json's mapping, a fault where it is not the one that version.json names).

    Raises:
        ConfigError: no manifest.json here.
    """
    path, version = root / "manifest.json", root / "version.json"
    if not path.exists():
        raise ConfigError(f"{path}: missing; give a clone of the dataset's branch")
    stated = json.loads(version.read_text()).get("manifest_sha256") if version.exists() else None
    is_altered = stated is not None and stated != file_sha256(path)
    return json.loads(path.read_text()), ["altered here: manifest.json"] if is_altered else []


def other_files(root: Path, outputs: list[Output], manifest: dict[str, Any]) -> dict[str, str]:
    """path -> MD5 of what DVC tracks and manifest.json does not name: models and reports.

    A folder whose list of files is not here stands for itself, with an empty hash.
    """
    cache, out = cache_dir(root), {}
    for path, md5 in outputs:
        if path in manifest or path.startswith("data/"):
            continue
        if not md5.endswith(".dir"):
            out[path] = md5
            continue
        entries = folder_list(md5, cache, None)
        out |= {path: ""} if entries is None else {f"{path}/{name}": file_md5 for name, file_md5 in entries}
    return out


def extra_files(root: Path, known: set[str]) -> list[str]:
    """Files beside those of the version that a reader of its folders would load with them."""
    folders = {str(Path(name).parent) for name in known if name.startswith(("data/", "models/"))}
    found = [
        path.relative_to(root).as_posix()
        for folder in folders
        for path in (root / folder).glob("*")
        if path.is_file() and not path.name.startswith(".") and path.suffix not in (".dvc", ".tmp")
    ]
    return sorted(set(found) - known)


def survey(root: Path) -> Survey:
    """Compare every file of the version with the clone.

    Raises:
        ConfigError: no manifest.json here.
    """
    manifest, faults = read_manifest(root)
    outputs = tracked_outputs(root)
    others = other_files(root, outputs, manifest)
    targets = pulled_targets(root) or [""]
    names = [*manifest, *others]
    missing = [name for name in names if not (root / name).exists()]
    left_out = [name for name in missing if not any(Path(name).is_relative_to(target) for target in targets)]
    missing = [name for name in missing if name not in set(left_out)]
    faults += [
        f"altered here: {name}"
        for name, entry in manifest.items()
        if (root / name).exists() and file_sha256(root / name) != entry["sha256"]
    ]
    for name, md5 in others.items():
        if (root / name).is_dir():
            faults.append(f"not known here: {name} (the list of its files is not in the cache; run `dvc pull`)")
        elif (root / name).exists() and file_md5(root / name) != md5:
            faults.append(f"altered here: {name}")
    faults += [f"no part of this version: {name}; remove it" for name in extra_files(root, set(names))]
    if missing:
        known = [u for u in undelivered(root) if any(Path(u.path).is_relative_to(target) for target in targets)]
        faults += [str(u) for u in known] or [f"missing here: {name}; run `dvc pull`" for name in missing]
    not_pulled = [o.path for o in outputs if any(n == o.path or n.startswith(f"{o.path}/") for n in left_out)]
    return Survey(len(names) - len(left_out), faults, sorted(not_pulled))


def check(root: Path) -> int:
    """Compare every file of the version that was asked for. Returns the count of files; errors as of `check_survey`."""
    return check_survey(root).files


def check_survey(root: Path) -> Survey:
    """As `survey`, without faults.

    Raises:
        DataError: names the files that are altered, missing, not delivered by the remote, or no part of the version.
        ConfigError: no manifest.json here.
    """
    found = survey(root)
    if found.faults:
        raise DataError(
            f"{root}: {len(found.faults)} of {found.files} files are not as published\n  "
            + "\n  ".join(found.faults[:FAULTS_SHOWN])
        )
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks verify`."""
    parser.add_argument("--root", default=".", type=Path, help="the clone (default: the current folder)")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the clone with its version; {"root", "files": count}, and "not_pulled": what nobody asked for."""
    found = check_survey(args.root)
    print(f"{args.root}: all {found.files} files are as published")
    for path in found.not_pulled:
        print(f"not pulled: {path}")
    left_out = {"not_pulled": found.not_pulled} if found.not_pulled else {}
    return {"root": str(args.root), "files": found.files, **left_out}
