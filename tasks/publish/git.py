"""Git as the factory uses it: few processes, no prompt, a fixed identity, errors that name the command.

Git runs as a child process and writes only inside the repositories that it is given.
"""

from __future__ import annotations

import heapq
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import TransientError
from tasks.locks import exclusive

IDENTITY = ("MegaPairs factory", "factory@megapairs.invalid")


def environment() -> dict[str, str]:
    """The environment of git processes: never a prompt, and an identity even where HOME is empty."""
    env = dict(os.environ, GIT_TERMINAL_PROMPT="0", LC_ALL="C")
    for role in ("AUTHOR", "COMMITTER"):
        env.setdefault(f"GIT_{role}_NAME", IDENTITY[0])
        env.setdefault(f"GIT_{role}_EMAIL", IDENTITY[1])
    return env


def git(
    cwd: Path | str,
    *args: str,
    stdin: str | bytes | None = None,
    index: Path | None = None,
    keep_open: Sequence[int] = (),
) -> str:
    """Run git and return its output without the last newline.

    Raises:
        TransientError: git failed; the message has the command and git's last lines.
    """
    output = git_bytes(cwd, *args, stdin=stdin, index=index, keep_open=keep_open)
    return output.decode(errors="surrogateescape").removesuffix("\n")


def git_bytes(
    cwd: Path | str,
    *args: str,
    stdin: str | bytes | None = None,
    index: Path | None = None,
    keep_open: Sequence[int] = (),
) -> bytes:
    """Like `git`, the output as it is.

    Git runs in a new session and is never killed: a SIGKILL of the stage's process group, or Ctrl-C, must not end
    it between making its lock files and removing them, because every later git command would stop at those.

    Args:
        keep_open: file descriptors that git keeps open to its end: a lock on one of them is held as long.
    Raises:
        TransientError: git failed; the message has the command and git's last lines.
    """
    env = environment()
    if index is not None:
        env["GIT_INDEX_FILE"] = str(index)
    content = stdin.encode() if isinstance(stdin, str) else stdin
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["git", *args],
        cwd=cwd,
        env=env,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
        pass_fds=keep_open,
    ) as process:
        out, err = process.communicate(content)
    if process.returncode:
        tail = "\n".join(err.decode(errors="replace").strip().splitlines()[-5:])
        raise TransientError(f"git {' '.join(args)} in {cwd}: exit {process.returncode}: {tail}")
    return out


def resolve_ref(cwd: Path, ref: str) -> str | None:
    """The commit that `ref` names, or None."""
    try:
        return git(cwd, "rev-parse", "--verify", "--quiet", ref + "^{commit}")
    except TransientError:
        return None


def is_ancestor(cwd: Path, older: str, newer: str) -> bool:
    """Whether commit `newer` contains `older`."""
    done = subprocess.run(
        ["git", "merge-base", "--is-ancestor", older, newer],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def files_at(cwd: Path, ref: str) -> list[str]:
    """Paths of all files in a commit."""
    return git(cwd, "ls-tree", "-r", "-z", "--name-only", ref).split("\0")[:-1]


def read_at(cwd: Path, ref: str, path: str) -> bytes | None:
    """A file's content in a commit, or None when the commit has no such file."""
    has_file = bool(git(cwd, "ls-tree", "-z", ref, "--", path))
    return git_bytes(cwd, "cat-file", "blob", f"{ref}:{path}") if has_file else None


def version_key(tag: str) -> tuple[int, ...]:
    """Sort key of a tag ``dataset/YYYY.MM.DD[.n]``: by its numbers, so .10 follows .9."""
    return tuple(int(n) for n in re.findall(r"\d+", tag.rpartition("/")[2]))


def tags(cwd: Path, kind: str) -> list[str]:
    """Tags ``<kind>/...`` that the clone knows, oldest version first: by ancestry, the rest by their names.

    A name says when a version was made for; what continues what stands in the history. Versions of which neither
    continues the other, as one that a purge has rewritten and those after the old one, follow their names.
    """
    commit = "%(if)%(*objectname)%(then)%(*objectname)%(else)%(objectname)%(end)"
    listed = git(cwd, "for-each-ref", f"--format=%(refname:strip=2) {commit}", f"refs/tags/{kind}/")
    commits = dict(line.split(" ", 1) for line in listed.splitlines())
    if not commits:
        return []
    lines = git(cwd, "rev-list", "--parents", "--stdin", stdin="\n".join(commits.values())).splitlines()
    parents = {commit: above for commit, *above in map(str.split, lines)}
    names = {commits[tag]: version_key(tag) for tag in sorted(commits, key=version_key, reverse=True)}
    places = {one: place for place, one in enumerate(_in_order(parents, names))}
    return sorted(commits, key=lambda tag: (places.get(commits[tag], -1), version_key(tag)))


def _in_order(parents: Mapping[str, Sequence[str]], names: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Commits, each after its parents; among those that may come next the oldest name, unnamed ones before all."""
    missing = {commit: sum(one in parents for one in above) for commit, above in parents.items()}
    children: dict[str, list[str]] = {}
    for commit, above in parents.items():
        for one in above:
            children.setdefault(one, []).append(commit)
    ready = [(names.get(commit, ()), commit) for commit, count in missing.items() if not count]
    heapq.heapify(ready)
    while ready:
        _, commit = heapq.heappop(ready)
        yield commit
        for child in children.get(commit, ()):
            missing[child] -= 1
            if not missing[child]:
                heapq.heappush(ready, (names.get(child, ()), child))


def next_free_name(taken: Sequence[str], date: str) -> str:
    """Name of the next version of a day: ``2026.11.24``, then ``2026.11.24.2``, ``.3`` ...; `date` is YYYY-MM-DD."""
    day = date.replace("-", ".")
    names = {t.rpartition("/")[2] for t in taken}
    number = 1
    while (name := day if number == 1 else f"{day}.{number}") in names:
        number += 1
    return name


def common_dir(cwd: Path) -> Path:
    """The .git folder that a clone and all its worktrees share."""
    return (Path(cwd) / git(cwd, "rev-parse", "--git-common-dir")).resolve()


@contextmanager
def publishing_lock(cwd: Path, timeout_s: float = 600) -> Iterator[None]:
    """Hold the one lock under which `version` and `promote` publish; waits for up to `timeout_s`.

    Raises:
        TransientError: another run has held it for longer.
    """
    path = common_dir(cwd) / "publish.lock"
    problem = f"{path}: another run has been publishing for {timeout_s:.0f} s; run again when it is done"
    with exclusive(path, timeout_s, problem):
        yield
