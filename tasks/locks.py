"""One writer at a time: a lock on a file, and a lease with a fencing token where the file system has no locks.

`exclusive` waits for the lock, says who holds it, and gives up after a limit. Where the file system refuses flock (NFS
without lockd) or MEGAPAIRS_LOCKS=lease asks for it, a lease takes its place: a file `<lock>.lease-<token>` that is made
only if absent, with its owner in it, rewritten every RENEW_S seconds. A lease that its owner has not rewritten for
EXPIRY_S is taken over by making the file of the next token. `require_leases` is asked before every rename into place
(tasks/store/atomic.py): an owner that was suspended for so long finds the next token and ends before it publishes
anything beside its successor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError, TransientError

log = logging.getLogger(__name__)

WAIT_S = 3600.0  # how long a stage waits for its part's lock, unless MEGAPAIRS_LOCK_WAIT_S says otherwise
POLL_S = 0.2
RENEW_S = 10.0
EXPIRY_S = 60.0  # by the waiter's own clock, from the moment that it saw the lease's last content
LOCK_TYPES = ("auto", "lease")
NOT_SUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def lock_wait_s() -> float:
    """How long a stage waits for its lock, seconds: MEGAPAIRS_LOCK_WAIT_S, else WAIT_S.

    Raises:
        ConfigError: the variable is no number of seconds.
    """
    text = os.environ.get("MEGAPAIRS_LOCK_WAIT_S") or str(WAIT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"MEGAPAIRS_LOCK_WAIT_S: found {text!r}; expected seconds, for example 3600")
    return seconds


def owner() -> dict[str, Any]:
    """This process, as a person or another host can find it."""
    command = " ".join(sys.argv[1:])[:200]
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    return {"host": socket.gethostname(), "pid": os.getpid(), "command": command, "since": since}


def describe_owner(text: str) -> str:
    """Who holds a lock, from the content of its file; "another process" where that says nothing."""
    try:
        held = json.loads(text)
        return f"process {held['pid']} on {held['host']} ({held['command']}) since {held['since']} UTC"
    except (ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def exclusive(path: Path, timeout_s: float, problem: str) -> Iterator[int]:
    """Hold the lock of a file, made if absent; waits for up to `timeout_s` and logs who holds it.

    Args:
        path: the lock's file; its folder exists or is made.
        timeout_s: how long to wait, s; 0 does not wait.
        problem: what the error says when the lock is not free in time; the holder is added.
    Yields:
        the file's descriptor; an flock is held as long as any process has it open.
    Raises:
        TransientError: the lock was not free in time.
        ConfigError: MEGAPAIRS_LOCKS is neither of LOCK_TYPES.
    """
    kind = os.environ.get("MEGAPAIRS_LOCKS") or "auto"
    if kind not in LOCK_TYPES:
        raise ConfigError(f"MEGAPAIRS_LOCKS: found {kind!r}; expected one of {list(LOCK_TYPES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as f:
        waiting = Waiting(path, timeout_s, problem)
        if kind == "auto" and flocked(f.fileno(), waiting):
            f.seek(0)
            f.truncate()
            f.write(json.dumps(owner()))
            f.flush()
            yield f.fileno()
        else:
            with lease(path, waiting):
                yield f.fileno()


class Waiting:
    """Waits for a lock in short steps, says once for whom, and ends at the limit.

    Args:
        path: the lock.
        timeout_s: the limit, s.
        problem: the error's first words.
    """

    def __init__(self, path: Path, timeout_s: float, problem: str) -> None:
        self.path, self.timeout_s, self.problem = path, timeout_s, problem
        self._end = time.monotonic() + timeout_s
        self._is_logged = False

    def step(self, holder: str) -> None:
        """Sleep for a moment.

        Args:
            holder: content of the lock's file.
        Raises:
            TransientError: the limit is over.
        """
        if time.monotonic() >= self._end:
            raise TransientError(f"{self.problem}; held by {describe_owner(holder)}")
        if not self._is_logged:
            log.warning("%s: waits up to %.0f s for %s", self.path, self.timeout_s, describe_owner(holder))
            self._is_logged = True
        time.sleep(POLL_S)


def flocked(descriptor: int, waiting: Waiting) -> bool:
    """Take the flock; False where the file system has none.

    Raises:
        TransientError: not free in time.
    """
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            waiting.step(waiting.path.read_text(errors="replace"))
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise TransientError(
                    f"{waiting.path}: the file system cannot lock this file ({error}); "
                    "look at its mount, or set MEGAPAIRS_LOCKS=lease on all workers"
                ) from error
            log.warning("%s: this file system has no locks (%s); a lease takes their place", waiting.path, error)
            return False


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file now, by flock or by a lease that it renews."""
    if (token := newest_token(path)) and not is_free(read_lease(path, token)):
        with contextlib.suppress(FileNotFoundError):
            return time.time() - lease_file(path, token).stat().st_mtime < EXPIRY_S
    with contextlib.suppress(FileNotFoundError), open(path) as f:
        try:
            fcntl.flock(f.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # a file system without locks: only leases are held there
    return False


# --- leases ----------------------------------------------------------------------------------------------------------

_held: list[Lease] = []  # of this process


def require_leases() -> None:
    """Return when every lease that this process holds is still its own; asked before a rename into place.

    Raises:
        TransientError: another process has taken one over.
    """
    for held in _held:
        held.require()


class Lease:
    """A lease that this process holds: the file of the highest token, with this process's name in it."""

    def __init__(self, path: Path, token: int) -> None:
        self.path, self.token, self.name = path, token, uuid.uuid4().hex
        self.file = lease_file(path, token)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def write(self, is_released: bool = False) -> None:
        """Say in the file that this process holds the lease, now, or that it is free."""
        content = {**owner(), "name": self.name, "renewed": time.time_ns(), "is_released": is_released}
        temporary = self.file.with_name(f".{self.file.name}.{self.name}.tmp")
        temporary.write_text(json.dumps(content))
        os.replace(temporary, self.file)

    def require(self) -> None:
        """Return when no other process has taken the lease over.

        Raises:
            TransientError: one has.
        """
        newest = newest_token(self.path)
        if newest != self.token:
            holder = describe_owner(read_lease(self.path, newest))
            raise TransientError(
                f"{self.path}: this process was away for longer than {EXPIRY_S:.0f} s, and its lease {self.token} was "
                f"taken over as {newest} by {holder}; nothing more is written, the other process goes on"
            )

    def start(self) -> None:
        """Renew the lease until `end`."""
        self._thread.start()
        _held.append(self)

    def end(self) -> None:
        """Stop renewing, and set the lease free where it is still this process's."""
        self._is_over.set()
        self._thread.join()
        _held.remove(self)
        if newest_token(self.path) == self.token:
            self.write(is_released=True)

    def _renew(self) -> None:
        while not self._is_over.wait(RENEW_S):
            with contextlib.suppress(OSError):  # a server that is away for a moment; `require` decides
                if newest_token(self.path) != self.token:
                    return
                self.write()


def lease_file(path: Path, token: int) -> Path:
    """The file of a lock's lease with a token."""
    return path.with_name(f"{path.name}.lease-{token:08d}")


def newest_token(path: Path) -> int:
    """The highest token that was given out for a lock; 0 when none was."""
    prefix = f"{path.name}.lease-"
    names = [name for name in os.listdir(path.parent) if name.startswith(prefix)]
    return max((int(name.removeprefix(prefix)) for name in names), default=0)


def read_lease(path: Path, token: int) -> str:
    """Content of a lease's file; empty when there is none."""
    try:
        return lease_file(path, token).read_text(errors="replace")
    except FileNotFoundError:
        return ""


def is_free(content: str) -> bool:
    """Whether a lease was given back."""
    try:
        return bool(json.loads(content)["is_released"])
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def lease(path: Path, waiting: Waiting) -> Iterator[Lease]:
    """Hold the lease of a lock; takes over one that its owner does not renew any more.

    Raises:
        TransientError: it was not free in time.
    """
    seen, seen_at = "", time.monotonic()
    while True:
        token = newest_token(path)
        content = f"{token} {read_lease(path, token)}"
        if content != seen:
            seen, seen_at = content, time.monotonic()
        holder = content.partition(" ")[2]
        if token == 0 or is_free(holder) or time.monotonic() - seen_at > EXPIRY_S:
            held = Lease(path, token + 1)
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.close(os.open(held.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                break
        waiting.step(holder)
    held.write()
    for old in range(max(1, held.token - 3), held.token):
        lease_file(path, old).unlink(missing_ok=True)
    held.start()
    try:
        yield held
    finally:
        held.end()
