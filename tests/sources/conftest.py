"""An S3 endpoint on loopback (moto's server, a process of its own), and a proxy in front of it that fails half of the
requests.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tasks.demo.local_airflow import end_with_parent
from tests.support.flaky_proxy import FlakyProxy
from tests.support.waiting import wait_until
from tests.support.web import running


def is_answering(server: subprocess.Popen[bytes], port: int) -> bool:
    """Whether the port takes connections; an error when the server has ended."""
    assert server.poll() is None, f"moto's server ended with {server.returncode}"
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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
        preexec_fn=end_with_parent,
    )
    try:
        wait_until(lambda: is_answering(server, port), "moto's server answers", poll_s=0.1)
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


@pytest.fixture
def flaky(s3_url: str) -> Iterator[FlakyProxy]:
    """A proxy in front of moto."""
    with running(FlakyProxy(s3_url)) as proxy:
        yield proxy
