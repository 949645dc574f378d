"""One writer at a time: the lock is waited for, its holder is named, and a lease stands in where there are no locks."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks import locks
from tasks.__main__ import main
from tasks.errors import ConfigError, TransientError
from tasks.locks import exclusive, newest_token
from tasks.store.atomic import write_bytes
from tests.support.waiting import wait_until

# Holds the lock, says so, and writes a file each time that it reads a line.
HOLDER = """
import sys
from pathlib import Path
from tasks import locks
from tasks.errors import TransientError
from tasks.store.atomic import write_bytes
locks.RENEW_S, locks.EXPIRY_S = 0.05, 1.0
path, out = Path(sys.argv[1]), Path(sys.argv[2])
with locks.exclusive(path, 60, "busy"):
    print("held", flush=True)
    for line in sys.stdin:
        try:
            write_bytes(out, line.encode())
            print("written", flush=True)
        except TransientError as error:
            print(f"refused {error}", flush=True)
"""
# Adds one to a number in a file, many times, reading and writing it apart.
COUNTER = """
import sys
from pathlib import Path
from tasks.locks import exclusive
path, number = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(10):
    with exclusive(path, 120, "busy"):
        value = int(number.read_text())
        number.write_text(str(value + 1))
"""


@pytest.fixture(params=["auto", "lease"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MEGAPAIRS_LOCKS", request.param)
    monkeypatch.setattr(locks, "POLL_S", 0.01)
    return str(request.param)


@contextmanager
def holder(path: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(path), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdin and process.stdout
    print(text, file=process.stdin, flush=True)
    return process.stdout.readline().strip()


def refused_within(limit_s: float, path: Path, match: str) -> None:
    """Whoever asks for the lock now gets the error."""
    with pytest.raises(TransientError, match=match), exclusive(path, limit_s, "busy"):
        raise AssertionError("two hold it")


def test_a_lock_is_waited_for_and_its_holder_is_named(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "locks" / "mine"
    with holder(path, tmp_path / "out") as process:
        got = threading.Event()

        def wait_for_it() -> None:
            with exclusive(path, 60, "busy"):
                got.set()

        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        wait_until(lambda: f"process {process.pid} on " in caplog.text, "the log says who holds it")
        assert "waits up to 60 s" in caplog.text and not got.is_set()
        assert process.stdin
        process.stdin.close()  # it ends, and gives the lock back
        waiter.join(timeout=60)
        assert got.is_set()
    assert caplog.text.count("waits up to") == 1


def test_at_the_limit_the_error_names_the_holder(kind: str, tmp_path: Path):
    with holder(tmp_path / "mine", tmp_path / "out") as process:
        refused_within(0.05, tmp_path / "mine", rf"busy; held by process {process.pid} on .* since 20")


def test_a_killed_holders_lock_is_free(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "EXPIRY_S", 0.3)
    with holder(tmp_path / "mine", tmp_path / "out") as process:
        process.kill()
        process.wait()
        with exclusive(tmp_path / "mine", 60, "busy"):
            pass


def test_many_processes_take_turns(kind: str, tmp_path: Path):
    number = tmp_path / "number"
    number.write_text("0")
    command = [sys.executable, "-c", COUNTER, str(tmp_path / "mine"), str(number)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert number.read_text() == "40"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_gets_a_lease(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive(tmp_path / "mine", 5, "busy"):
        assert newest_token(tmp_path / "mine") == 1
        refused_within(0.05, tmp_path / "mine", f"busy; held by process {os.getpid()}")
    assert "a lease takes their place" in caplog.text
    with exclusive(tmp_path / "mine", 0, "busy"):
        assert newest_token(tmp_path / "mine") == 2, "given back: nobody waits for it to expire"


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_another_refusal_says_what_to_look_at(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    refused_within(5, tmp_path / "mine", r"cannot lock this file .* look at its mount")


def test_a_suspended_owner_whose_lease_was_taken_over_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MEGAPAIRS_LOCKS", "lease")
    monkeypatch.setattr(locks, "EXPIRY_S", 1.0)
    path, out = tmp_path / "mine", tmp_path / "out"
    with holder(path, out) as process:
        assert ask(process, "first") == "written"
        os.kill(process.pid, signal.SIGSTOP)
        with exclusive(path, 60, "busy"):
            write_bytes(out, b"second")
            os.kill(process.pid, signal.SIGCONT)
            answer = ask(process, "late")
            assert answer.startswith("refused") and f"taken over as 2 by process {os.getpid()} on" in answer
            assert out.read_bytes() == b"second"
            assert process.stdin
            process.stdin.close()
            process.wait()
            write_bytes(out, b"third")  # the late one's end did not give this process's lease back
        assert out.read_bytes() == b"third"


def test_a_slow_owner_keeps_its_lease_as_long_as_it_renews_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEGAPAIRS_LOCKS", "lease")
    monkeypatch.setattr(locks, "EXPIRY_S", 1.0)
    with holder(tmp_path / "mine", tmp_path / "out") as process:
        with pytest.raises(TransientError, match="busy"), exclusive(tmp_path / "mine", 2.5, "busy"):
            raise AssertionError("taken from a living owner")
        assert ask(process, "still mine") == "written"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("MEGAPAIRS_LOCKS", "nfs", r"MEGAPAIRS_LOCKS: found 'nfs'; expected one of \['auto', 'lease'\]"),
        ("MEGAPAIRS_LOCK_WAIT_S", "an hour", "MEGAPAIRS_LOCK_WAIT_S: found 'an hour'; expected seconds"),
        ("MEGAPAIRS_LOCK_WAIT_S", "-1", "expected seconds"),
        ("MEGAPAIRS_LOCK_WAIT_S", "inf", "expected seconds"),
    ],
)
def test_a_wrong_setting_is_a_wrong_parameter(
    name: str, value: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=text), exclusive(tmp_path / "mine", locks.lock_wait_s(), "busy"):
        pass


def test_a_stage_says_who_works_on_its_part_and_is_tried_again(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MEGAPAIRS_LOCK_WAIT_S", "0.05")
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    with exclusive(tmp_path / ".run" / "locks" / "select", 0, "busy"):
        assert main(["select", "--root", str(tmp_path)]) == 75
    error = capsys.readouterr().err
    assert "another process works on this part" in error and f"held by process {os.getpid()} on" in error


def test_the_lock_of_a_part_says_what_holds_it_in_json(tmp_path: Path):
    with exclusive(tmp_path / "mine", 0, "busy"):
        assert json.loads((tmp_path / "mine").read_text())["pid"] == os.getpid()
