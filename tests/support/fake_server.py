"""An OpenAI-compatible server as a process of its own, which a test starts, breaks and kills.

    python tests/support/fake_server.py PORT LOG [JSON]

Its answers depend on the request alone. Every chat completion that it answers whole is one line in LOG, the SHA-256 of
its body: what a client would be billed for. Options:

    model     the served model's name ('tiny')
    root      where its weights are, as vLLM reports it
    fault     what goes wrong at every `every`-th request (5): 500, 429, hang, half (half-sent JSON), long (10,000
              tokens), alien (in another model's name)
    bad       [text, fault]: requests whose body holds the text always fail so: an HTTP status, or a key of BAD_ANSWERS
    cut       n: replies end with finish_reason `length` where max_tokens is at most n
    key       only requests with this key as Bearer are answered; others get 401
    die       n: the server dies before its n-th request is answered, with all requests in flight
    together  answers wait until so many requests came at once (a minute at most); the most so far is in LOG.most
    busy      429 to more requests at once than so many, with `together`
    kill      [pid file, n]: the process in the file dies by SIGKILL before the n-th request is answered
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BAD_ANSWERS = {  # with status 200
    "no choices": b'{"model": "tiny", "choices": []}',
    "error body": b'{"error": {"message": "aspect ratio must be smaller than 200", "code": 400}}',
    "error object": b'{"object": "error", "message": "image too large", "code": "413"}',
    "no json": b"<html>a proxy's page</html>",
    "not utf-8": b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
    "deep": b"[" * 100_000,
    "a number": b'{"choices": [{"message": {"content": 7}}]}',
    "null message": b'{"choices": [{"message": null}]}',
    "text usage": b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}}',
    "filtered": b'{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}',
    "gzip": b"",
}
COLOURS = ("red", "green", "blue", "teal", "orange", "purple", "black", "white")


def reply(body: dict[str, Any]) -> tuple[str, float]:
    """(text, P(yes)) that depend on nothing but the request."""
    content = body["messages"][0]["content"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    if sum(part["type"] == "image_url" for part in content) == 2:
        return (
            f"both show a wall; however the target is {COLOURS[digest[0] % 8]} and number {digest[1]}",
            0.95 if digest[0] % 4 else 0.05,
        )
    style = content[-1]["text"].splitlines()[0].removeprefix("style: ")
    return f"paint it {COLOURS[digest[0] % 8]} with {digest[1]} dots, as a {style}", 0.0


class Handler(BaseHTTPRequestHandler):
    def answer(self, status: int, content: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])

    def gather(self, most: int) -> int:
        """Wait until `most` requests came at once; returns how many are in flight with this one."""
        with self.server.lock:
            self.server.inside += 1
            inside = self.server.inside
            self.server.most = max(inside, self.server.most)
            Path(f"{self.server.log}.most").write_text(str(self.server.most))
        end = time.monotonic() + 60
        while self.server.most < most and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.02)
        with self.server.lock:
            self.server.inside -= 1
        return inside

    def do_GET(self) -> None:
        options = self.server.options
        known = {
            "/v1/models": {"data": [{"id": options["model"], "root": options.get("root", options["model"])}]},
            "/version": {"version": "0.fake"},
        }
        self.answer(200 if self.path in known else 404, json.dumps(known.get(self.path, {})).encode())

    def answer_badly(self, fault: int | str) -> None:
        if fault == "gzip":
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"none")
        elif isinstance(fault, int):
            self.answer(fault, b'{"error": {"message": "absolute aspect ratio must be smaller than 200"}}')
        else:
            self.answer(200, BAD_ANSWERS[fault])

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body, options = json.loads(raw), self.server.options
        if options.get("key") and self.headers["Authorization"] != f"Bearer {options['key']}":
            return self.answer(401, f'{{"error": "not {self.headers["Authorization"]}"}}'.encode())
        if options.get("bad") and options["bad"][0] in raw.decode():
            return self.answer_badly(options["bad"][1])
        with self.server.lock:
            self.server.requests += 1
            number = self.server.requests
        if options.get("kill") and number == options["kill"][1]:
            os.kill(int(Path(options["kill"][0]).read_text()), signal.SIGKILL)
            return
        if number == options.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        fault = options.get("fault") if number % options.get("every", 5) == 0 else None
        if options.get("together"):
            inside = self.gather(options["together"])
            if inside > options.get("busy", inside):
                return self.answer(429, b'{"error": "too many"}')
        if fault in ("500", "429"):
            return self.answer(int(fault), b'{"error": "try later"}')
        if fault == "hang":
            time.sleep(30)
        text, yes = reply(body)
        likely = [
            {"token": "yes", "logprob": 0.0 if yes > 0.5 else -3.0},
            {"token": "no", "logprob": -3.0 if yes > 0.5 else 0.0},
        ]
        choice = {
            "message": {"content": "word " * 10_000 if fault == "long" else text},
            "logprobs": {"content": [{"top_logprobs": likely}]},
            "finish_reason": "length" if body["max_tokens"] <= options.get("cut", 0) else "stop",
        }
        name = "another" if fault == "alien" else body["model"]
        content = json.dumps(
            {"model": name, "choices": [choice], "usage": {"prompt_tokens": len(raw) % 97 + 3, "completion_tokens": 7}}
        ).encode()
        if fault == "half":
            self.close_connection = True
            return self.answer(200, content, len(content) // 2)
        with self.server.lock, open(self.server.log, "a") as log:
            log.write(hashlib.sha256(raw).hexdigest() + "\n")
        self.answer(200, content)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    options: dict[str, Any]
    log: str
    requests = inside = most = 0
    lock = threading.Lock()
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    server.log, server.options = (
        sys.argv[2],
        {"model": "tiny", **json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}")},
    )
    print("ready", flush=True)
    server.serve_forever()
