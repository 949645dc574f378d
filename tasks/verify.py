"""Check a clone against its version: which file is missing or altered, by name.

    python -m tasks.verify [--root CLONE]

`dvc pull` refuses an altered object (the remote is verified) and names the folder that it could not make; this names the
file in it. Reads manifest.json (SHA-256 of every file of the version), and for what is missing dvc.lock and the DVC cache.
Exit 0: everything is as published; 65 otherwise. Needs neither DVC nor pyarrow.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import ConfigError, DataError, TasksError
from tasks.publish import cache_dir, sha256_of
from tasks.repository import locked_stages


def undelivered(root: Path) -> Iterator[str]:
    """Files of directories in dvc.lock that the DVC cache lacks: what the remote did not deliver as it was published."""
    cache = cache_dir(root) / "files" / "md5"

    def place(md5: str) -> Path:
        return cache / md5[:2] / md5[2:]

    lock = root / "dvc.lock"
    for stage in locked_stages(lock.read_bytes() if lock.exists() else None).values():
        for out in stage.get("outs", []):
            md5 = str(out.get("md5", ""))
            if md5.endswith(".dir") and place(md5).exists():
                for entry in json.loads(place(md5).read_text()):
                    if not place(entry["md5"]).exists():
                        yield f"{out['path']}/{entry['relpath']} (object files/md5/{entry['md5'][:2]}/{entry['md5'][2:]} of the remote)"
            elif not place(md5).exists():
                yield f"{out['path']} (object files/md5/{md5[:2]}/{md5[2:]} of the remote)"


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
    altered = [name for name, facts in manifest.items() if (root / name).exists() and sha256_of(root / name) != facts["sha256"]]
    faults = [f"altered here: {name}" for name in altered]
    if missing:
        culprits = list(undelivered(root))
        faults += [f"missing or altered in the remote: {c}" for c in culprits] or [f"missing here: {name}; run `dvc pull`" for name in missing]
    if faults:
        raise DataError(f"{root}: {len(faults)} of {len(manifest)} files are not as published\n  " + "\n  ".join(faults[:50]))
    return len(manifest)


def main(argv: list[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tasks.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=".", type=Path)
    args = parser.parse_args(argv)
    try:
        print(f"{args.root}: all {check(args.root)} files are as published")
    except TasksError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
