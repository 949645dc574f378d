"""A model behind OpenAI-compatible servers (vLLM's and others'), asked so that no fault of theirs costs twice or passes
unseen.

Images travel inside the request, as bytes. A request that fails is asked again, at the next replica, after a wait that
doubles; a busy server (429, 503) is given half as many at once and more again as it recovers. A reply has a deadline
and a size, whatever trickles in. Before its first request, and after any fault, each server is asked which model it
has: another one than before is refused, and so is a reply in another model's name. A reply is in the cache before it is
handed on, so a killed run repeats at most what was in flight. See docs/decisions/0041.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigError, TransientError
from tasks.models.llm.request_cache import RequestCache, key_of
from tasks.models.llm.requests import Accounted, Reply, Request
from tasks.models.llm.vllm_engine import LIKELIEST, p_yes

if TYPE_CHECKING:
    from PIL.Image import Image

REPLY_BYTES = 4 << 20  # a longer answer is no chat completion
BUSY = (429, 503)
IMAGES_KEPT = 4096  # encoded images kept for the next request that shows them


class Gate:
    """How many requests are at one server: at most `limit`, which halves when it says busy and grows by one per `limit`
    replies.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit, self._inside, self._good = most, most, 0, 0
        self._free = threading.Condition()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Wait for a place, and hold it."""
        with self._free:
            self._free.wait_for(lambda: self._inside < self.limit)
            self._inside += 1
        try:
            yield
        finally:
            with self._free:
                self._inside -= 1
                self._free.notify()

    def busy(self) -> None:
        """The server said that it is too much."""
        with self._free:
            self.limit, self._good = max(1, self.limit // 2), 0

    def good(self) -> None:
        """The server answered."""
        with self._free:
            self._good += 1
            if self._good >= self.limit and self.limit < self.most:
                self.limit, self._good = self.limit + 1, 0
                self._free.notify()


class Replica:
    """One server: its place, its gate, and whether its model must be looked at before the next request."""

    def __init__(self, url: str, in_flight: int) -> None:
        self.url, self.gate, self.is_known = url.rstrip("/"), Gate(in_flight), False
        self.lock = threading.Lock()


class ServedCaptioner(Accounted):
    """A model behind one or several OpenAI-compatible servers; `revision` is what params pin, for the server does not
    tell.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None,
        url: str,
        in_flight: int,
        max_new_tokens: int,
        timeout_s: float = 300.0,
        tries: int = 8,
        seed: int = 0,
        cache: RequestCache | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx

        self.name, self.revision, self.seed = model, revision or "served", seed
        self.max_new_tokens, self.tries, self.timeout_s = max_new_tokens, tries, timeout_s
        self.replicas = [Replica(u.strip(), in_flight) for u in url.split(",") if u.strip()]
        if not self.replicas:
            raise ConfigError(
                f"model '{model}': engine 'openai' needs a url; name the server's base URL, ending in /v1"
            )
        self.in_flight = in_flight * len(self.replicas)
        self._sleep, self._turn, self._root = sleep, itertools.count(), ""
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            limits=httpx.Limits(max_connections=self.in_flight + 1),
        )
        self._files: dict[int, tuple[Image, str]] = {}
        self._lock = threading.Lock()
        self._account(self._version(), {"temperature": 0, "max_tokens": max_new_tokens, "seed": seed}, cache)

    # --- which model is there ---

    def _version(self) -> str:
        """The first server's version where it tells (vLLM: GET /version, beside /v1)."""
        import httpx

        try:
            answer = self._client.get(self.replicas[0].url.removesuffix("/v1") + "/version", timeout=5.0)
            return f"openai, vllm {answer.json()['version']}" if answer.status_code == 200 else "openai"
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return "openai"

    def _look(self, replica: Replica) -> None:
        """Make sure that the server has our model, and the one that it had; servers without GET /models are taken at
        their replies' word.

        Raises:
            ConfigError: it has another one.
        """
        import httpx

        with replica.lock:
            if replica.is_known:
                return
            answer = self._client.get(f"{replica.url}/models", timeout=min(30.0, self.timeout_s))
            if answer.status_code in BUSY or (answer.status_code >= 500 and answer.status_code != 501):
                raise httpx.ReadError(f"GET /models: {answer.status_code}")
            try:
                served = (
                    {str(m["id"]): str(m.get("root") or m["id"]) for m in answer.json()["data"]}
                    if answer.status_code == 200
                    else None
                )
            except (ValueError, KeyError, TypeError):
                served = None
            if served is not None:
                if self.name not in served:
                    raise ConfigError(
                        f"{replica.url}: serves {sorted(served)}, not '{self.name}'; start it with that model, or change the parameter"
                    )
                with self._lock:
                    self._root = self._root or served[self.name]
                    if served[self.name] != self._root:
                        raise ConfigError(
                            f"{replica.url}: '{self.name}' is {served[self.name]} there now and was {self._root}; one run has one model: "
                            "start the same one again, or start the run anew"
                        )
            replica.is_known = True

    # --- one request ---

    def _data_url(self, image: Image) -> str:
        with self._lock:
            found = self._files.get(id(image))
            if found is not None and found[0] is image:
                return found[1]
        file = io.BytesIO()
        image.save(file, "JPEG", quality=95)
        text = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        with self._lock:
            if len(self._files) >= IMAGES_KEPT:
                self._files.clear()
            self._files[id(image)] = (image, text)
        return text

    def _body(self, request: Request, more: dict[str, Any]) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": self._data_url(i)}} for i in request.images
        ]
        content.append({"type": "text", "text": request.text})
        guided = (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": request.schema}}}
            if request.schema
            else {}
        )
        return {
            "model": self.name,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": self.seed,
            **guided,
            **more,
        }

    def _asked(self, request: Request, more: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request, from the cache or from a server: text, prompt_tokens, output_tokens, likely."""
        body = self._body(request, more)
        key = key_of({"body": body, "revision": self.revision}) if self.cache is not None else ""
        found = self.cache.get(key) if self.cache is not None else None
        with self._lock:
            self.spent.requests += 1
            self.spent.cached += found is not None
        if found is not None:
            return dict(found)
        answer = self._post(body)
        choice, used = answer["choices"][0], answer.get("usage") or {}
        likely = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
        kept: dict[str, Any] = {
            "text": (choice["message"].get("content") or "").strip(),
            "prompt_tokens": int(used.get("prompt_tokens") or 0),
            "output_tokens": int(used.get("completion_tokens") or 0),
            "likely": [[str(t["token"]), float(t["logprob"])] for t in likely] if likely else None,
        }
        if self.cache is not None:
            self.cache.put(key, kept)
        with self._lock:
            self.spent.prompt_tokens += kept["prompt_tokens"]
            self.spent.output_tokens += kept["output_tokens"]
        return kept

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """One chat completion; waits and tries again on 429, 5xx, broken connections, broken answers and timeouts.

        Raises:
            TransientError: still failing after all tries.
            ConfigError: a server refuses the request (any other 4xx), or has another model.
        """
        import httpx

        problem, turn = "", next(self._turn)
        for attempt in range(self.tries):
            replica = self.replicas[(turn + attempt) % len(self.replicas)]
            if attempt:
                self._sleep(min(30.0, 0.5 * 2**attempt) * random.uniform(0.7, 1.3))
            try:
                with replica.gate.place():
                    self._look(replica)
                    status, content = self._exchange(replica, body)
            except (httpx.TransportError, TimeoutError) as error:
                replica.is_known = False  # it may come back as another one
                problem = f"{type(error).__name__}: {error}"
                continue
            text = content[:300].decode(errors="replace")
            if status in BUSY:
                replica.gate.busy()
            if status == 429 or status >= 500:
                replica.is_known = replica.is_known and status == 429
                problem = f"{status} {text[:200]}"
                continue
            if status != 200:
                raise ConfigError(f"{replica.url}: the server refuses the request for '{self.name}': {status} {text}")
            try:
                answer: dict[str, Any] = json.loads(content)
                answer["choices"][0]["message"].get("content")
            except (ValueError, KeyError, IndexError, TypeError, AttributeError):
                problem = f"not a chat completion: {text[:200]}"
                continue
            if answer.get("model", self.name) != self.name:
                raise ConfigError(
                    f"{replica.url}: answers as '{answer['model']}', asked for '{self.name}'; was it restarted with another model?"
                )
            replica.gate.good()
            return answer
        urls = ", ".join(r.url for r in self.replicas)
        raise TransientError(
            f"{urls}: no reply for '{self.name}' after {self.tries} tries ({problem}); is the server up and is it serving that model?"
        )

    def _exchange(self, replica: Replica, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and content of one POST, whole within the deadline and the size."""
        end = time.monotonic() + self.timeout_s
        content = b""
        with self._client.stream("POST", f"{replica.url}/chat/completions", json=body) as response:
            for block in response.iter_bytes():
                content += block
                if len(content) > REPLY_BYTES:
                    raise TimeoutError(f"an answer of more than {REPLY_BYTES} bytes")
                if time.monotonic() > end:
                    raise TimeoutError(f"not done after {self.timeout_s:g} s")
            return response.status_code, content

    # --- many ---

    def _each(self, requests: Sequence[Request], more: dict[str, Any]) -> list[dict[str, Any]]:
        """Answers in order; the first error ends all: what has not been sent by then never is."""
        with self.spent.clock(), ThreadPoolExecutor(self.in_flight) as pool:
            waiting: list[Future[dict[str, Any]]] = [pool.submit(self._asked, r, more) for r in requests]
            try:
                return [answer.result() for answer in waiting]
            except BaseException:
                for answer in waiting:
                    answer.cancel()
                raise

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        """One greedy reply per request, in order."""
        answers = self._each(requests, {"max_tokens": self.max_new_tokens})
        return [Reply(a["text"], a["prompt_tokens"], a["output_tokens"]) for a in answers]

    def yes_probability(self, requests: Sequence[Request]) -> list[float]:
        """P(yes) among yes and no at the first answer token; 0 where neither is among the 20 likeliest."""
        answers = self._each(requests, {"max_tokens": 1, "logprobs": True, "top_logprobs": LIKELIEST})
        if any(a["likely"] is None for a in answers):
            raise ConfigError(
                f"{self.replicas[0].url}: '{self.name}' gives no top_logprobs, which judging reads; serve it with logprobs on"
            )
        return [p_yes([(t, p) for t, p in a["likely"]]) for a in answers]
