"""Servers on loopback: any HTTP server in a thread, and a folder behind HTTP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

AnyServer = TypeVar("AnyServer", bound=HTTPServer)


@contextmanager
def running(server: AnyServer) -> Iterator[AnyServer]:
    """The server answers requests while the block runs, in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The folder's address while the block runs."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Quiet)) as server:
        yield f"http://127.0.0.1:{server.server_port}"
