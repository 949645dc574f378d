"""Takedowns on a tiny deployment: its stages in this process, and a clone in which every file is read."""

import contextlib
import hashlib
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tasks.__main__ import main
from tests.support.fake_run import image


def run_here(worktree: Path, words: Sequence[str]) -> int:
    """A command line of a run, in this process."""
    words = [*words, "--root", str(worktree)]
    with contextlib.chdir(worktree):
        return main(words)


def id_of(number: int) -> str:
    """The id of image `number` of a fake run."""
    return hashlib.sha256(image(number)).hexdigest()


def clone_of(deployment: Path, where: Path, tag: str) -> Path:
    """A researcher's clone of a version, with its data."""
    subprocess.run(["git", "clone", "-q", "-b", tag, str(deployment / "origin.git"), str(where)], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "pull", "-q"], cwd=where, check=True)
    return where


def decoded_files(clone: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file of a clone but git's and the tests'; Parquet as its values, tars by member too."""
    for path in sorted(p for p in clone.rglob("*") if p.is_file() and ".git" not in p.parts and ".dvc" not in p.parts):
        name = path.relative_to(clone).as_posix()
        if name.startswith("tests/"):  # of the deployed code, which names the fixtures' images
            continue
        yield name, path.read_bytes()
        if path.suffix == ".parquet":
            for row in pq.read_table(path).to_pylist():
                yield f"{name} row", b"\n".join(_values(row))
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar.getmembers():
                    yield f"{name} {member.name}", member.name.encode() + tar.extractfile(member).read()  # type: ignore[union-attr]


def _values(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _values(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner)
    elif isinstance(value, bytes):
        yield value
    elif value is not None:
        yield str(value).encode()
