"""A model behind one or several OpenAI-compatible servers (vLLM's and others'), for captioner and writer.

- Images travel inside the request, as base64 JPEG: a server needs neither the files nor the web.
- A request that fails (429, 5xx, broken connection or answer, timeout) is sent again, to the next replica, after a
  delay that doubles. A busy server (429, 503) gets half as many requests at once, and more again as it answers.
- A reply has a deadline and a size limit, however slowly it trickles in.
- Before its first request and after any fault, each server is asked which model it serves; another model than before,
  or a reply in another model's name, is an error.
- A reply is in the cache before it is returned, so that a killed run repeats only the requests in flight.

See docs/decisions/0041.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import ConfigError, TransientError
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.concurrency_limiter import ConcurrencyLimiter
from tasks.models.llm.request_cache import request_key
from tasks.models.llm.requests import Reply, Request, UsageTracking
from tasks.models.llm.yes_no import TOP_LOGPROBS, yes_probability

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_REPLY_BYTES = 4 << 20  # a longer answer is no chat completion
BUSY = (429, 503)  # HTTP statuses of a busy server
CACHED_IMAGES = 4096  # encoded images kept for the next request that shows them, a count
MAX_DELAY_S = 30.0  # between two tries of a request, s


class Replica:
    """One server.

    Attributes:
        url: base URL, ending in /v1.
        limiter: of the requests in flight there.
        is_verified: whether its model was verified since its last fault.
    """

    def __init__(self, url: str, in_flight: int) -> None:
        self.url, self.limiter, self.is_verified = url.rstrip("/"), ConcurrencyLimiter(in_flight), False
        self.lock = threading.Lock()


class RetryableError(Exception):
    """A request failed in a way that another try may mend."""


class Answer(NamedTuple):
    """One HTTP answer: status and content."""

    status: int
    content: bytes

    @property
    def excerpt(self) -> str:
        """The beginning of the content, for errors."""
        return self.content[:300].decode(errors="replace")


class ServedCaptioner(UsageTracking):
    """A multimodal LLM behind OpenAI-compatible servers.

    `revision` is the one that params pin, or 'served': a server does not report it.
    """

    def __init__(self, config: LlmConfig, *, tries: int = 8, sleep: Callable[[float], None] = time.sleep) -> None:
        """Connect; nothing but the server's version is requested yet.

        Args:
            config: the model and its servers.
            tries: of one request, a count.
            sleep: waits between tries, s.
        Raises:
            ConfigError: no url is named.
        """
        import httpx

        self.name, self.revision, self.seed = config.model, config.revision or "served", config.seed
        self.max_new_tokens, self.tries, self.timeout_s = config.max_new_tokens, tries, config.timeout_s
        self.replicas = [Replica(url.strip(), config.in_flight) for url in config.url.split(",") if url.strip()]
        if not self.replicas:
            raise ConfigError(
                f"model '{config.model}': engine 'openai' needs a url; name the server's base URL, ending in /v1"
            )
        self.in_flight = config.in_flight * len(self.replicas)
        self._sleep, self._next_replica, self._served_root = sleep, itertools.count(), ""
        self._client = httpx.Client(
            timeout=httpx.Timeout(config.timeout_s, connect=min(10.0, config.timeout_s)),
            limits=httpx.Limits(max_connections=self.in_flight + 1),
        )
        self._encoded: dict[int, tuple[Image, str]] = {}
        self._lock = threading.Lock()
        sampling = {"temperature": 0, "max_tokens": config.max_new_tokens, "seed": config.seed}
        self._track_usage(self._engine_version(), sampling, config.cache)

    # --- which model a server has ---

    def _engine_version(self) -> str:
        """The engine's name, with the first server's version where it reports one (vLLM: GET /version beside /v1)."""
        import httpx

        try:
            answer = self._client.get(self.replicas[0].url.removesuffix("/v1") + "/version", timeout=5.0)
            return f"openai, vllm {answer.json()['version']}" if answer.status_code == 200 else "openai"
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return "openai"

    def _verify_model(self, replica: Replica) -> None:
        """Make sure that the server has our model, and the same one as all replicas so far.

        Servers without GET /models are trusted; their replies name the model.

        Raises:
            ConfigError: it has another one.
            RetryableError: it is busy or failing.
        """
        with replica.lock:
            if replica.is_verified:
                return
            served = self._served_models(replica)
            if served is not None:
                if self.name not in served:
                    raise ConfigError(
                        f"{replica.url}: serves {sorted(served)}, not '{self.name}'; start it with that model, or "
                        "change the parameter"
                    )
                with self._lock:
                    self._served_root = self._served_root or served[self.name]
                    if served[self.name] != self._served_root:
                        raise ConfigError(
                            f"{replica.url}: '{self.name}' is {served[self.name]} there now and was "
                            f"{self._served_root}; one run has one model: start the same one again, or start the run "
                            "anew"
                        )
            replica.is_verified = True

    def _served_models(self, replica: Replica) -> dict[str, str] | None:
        """Served model name -> its root (folder or repository); None where the server does not report it."""
        answer = self._client.get(f"{replica.url}/models", timeout=min(30.0, self.timeout_s))
        if answer.status_code in BUSY or (answer.status_code >= 500 and answer.status_code != 501):
            raise RetryableError(f"GET /models: {answer.status_code}")
        if answer.status_code != 200:
            return None
        try:
            return {str(m["id"]): str(m.get("root") or m["id"]) for m in answer.json()["data"]}
        except (ValueError, KeyError, TypeError):
            return None

    # --- one request ---

    def _data_url(self, image: Image) -> str:
        """The image as a base64 JPEG; cached by the image object."""
        with self._lock:
            entry = self._encoded.get(id(image))
            if entry is not None and entry[0] is image:
                return entry[1]
        file = io.BytesIO()
        image.save(file, "JPEG", quality=95)
        text = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        with self._lock:
            if len(self._encoded) >= CACHED_IMAGES:
                self._encoded.clear()
            self._encoded[id(image)] = (image, text)
        return text

    def _body(self, request: Request, options: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON body of a chat completion; `options` are added to it."""
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": self._data_url(image)}} for image in request.images
        ]
        content.append({"type": "text", "text": request.text})
        guided: dict[str, Any] = {}
        if request.schema:
            schema = {"name": "reply", "schema": request.schema}
            guided["response_format"] = {"type": "json_schema", "json_schema": schema}
        return {
            "model": self.name,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": self.seed,
            **guided,
            **options,
        }

    def _complete(self, request: Request, options: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one request, from the cache or a server.

        Returns:
            text, prompt_tokens, output_tokens, and likely: [token, log-probability] rows of the first token or None.
        """
        body = self._body(request, options)
        key = request_key({"body": body, "revision": self.revision}) if self.cache is not None else ""
        cached = self.cache.get(key) if self.cache is not None else None
        with self._lock:
            self.usage.requests += 1
            self.usage.cached += cached is not None
        if cached is not None:
            return dict(cached)
        reply = _parse_completion(self._post(body))
        if self.cache is not None:
            self.cache.put(key, reply)
        with self._lock:
            self.usage.prompt_tokens += reply["prompt_tokens"]
            self.usage.output_tokens += reply["output_tokens"]
        return reply

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """One chat completion; tries again, at the next replica, after any fault that another try may mend.

        Raises:
            TransientError: still failing after all tries.
            ConfigError: a server refuses the request (any 4xx but 429), or has another model.
        """
        import httpx

        fault, first = "", next(self._next_replica)
        for attempt in range(self.tries):
            replica = self.replicas[(first + attempt) % len(self.replicas)]
            if attempt:
                self._sleep(min(MAX_DELAY_S, 0.5 * 2**attempt) * random.uniform(0.7, 1.3))
            try:
                with replica.limiter.slot():
                    self._verify_model(replica)
                    answer = self._exchange(replica, body)
                completion = self._check_answer(replica, answer)
            except RetryableError as error:
                fault = str(error)
            except (httpx.TransportError, TimeoutError) as error:
                replica.is_verified = False  # it may come back with another model
                fault = f"{type(error).__name__}: {error}"
            else:
                replica.limiter.on_success()
                return completion
        urls = ", ".join(r.url for r in self.replicas)
        raise TransientError(
            f"{urls}: no reply for '{self.name}' after {self.tries} tries ({fault}); is the server up and is it "
            "serving that model?"
        )

    def _check_answer(self, replica: Replica, answer: Answer) -> dict[str, Any]:
        """The chat completion in an answer.

        Raises:
            RetryableError: the server is busy or failing, or the answer is no chat completion.
            ConfigError: the server refuses the request, or answers as another model.
        """
        if answer.status in BUSY:
            replica.limiter.on_busy()
        if answer.status == 429 or answer.status >= 500:
            replica.is_verified = replica.is_verified and answer.status == 429
            raise RetryableError(f"{answer.status} {answer.excerpt[:200]}")
        if answer.status != 200:
            raise ConfigError(
                f"{replica.url}: the server refuses the request for '{self.name}': {answer.status} {answer.excerpt}"
            )
        try:
            completion: dict[str, Any] = json.loads(answer.content)
            completion["choices"][0]["message"].get("content")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise RetryableError(f"not a chat completion: {answer.excerpt[:200]}") from None
        if completion.get("model", self.name) != self.name:
            raise ConfigError(
                f"{replica.url}: answers as '{completion['model']}', asked for '{self.name}'; was it restarted with "
                "another model?"
            )
        return completion

    def _exchange(self, replica: Replica, body: dict[str, Any]) -> Answer:
        """One POST, complete within the deadline and the size limit.

        Raises:
            TimeoutError: it was not.
        """
        end = time.monotonic() + self.timeout_s
        content = b""
        with self._client.stream("POST", f"{replica.url}/chat/completions", json=body) as response:
            for block in response.iter_bytes():
                content += block
                if len(content) > MAX_REPLY_BYTES:
                    raise TimeoutError(f"an answer of more than {MAX_REPLY_BYTES} bytes")
                if time.monotonic() > end:
                    raise TimeoutError(f"not done after {self.timeout_s:g} s")
            return Answer(response.status_code, content)

    # --- many requests ---

    def _complete_all(self, requests: Sequence[Request], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Replies in order; the first error ends all: requests that were not sent by then never are."""
        with self.usage.clock(), ThreadPoolExecutor(self.in_flight) as pool:
            pending: list[Future[dict[str, Any]]] = [pool.submit(self._complete, r, options) for r in requests]
            try:
                return [reply.result() for reply in pending]
            except BaseException:
                for reply in pending:
                    reply.cancel()
                raise

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        """One greedy reply per request, in order."""
        replies = self._complete_all(requests, {"max_tokens": self.max_new_tokens})
        return [Reply(r["text"], r["prompt_tokens"], r["output_tokens"]) for r in replies]

    def yes_probability(self, requests: Sequence[Request]) -> list[float]:
        """P(yes) among yes and no at the first answer token; 0 where neither is among the 20 most likely.

        Raises:
            ConfigError: the server reports no log-probabilities.
        """
        replies = self._complete_all(requests, {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS})
        if any(r["likely"] is None for r in replies):
            raise ConfigError(
                f"{self.replicas[0].url}: '{self.name}' gives no top_logprobs, which judging reads; serve it with "
                "logprobs on"
            )
        return [yes_probability((token, logprob) for token, logprob in r["likely"]) for r in replies]


class ServedWriter(ServedCaptioner):
    """A text LLM behind OpenAI-compatible servers."""

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        """One greedy reply per prompt, in order."""
        return self.chat([Request((), prompt) for prompt in prompts])


def _parse_completion(completion: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a chat completion; see `ServedCaptioner._complete`."""
    choice, tokens = completion["choices"][0], completion.get("usage") or {}
    likely = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
    return {
        "text": (choice["message"].get("content") or "").strip(),
        "prompt_tokens": int(tokens.get("prompt_tokens") or 0),
        "output_tokens": int(tokens.get("completion_tokens") or 0),
        "likely": [[str(t["token"]), float(t["logprob"])] for t in likely] if likely else None,
    }
