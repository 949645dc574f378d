"""Pull a version's data: `dvc pull` that names each file which the remote did not deliver as it was published.

    python -m tasks pull [-j JOBS] [-r REMOTE] [-f] [TARGET ...]        in a clone of the dataset

TARGET is a table (triplets, images), a folder or a file; without one all is brought in. `images` is the table and the
tars, `data/images` the table alone, `shards` the tars. What was not asked for is "not pulled" and no fault, for `python
-m tasks verify` neither.

Plain `dvc pull` refuses an altered object too (the remote is verified), but its message names the folder only; and an
altered list of a folder's files (DVC's .dir object) passes with exit 0. This command runs DVC unchanged, then looks
which objects of the version the cache lacks: DVC keeps none that failed its check. Exit 0: every object came in with
its own hash; 65: files that did not, by name; 69: the remote does not answer; 72: a package such as dvc-s3 is missing;
77: the remote wants credentials, or refuses them; else DVC's own code. `python -m tasks verify` finds what was changed
in the clone itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError, DataError
from tasks.publish.remote import Remote, explain_words, folder_list, object_path, open_remote, remote_address
from tasks.publish.verify import PULLED, Undelivered, pulled_targets, tracked_outputs, undelivered
from tasks.store.atomic import write_bytes

FAULTS_SHOWN = 50
SHORT = {  # names that stand for others; what a version does not have of them is left out
    "images": ("data/images", "data/shards"),
    "with_images": ("data/export",),
    "model": ("models/promoted",),
    "gallery": ("reports/gallery.html",),
}


def dvc_command() -> list[str]:
    """DVC of this interpreter, else the one on PATH."""
    if importlib.util.find_spec("dvc"):
        return [sys.executable, "-m", "dvc"]
    if path := shutil.which("dvc"):
        return [path]
    raise ConfigError("dvc: not found; `pip install dvc` (with `dvc[s3]` for an s3:// remote)")


def find_targets(root: Path, names: Sequence[str]) -> list[str]:
    """Paths that DVC knows, of tables' names, folders and files.

    Raises:
        ConfigError: a name that the version does not have.
    """
    known = sorted(path for path, _ in tracked_outputs(root))
    targets = []
    for name in names:
        plain = name.rstrip("/").removeprefix("./")
        choices = [(plain,), SHORT.get(plain, (f"data/{plain}",))]
        present = [[path for path in paths if any(_overlap(path, out) for out in known)] for paths in choices]
        if not any(present):
            raise ConfigError(f"pull: this version has no {name!r}; known: {', '.join(known)}")
        for path in present[0] or present[1]:
            inside = [out for out in known if Path(out).is_relative_to(path)]
            targets += inside or [path]  # a folder of folders, such as data/embeddings, is no output of its own
    return list(dict.fromkeys(targets))


def _overlap(path: str, other: str) -> bool:
    return Path(path).is_relative_to(other) or Path(other).is_relative_to(path)


def refuse_guesses(faults: Sequence[Undelivered], remote: Remote, cache: Path) -> list[Undelivered]:
    """Which of the objects that did not come are at fault: those that the remote lacks, or holds with another content.

    DVC gives up a folder's list with the first of its files, so the list that the cache lacks may be in order.
    """
    named: list[Undelivered] = []
    for fault in faults:
        md5 = "".join(fault.object_path.split("/")[2:])
        entries = folder_list(md5, cache, remote) if md5.endswith(".dir") else None
        if entries is None:
            named.append(fault)
        else:
            named += [Undelivered(f"{fault.path}/{name}", object_path(md5)) for name, md5 in entries]
    md5s = {fault: "".join(fault.object_path.split("/")[2:]) for fault in named}
    absent = [fault for fault in named if not (cache / fault.object_path).exists()]
    existing = remote.existing(md5s[fault] for fault in absent)
    return [f for f in dict.fromkeys(absent) if md5s[f] not in existing or not remote.has_hash(md5s[f])]


def run_dvc(dvc: Sequence[str], root: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """Run `dvc pull`; its output appears as it comes. Returns its exit code and what it said on stderr."""
    said = []
    with subprocess.Popen([*dvc, "pull", *arguments], cwd=root, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            said.append(line)
    return process.returncode, "".join(said)


def pull(root: Path, options: Sequence[str] = (), targets: Sequence[str] = (), remote: str | None = None) -> int:
    """Run `dvc pull`, its output beside ours; returns its exit code.

    Args:
        options: of `dvc pull`.
        targets: tables, folders and files to bring in; none means all.
        remote: name of a remote in the DVC configuration; its default when None.
    Raises:
        DataError: names the files that the remote did not deliver as they were published.
        ConfigError: no DVC, no clone of a dataset here, or an unknown target.
        UnreachableError, CredentialsError, MissingPackageError: the remote gives nothing.
    """
    root = root.resolve()
    if not (root / "dvc.lock").exists():
        raise ConfigError(f"{root / 'dvc.lock'}: missing; run this in a clone of the dataset's branch")
    dvc, paths = dvc_command(), find_targets(root, targets)
    remember(root, paths)
    code, said = run_dvc(dvc, root, [*options, *(["-r", remote] if remote else []), *paths])
    cache = Path(
        subprocess.run([*dvc, "cache", "dir"], cwd=root, check=True, text=True, capture_output=True).stdout.strip()
    )
    wanted = [Path(t) for t in paths] or [Path()]
    faults = [f for f in undelivered(root, cache) if any(_overlap(f.path, str(t)) for t in wanted)]
    if faults and importlib.util.find_spec("dvc"):
        with open_remote(root, remote) as opened:
            faults = [f for f in refuse_guesses(faults, opened, cache) if any(_overlap(f.path, str(t)) for t in wanted)]
    elif code and (known := explain_words(said, remote_address(root, remote))):
        raise known
    if faults:
        lines = [str(fault) for fault in faults[:FAULTS_SHOWN]]
        if len(faults) > FAULTS_SHOWN:
            lines.append(f"and {len(faults) - FAULTS_SHOWN} more")
        raise DataError(f"files that did not come as they were published: {len(faults)}\n  " + "\n  ".join(lines))
    return code


def remember(root: Path, paths: Sequence[str]) -> None:
    """Keep what was asked for, so that `verify` tells what is missing from what nobody wanted; all when empty."""
    earlier = pulled_targets(root)
    asked = sorted({*paths, *(earlier or [])}) if paths and earlier != [] else []
    if paths and earlier is None and any((root / path).exists() for path, _ in tracked_outputs(root)):
        asked = []  # DVC itself pulled all before
    (root / PULLED).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(root / PULLED, json.dumps(asked).encode())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks pull`."""
    parser.add_argument("-j", "--jobs", help="downloads at a time, a count")
    parser.add_argument("-r", "--remote", help="another remote of the DVC configuration")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite files changed here")
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="tables (triplets, images), folders and files; none means all"
    )


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Pull in the current folder; {"targets": what was asked for}. DVC's own failure ends with DVC's exit code."""
    options = [*(["-j", args.jobs] if args.jobs else []), *(["-f"] if args.force else [])]
    if code := pull(Path("."), options, args.targets, args.remote):
        sys.exit(code)
    return {"targets": args.targets or ["."]}
