"""Processes of this machine by name: start, stop, kill, suspend and resume each one, and end them all.

A service is one command with its environment; what it starts belongs to it. `tasks.demo.production_local` runs
PostgreSQL, Redis and every Airflow process this way; the chaos suite breaks them one by one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.demo.processes import end_with_parent, is_alive, process_family
from tasks.errors import ConfigError, TransientError

STOP_TIMEOUT_S = 10.0  # then SIGKILL
RESTARTS, RESTARTS_S = 5, 600.0  # a service that ends by itself is started again, at most so often in so many seconds
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """One process of a stack.

    Attributes:
        name: how it is addressed; its output goes to <logs>/<name>.log.
        command: program and arguments.
        environment: all of it; nothing is inherited.
        folder: its working folder; it exists.
        user: name of the user that it runs as, when this process is root's; None: as this process.
        stop_signal: what ends it in order.
        is_restarted: start it again when it ends by itself, as `restart: unless-stopped` of a compose file does.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    user: str | None = None
    stop_signal: int = signal.SIGTERM
    is_restarted: bool = False


def session_members(leaders: Iterable[int]) -> set[int]:
    """The processes of the sessions that these processes lead, by /proc; also those whose parent has died."""
    wanted, members = set(leaders), set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = entry.read_text()
            if int(text[text.rindex(")") + 2 :].split()[3]) in wanted:
                members.add(int(entry.parent.name))
    return members


def send_signal(pids: Iterable[int], number: int) -> None:
    """Send a signal to the processes that still are there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def find_program(name: str, folders: Iterable[Path] = (), package: str = "") -> str:
    """Path of a program.

    Args:
        name: the program's name.
        folders: where to look after PATH.
        package: the Debian package that holds it, for the message.

    Raises:
        ConfigError: it is not installed.
    """
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, folders)]))
    if found is None:
        raise ConfigError(
            f"{name}: not found on this machine; expected Debian's package {package or name}; "
            f"`apt-get install {package or name}`, or let `make production-local` install it"
        )
    return found


class Services:
    """A set of services. Start them one by one; `stop_all` ends everything that they started.

    Args:
        logs: folder of the services' output; made here.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._specs: dict[str, Service] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._leaders: set[int] = set()  # every process that was ever started here leads a session
        self._is_meant_to_be_down: set[str] = set()
        self._restarts: dict[str, list[float]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    @property
    def names(self) -> tuple[str, ...]:
        """Every service that was added, in that order."""
        return tuple(self._specs)

    def add(self, service: Service) -> None:
        """Make a service known; it is started by `start`."""
        self._specs[service.name] = service

    def start(self, name: str) -> None:
        """Start a service that does not run; returns at once.

        Raises:
            ConfigError: it runs already.
        """
        if self.is_running(name):
            raise ConfigError(f"service {name}: runs already as process {self.pid(name)}; stop or kill it first")
        spec = self._specs[name]
        with open(self.logs / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                spec.command,
                env=dict(spec.environment),
                cwd=spec.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
                user=spec.user,
                group=pwd.getpwnam(spec.user).pw_gid if spec.user else None,
                extra_groups=[] if spec.user else None,
            )
        self._processes[name] = process
        self._leaders.add(process.pid)
        self._is_meant_to_be_down.discard(name)

    def run(self, name: str) -> int:
        """Start a service that ends by itself and wait for its end; returns its exit code.

        Raises:
            TransientError: another service ended meanwhile.
        """
        self.start(name)
        self._is_meant_to_be_down.add(name)
        while self.is_running(name):
            self.check_alive()
            time.sleep(0.1)
        return int(self._processes[name].returncode)

    def pid(self, name: str) -> int:
        """Process id of a service that was started."""
        return self._processes[name].pid

    def is_running(self, name: str) -> bool:
        """Whether the service's own process is there (a suspended one is)."""
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def family(self, name: str) -> set[int]:
        """The service's process and everything that it started and that still runs."""
        pid = self.pid(name)
        return {p for p in process_family({pid}) | session_members({pid}) if is_alive(p)}

    def stop(self, name: str, patience_s: float = STOP_TIMEOUT_S) -> None:
        """End a service in order; what is left of it after `patience_s` is killed.

        Args:
            name: the service.
            patience_s: how long it may take, s.
        """
        if name not in self._processes:
            return
        self._is_meant_to_be_down.add(name)
        family = self.family(name)
        send_signal({self.pid(name)}, self._specs[name].stop_signal)
        send_signal(family, signal.SIGCONT)
        self._wait_gone({self.pid(name)}, patience_s)
        self.kill(name)
        self._end(family, signal.SIGKILL, STOP_TIMEOUT_S)

    def kill(self, name: str, number: int = signal.SIGKILL, with_children: bool = True) -> None:
        """Send a signal, by default SIGKILL; after SIGKILL, wait until the service's process is gone.

        Args:
            name: the service.
            number: the signal.
            with_children: to everything that it started, too; otherwise its children lose their parent.
        """
        self._is_meant_to_be_down.add(name)
        pids = self.family(name) if with_children else {self.pid(name)}
        send_signal(pids, number)
        if number == signal.SIGKILL:
            self._wait_gone(pids, STOP_TIMEOUT_S)

    def suspend(self, name: str) -> None:
        """SIGSTOP to the service and everything that it started: it is there and does nothing."""
        send_signal(self.family(name), signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT to the service and everything that it started."""
        send_signal(self.family(name), signal.SIGCONT)

    def restart(self, name: str, patience_s: float = STOP_TIMEOUT_S) -> None:
        """Stop in order where it runs, then start."""
        self.stop(name, patience_s)
        self.start(name)

    def check_alive(self) -> None:
        """Start services again that have ended by themselves; those that were stopped or killed here may be down.

        Raises:
            TransientError: one that is not restarted ended, or one ended more than RESTARTS times within RESTARTS_S.
        """
        for name, process in list(self._processes.items()):
            code = process.poll()
            if code is None or name in self._is_meant_to_be_down:
                continue
            now = time.monotonic()
            restarts = [t for t in self._restarts.get(name, []) if t > now - RESTARTS_S]
            if len(restarts) >= RESTARTS or not self._specs[name].is_restarted:
                raise TransientError(f"service {name} ended with {code}:\n{self.last_lines(name)}")
            log.warning("service %s ended with %s and is started again", name, code)
            self._restarts[name] = [*restarts, now]
            self.start(name)

    def last_lines(self, name: str, count: int = 15) -> str:
        """The end of a service's output; empty where there is none."""
        try:
            return "\n".join((self.logs / f"{name}.log").read_text(errors="replace").splitlines()[-count:])
        except OSError:
            return ""

    def stop_all(self, last: Iterable[str] = ()) -> None:
        """End everything that was started, with all child processes.

        Args:
            last: services that the others need, ended after them.
        """
        at_last = [name for name in last if name in self._processes]
        first = [name for name in self._processes if name not in at_last]
        for group in (first, at_last):
            self._is_meant_to_be_down.update(group)
            pids = {pid for name in group for pid in self.family(name)}
            for name in group:
                send_signal({self.pid(name)}, self._specs[name].stop_signal)
            self._end(pids, signal.SIGTERM, STOP_TIMEOUT_S)
            self._end(pids, signal.SIGKILL, STOP_TIMEOUT_S)
        self._end(session_members(self._leaders), signal.SIGKILL, STOP_TIMEOUT_S)
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
        self._processes = {}

    def _end(self, pids: set[int], number: int, patience_s: float) -> None:
        """Send a signal to those that still run, also to suspended ones, and wait for their end."""
        left = {pid for pid in pids if is_alive(pid)}
        send_signal(left, number)
        send_signal(left, signal.SIGCONT)
        self._wait_gone(left, patience_s)

    def _wait_gone(self, pids: set[int], patience_s: float) -> None:
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            for process in self._processes.values():
                process.poll()  # collect what has ended
            if not any(is_alive(pid) for pid in pids):
                return
            time.sleep(0.05)


def wait_ready(name: str, is_ready: Callable[[], bool], services: Services, timeout_s: float) -> None:
    """Return when a service answers.

    Args:
        name: the service, for the message.
        is_ready: whether it answers.
        services: where it runs.
        timeout_s: how long it may take, s.

    Raises:
        TransientError: it ended, or did not answer in time.
    """
    end = time.monotonic() + timeout_s
    while not is_ready():
        services.check_alive()
        if time.monotonic() > end:
            raise TransientError(f"service {name}: no answer within {timeout_s:.0f} s:\n{services.last_lines(name)}")
        time.sleep(0.1)
