"""An HTTP proxy in front of another server, which fails about half of the requests."""

import http.client
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAILURES = ("503", "hang up", "broken")


class FlakyProxy(ThreadingHTTPServer):
    """Forwards requests; half of them are answered 503, hung up on, or broken off in the body.

    Attributes:
        requests: `METHOD path` -> requests seen.
        outcomes: one of FAILURES or 'fine' -> requests that ended so.
        is_down: answer 503 to all requests.
    """

    daemon_threads = True

    def __init__(self, server_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server_host = server_url.removeprefix("http://")
        self.requests: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.random, self.lock = random.Random(4), threading.Lock()
        self.is_down = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are expected."""

    @property
    def url(self) -> str:
        """Address of the proxy."""
        return f"http://127.0.0.1:{self.server_port}"

    def choose_outcome(self, request: str) -> str:
        """Count a request and draw how it ends."""
        with self.lock:
            self.requests[request] += 1
            outcome = "503" if self.is_down else self.random.choice((*FAILURES, "fine", "fine", "fine"))
            self.outcomes[outcome] += 1
            return outcome


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        proxy: FlakyProxy = self.server  # type: ignore[assignment]
        outcome = proxy.choose_outcome(f"{self.command} {self.path.partition('?')[0]}")
        self.close_connection = True
        if outcome == "hang up":
            return
        if outcome == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection(proxy.server_host, timeout=30)
        connection.request(self.command, self.path, headers=dict(self.headers))
        response = connection.getresponse()
        body = response.read()
        self.send_response(response.status)
        for name, value in response.headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        stated = response.headers["Content-Length"]
        self.send_header("Content-Length", stated if self.command == "HEAD" and stated else str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if outcome == "broken" else body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass
