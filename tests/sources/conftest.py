"""A real S3 endpoint on loopback (moto's server, a process of its own) and one in front of it that fails half of what
it is asked.
"""

import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """moto's server, in a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:  # a busy machine
            server.kill()
            server.wait()


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client, and an empty bucket 'images'; the environment holds the credentials."""
    import boto3

    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3_url)
    client.create_bucket(Bucket="images")
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="images"):
        for row in page.get("Contents", ()):
            client.delete_object(Bucket="images", Key=row["Key"])
    client.delete_bucket(Bucket="images")


class Flaky(ThreadingHTTPServer):
    """Hands requests on to another server; every second one is answered 503, hung up on, or broken off in its body."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), FlakyHandler)
        self.behind = behind.removeprefix("http://")
        self.asked: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.random, self.lock = random.Random(4), threading.Lock()
        self.is_down = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FlakyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Flaky = self.server  # type: ignore[assignment]
        with server.lock:
            server.asked[f"{self.command} {self.path.partition('?')[0]}"] += 1
            fate = (
                server.random.choice(("503", "hang up", "broken", "fine", "fine", "fine"))
                if not server.is_down
                else "503"
            )
            server.failed[fate] += 1
        self.close_connection = True
        if fate == "hang up":
            return
        if fate == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        behind = http.client.HTTPConnection(server.behind, timeout=30)
        behind.request(self.command, self.path, headers=dict(self.headers))
        got = behind.getresponse()
        body = got.read()
        self.send_response(got.status)
        for name, value in got.headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header(
            "Content-Length",
            got.headers["Content-Length"]
            if self.command == "HEAD" and got.headers["Content-Length"]
            else str(len(body)),
        )
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fate == "broken" else body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def flaky(s3_url: str) -> Iterator[Flaky]:
    """In front of moto."""
    server = Flaky(s3_url)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
