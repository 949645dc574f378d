"""Serve a repository to everybody, read-only, by HTTP: what researchers clone from.

    python -m tasks serve_git --repository /data/origin.git [--host 0.0.0.0] [--port 8090]
    git clone http://HOST:8090/origin.git

The work is git's own `git http-backend`; this is the web server in front of it (docker-compose's service `git`). Only
reading is offered: the path of git-receive-pack is refused here and switched off there, so nobody needs a login and
nobody can push. Where HEAD is the branch of the versions, that branch and the tags are all that is offered: a clone
brings neither the code's history nor the deployment's own parameters on branch `main`. Put a proxy with TLS in front
before the port is opened to a network.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from tasks.errors import ConfigError
from tasks.publish.published import BRANCH

REQUEST_TIMEOUT_S = 60.0  # of one read of a client that says nothing
LINGER_TIMEOUT_S = 2.0  # of one read after a refusal
LINGER_BYTES = 2**20  # read and thrown away after a refusal
MOST_AT_ONCE = 16  # git processes side by side, a count; each packs objects
BLOCK_BYTES = 65_536
MOST_REQUEST_BYTES = 64 * 2**20  # of a clone's wishes; a real one is some kilobytes
# All that a clone or a fetch asks for: by the smart protocol, and by the dumb one.
READING = re.compile(
    r"/(?P<path>info/refs|git-upload-pack|HEAD|objects/info/[\w-]+|objects/[0-9a-f]{2}/[0-9a-f]{38}"
    r"|objects/pack/pack-[0-9a-f]{40}\.(?:pack|idx))"
)
QUERIES = ("", "service=git-upload-pack")


class ReadOnlyGit(BaseHTTPRequestHandler):
    """One request: a git process answers it."""

    protocol_version = "HTTP/1.0"  # the connection's end is the answer's end
    timeout = REQUEST_TIMEOUT_S
    server: GitServer

    def do_GET(self) -> None:
        """References, or a file of the repository."""
        self._answer(b"")

    def do_POST(self) -> None:
        """The objects of a clone or a fetch."""
        try:
            wishes = b"".join(self._body())
        except ValueError as error:
            self.send_error(400, str(error))
            self._linger()
            return
        self._answer(wishes)

    def _linger(self) -> None:
        """Read on for a moment: a connection closed before its request is read is reset, and the answer lost."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(LINGER_TIMEOUT_S)
        with contextlib.suppress(OSError):
            for _ in range(LINGER_BYTES // BLOCK_BYTES):
                if not self.rfile.read1(BLOCK_BYTES):  # type: ignore[attr-defined]
                    break

    def _body(self) -> Iterator[bytes]:
        """The request's body, of a stated length or in chunks (git sends more than 1 MiB in chunks).

        Raises:
            ValueError: more than MOST_REQUEST_BYTES, or not of that form.
        """
        left = MOST_REQUEST_BYTES
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline(32).split(b";")[0], 16):
                left -= size
                if left < 0 or size < 0:
                    raise ValueError("request too long")
                yield self.rfile.read(size)
                self.rfile.readline(4)
            return
        size = int(self.headers.get("Content-Length") or 0)
        if not 0 <= size <= left:
            raise ValueError("request too long")
        yield self.rfile.read(size)

    def _answer(self, wishes: bytes) -> None:
        path, _, query = self.path.partition("?")
        repository = self.server.repository
        name = f"/{repository.name}"
        match = READING.fullmatch(path.removeprefix(name)) if path.startswith(name) else None
        if match is None or query not in QUERIES:
            self.send_error(403 if "receive-pack" in self.path else 404, "only clone and fetch are served here")
            return
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "GIT_PROJECT_ROOT": str(repository.parent),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(wishes)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": self.client_address[0],
            **self.server.git_settings(),
        }
        with self.server.slots:
            process = subprocess.Popen(
                ["git", "http-backend"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            try:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(wishes)
                process.stdin.close()
                self._send(process.stdout)
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                process.kill()  # the client has gone
            finally:
                process.wait()

    def _send(self, output: Any) -> None:
        """Send the CGI answer on: its headers, then its body as it comes."""
        headers: list[tuple[str, str]] = []
        status = 200
        for line in iter(output.readline, b""):
            key, _, value = line.decode("latin-1").strip().partition(":")
            if not key:
                break
            if key.lower() == "status":
                status = int(value.split()[0])
            else:
                headers.append((key, value.strip()))
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.end_headers()
        shutil.copyfileobj(output, self.wfile, BLOCK_BYTES)


class GitServer(ThreadingHTTPServer):
    """The server of one repository; `serve_forever` runs it.

    Args:
        repository: the bare repository; it may be made later.
        host, port: where it listens; port 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, repository: Path, host: str, port: int) -> None:
        super().__init__((host, port), ReadOnlyGit)
        self.repository = repository.resolve()
        self.slots = BoundedSemaphore(MOST_AT_ONCE)

    def git_settings(self) -> dict[str, str]:
        """Git's settings as its environment states them.

        The repository belongs to the workers' user; nobody pushes by HTTP; where HEAD is the branch of the versions,
        other branches are hidden. A deployment's own clone asks origin without this server, and sees them.
        """
        settings = [("safe.directory", str(self.repository)), ("http.receivepack", "false")]
        head = self.repository / "HEAD"
        if head.exists() and head.read_text().strip() == f"ref: refs/heads/{BRANCH}":
            settings += [("uploadpack.hideRefs", "refs/heads"), ("uploadpack.hideRefs", f"!refs/heads/{BRANCH}")]
        out = {"GIT_CONFIG_COUNT": str(len(settings))}
        for number, (key, value) in enumerate(settings):
            out |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        return out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks serve_git`."""
    parser.add_argument("--repository", type=Path, required=True, help="the bare repository, such as /data/origin.git")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8090, help="TCP port (default 8090)")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until the process is ended.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    try:
        server = GitServer(args.repository, args.host, args.port)
    except OSError as error:
        raise ConfigError(
            f"serve_git: {args.host}:{args.port} cannot be listened on: {error}; "
            "expected a free port; choose one with --port"
        ) from error
    with server:
        print(
            f"serving {server.repository} at http://{args.host}:{server.server_port}/{server.repository.name}",
            flush=True,
        )
        server.serve_forever()
    return {}
