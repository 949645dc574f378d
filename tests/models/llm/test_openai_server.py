"""The OpenAI-compatible engine, against a small server on loopback that keeps its requests."""

import base64
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from tasks.errors import ConfigError, TransientError
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_writer
from tasks.models.llm.openai_server import ServedCaptioner
from tasks.models.llm.requests import Reply, Request
from tests.support.web import running

Answer = tuple[int, dict]


class Server(ThreadingHTTPServer):
    """Answers each request with `answer(number, body)`."""

    answer: Callable[[int, dict], Answer]
    requests: list[dict]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, **body})
        status, answer = self.server.answer(len(self.server.requests), body)
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


def completion(text: str, **more: object) -> dict:
    return {"choices": [{"message": {"content": text}, **more}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.requests = []
    with running(server):
        yield server


def captioner(
    server: Server, *, tries: int = 8, sleep: Callable[[float], None] = lambda _: None, **changes
) -> ServedCaptioner:
    url = f"http://127.0.0.1:{server.server_port}/v1/"
    config = LlmConfig("Qwen/Qwen3-VL-8B-Instruct", engine="openai", url=url, in_flight=4, max_new_tokens=9)
    return ServedCaptioner(replace(config, **changes), tries=tries, sleep=sleep)


def test_images_travel_as_bytes_before_the_text_and_replies_keep_their_order(server: Server):
    server.answer = lambda n, body: (200, completion(f" {body['messages'][0]['content'][-1]['text']}! "))
    images = tuple(Image.new("RGB", (8, 8), c) for c in ("red", "blue"))
    replies = captioner(server).chat([Request(images, f"text {n}") for n in range(20)])
    assert replies == [Reply(f"text {n}!", 7, 3) for n in range(20)]
    sent = server.requests[0]
    assert sent["path"] == "/v1/chat/completions" and sent["temperature"] == 0 and sent["max_tokens"] == 9
    urls = [part["image_url"]["url"] for part in sent["messages"][0]["content"][:2]]
    opened = [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))) for url in urls]
    assert [p.getpixel((4, 4))[0] > 128 for p in opened] == [True, False]


def test_a_busy_server_gets_the_request_again_and_an_unreachable_one_is_transient(server: Server):
    server.answer = lambda n, body: (200, completion("here")) if n > 3 else ((429, 503, 200)[n - 1], {"error": "busy"})
    waits: list[float] = []
    assert captioner(server, in_flight=1, sleep=waits.append).chat([Request((), "hello")])[0].text == "here"
    assert len(waits) == 3 and waits == sorted(waits)
    with pytest.raises(TransientError, match="after 2 tries"):
        captioner(server, url="http://127.0.0.1:9/v1", tries=2).chat([Request((), "hello")])


def test_after_an_error_no_further_request_is_sent_also_while_an_earlier_one_is_under_way(server: Server):
    """Each would be tried as long as the first ones were: a dead server would be waited for again and again."""

    def answer(number: int, body: dict) -> Answer:
        if body["messages"][0]["content"][-1]["text"] == "text 0":
            time.sleep(0.5)
            return 200, completion("late")
        return 404, {"error": "no such model"}

    server.answer = answer
    with pytest.raises(ConfigError, match="404"):
        captioner(server, in_flight=2).chat([Request((), f"text {n}") for n in range(20)])
    assert len(server.requests) <= 2


def test_a_refusal_is_not_tried_again(server: Server):
    server.answer = lambda n, body: (404, {"error": "no such model"})
    with pytest.raises(ConfigError, match="404"):
        captioner(server).chat([Request((), "hello")])
    assert len(server.requests) == 1


def test_p_yes_comes_from_the_first_token(server: Server):
    likely = [
        {"token": t, "logprob": math.log(p)} for t, p in (("Yes", 0.5), (" yes", 0.1), ("No", 0.2), ("Maybe", 0.2))
    ]
    server.answer = lambda n, body: (
        200,
        completion("Yes", logprobs={"content": [{"top_logprobs": likely if n == 1 else likely[3:]}]}),
    )
    yes = captioner(server, in_flight=1).yes_probability([Request((), "a"), Request((), "b")])
    assert yes == [pytest.approx(0.75), 0.0]
    assert server.requests[0]["max_tokens"] == 1 and server.requests[0]["logprobs"] is True
    server.answer = lambda n, body: (200, completion("Yes"))
    with pytest.raises(ConfigError, match="top_logprobs"):
        captioner(server).yes_probability([Request((), "a")])


def test_the_writer_has_a_server_of_its_own(server: Server):
    server.answer = lambda n, body: (200, completion("make it blue"))
    url = f"http://127.0.0.1:{server.server_port}/v1"
    writer = load_writer(LlmConfig("Qwen/Qwen3-8B", engine="openai", url=url, revision="abc"))
    assert (writer.name, writer.revision, writer.write(["one"])[0].text) == ("Qwen/Qwen3-8B", "abc", "make it blue")
