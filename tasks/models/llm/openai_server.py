"""A model behind one or several OpenAI-compatible servers (vLLM's and others'), for captioner and writer.

- Images travel inside the request, as base64 JPEG: a server needs neither the files nor the web.
- A request goes to the server with the fewest requests in flight; one that fails is left out for a while
  (tasks/models/llm/replicas.py). A busy server (429, 503) gets half as many requests at once, and more again as it
  answers.
- A request that fails (429, 5xx, broken connection or answer, timeout) is sent again after a delay that doubles. Where
  no server answers at all, tries go on for `outage_s`.
- A request that a server refuses (400, 413, 422, ...), or that it cannot answer while it answers others, gets no reply
  but a `Refusal` with the server's words: one bad request does not stop the rest. Before anything succeeded, a plain
  request of the same kind decides whether the refusal is about the request or about the client's settings.
- A reply has a deadline and a size limit, however slowly it trickles in.
- Before the first request of a call, after any fault and over any new connection, each server is asked which model it
  serves; another model than before in this run, or a reply in another model's name, is an error.
- A reply is in the cache before it is returned, so that a killed run repeats only the requests in flight.
See docs/decisions/0041 and 0070.
"""

from __future__ import annotations

import base64
import io
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tasks.config.urls import check_server_urls, split_urls
from tasks.errors import ConfigError, TransientError
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.completions import (
    BUSY,
    Answer,
    PersistentFault,
    RefusedError,
    RejectedError,
    RetryableError,
    read_completion,
)
from tasks.models.llm.replicas import Replica, ReplicaPool
from tasks.models.llm.request_cache import request_key
from tasks.models.llm.requests import Refusal, Reply, Request, UsageTracking
from tasks.models.llm.served_identity import ServedIdentity
from tasks.models.llm.yes_no import TOP_LOGPROBS, yes_probability

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_REPLY_BYTES = 4 << 20  # a longer answer is no chat completion
CACHED_IMAGES = 4096  # encoded images kept for the next request that shows them, a count
MAX_DELAY_S = 30.0  # between two tries of a request, s
BROKEN_TRIES = 3  # of a request whose answers are no chat completions, a count: greedy answers repeat themselves
PROBE_TEXT = "Is this a picture? Answer yes or no."


class ServedCaptioner(UsageTracking):
    """A multimodal LLM behind OpenAI-compatible servers.

    `revision` is the one that params pin, or 'served': a server does not report it.
    """

    def __init__(self, config: LlmConfig, *, tries: int = 8, sleep: Callable[[float], None] = time.sleep) -> None:
        """Connect; nothing is requested yet.

        Args:
            config: the model and its servers.
            tries: of one request that a server answers with an error, a count.
            sleep: waits between tries, s.
        Raises:
            ConfigError: no url is named, or one that is none.
        """
        import httpx

        self.name, self.revision, self.seed = config.model, config.revision or "served", config.seed
        self.max_new_tokens, self.tries, self.timeout_s = config.max_new_tokens, tries, config.timeout_s
        self.outage_s, self._api_key = config.outage_s, config.api_key
        urls = server_urls(config)
        self.pool = ReplicaPool(urls, config.in_flight)
        self.in_flight = config.in_flight * len(urls)
        self._sleep = sleep
        self._client = httpx.Client(
            timeout=httpx.Timeout(config.timeout_s, connect=min(10.0, config.timeout_s)),
            limits=httpx.Limits(max_connections=self.in_flight + 1),
            headers={"Authorization": f"Bearer {config.api_key}"} if config.api_key else {},
        )
        self.identity = ServedIdentity(config.model, self._get, config.identity_folder)
        self._has_asked = False  # whether a server has said which weights it has
        self._encoded: dict[int, tuple[Image, str]] = {}
        self._lock, self._probe_lock = threading.Lock(), threading.Lock()
        sampling = {"temperature": 0, "max_tokens": config.max_new_tokens, "seed": config.seed}
        self._track_usage(self.identity.engine_version(urls[0]), sampling, config.cache)

    @property
    def replicas(self) -> list[Replica]:
        """The servers."""
        return self.pool.replicas

    def _redact(self, text: str) -> str:
        """The text without the API key, should a server repeat it."""
        return text.replace(self._api_key, "***") if self._api_key else text

    def _get(self, url: str, timeout_s: float) -> Answer:
        """One GET."""
        response = self._client.get(url, timeout=min(timeout_s, self.timeout_s))
        return Answer(response.status_code, response.content)

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
        """The JSON body of a chat completion; `options` are added to it, `request.max_tokens` takes precedence."""
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
            **({"max_tokens": request.max_tokens} if request.max_tokens else {}),
        }

    def _complete(self, request: Request, options: Mapping[str, Any]) -> dict[str, Any] | Refusal:
        """The reply to one request, from the cache or a server, as of `read_completion`; or why there is none."""
        body = self._body(request, options)
        cached = self.cache.get(self._key(body)) if self.cache is not None else None
        with self._lock:
            self.usage.requests += 1
            self.usage.cached += cached is not None
        if cached is not None:
            return dict(cached)
        replies = self.pool.replies
        try:
            reply = self._post(body)
        except RefusedError as error:
            if not self.pool.replies:
                self._require_plain_request(request, options, str(error))
            return Refusal("request_refused", self._redact(str(error)))
        except PersistentFault as error:
            if self.pool.replies == replies and not self._answers_plain_request(request, options):
                raise TransientError(self._redact(str(error))) from None
            return Refusal("request_refused", self._redact(error.fault))  # others are answered: it is this request
        if self.cache is not None:
            self.cache.put(self._key(body), reply)
        self._count(reply)
        return reply

    def _key(self, body: Mapping[str, Any]) -> str:
        return request_key({"body": body, "revision": self.revision, **self.identity.key()})

    def _count(self, reply: Mapping[str, Any]) -> None:
        with self._lock:
            self.usage.prompt_tokens += reply["prompt_tokens"]
            self.usage.output_tokens += reply["output_tokens"]

    def _require_plain_request(self, request: Request, options: Mapping[str, Any], words: str) -> None:
        """After a refusal before any success: make sure that a plain request of the same kind is answered.

        Raises:
            ConfigError: it is refused too: the settings are wrong, not the request.
        """
        with self._probe_lock:
            if self.pool.replies or self._answers_plain_request(request, options):
                return
        raise ConfigError(
            f"{self.replicas[0].url}: the server refuses every request for '{self.name}': {self._redact(words)}; "
            "expected an answer: check the model, its limits (context, images) and the parameters"
        )

    def _answers_plain_request(self, request: Request, options: Mapping[str, Any]) -> bool:
        """Whether a server answers a request of the same kind with plain images and a short text."""
        from PIL import Image

        images = tuple(Image.new("RGB", (64, 64), (128, 128, 128)) for _ in request.images)
        plain = Request(images, PROBE_TEXT, request.schema, request.max_tokens)
        try:
            self._count(self._post(self._body(plain, options)))
        except (RefusedError, PersistentFault):
            return False
        return True

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """One chat completion; tries again, at another server where there is one, after any fault that may pass.

        Raises:
            RefusedError: a server refuses this request.
            PersistentFault: a server answers, but with a fault at every try.
            TransientError: no server answers.
            ConfigError: a server refuses this client, or has another model.
        """
        import httpx

        fault, tries, broken, unanswered, waited_s = "", 0, 0, 0, 0.0
        while True:
            try:
                with self.pool.slot() as replica:
                    return self._try(replica, body)
            except RetryableError as error:
                fault, tries, broken = str(error), tries + 1, broken + error.is_broken
            except (TimeoutError, httpx.TimeoutException) as error:
                fault, tries = f"{type(error).__name__}: {error}", tries + 1
            except httpx.DecodingError as error:
                fault, tries, broken = f"{type(error).__name__}: {error}", tries + 1, broken + 1
            except httpx.RequestError as error:
                fault, unanswered = f"{type(error).__name__}: {error}", unanswered + 1
            has_answered = tries >= self.tries or broken >= min(BROKEN_TRIES, self.tries)
            if has_answered or (tries + unanswered >= self.tries and waited_s >= self.outage_s):
                break
            delay_s = min(MAX_DELAY_S, 0.5 * 2 ** min(10, tries + unanswered)) * random.uniform(0.7, 1.3)
            waited_s += delay_s
            self._sleep(delay_s)
        urls = ", ".join(r.url for r in self.replicas)
        message = (
            f"{urls}: no reply for '{self.name}' after {tries + unanswered} tries ({fault}); is the server up and is "
            "it serving that model?"
        )
        if has_answered:
            raise PersistentFault(message, f"no reply after {tries + unanswered} tries ({fault})")
        raise TransientError(self._redact(message))

    def _try(self, replica: Replica, body: dict[str, Any]) -> dict[str, Any]:
        """One try at one server; its faults are noted, and raised as of `_post`."""
        import httpx

        try:
            self.identity.verify(replica)
            answer, connection = self._exchange(replica, body)
            if answer.status in BUSY:
                self.pool.on_busy(replica)
            completion = read_completion(answer)
            if connection not in replica.connections:  # the server may have been started again since
                replica.is_verified = False
                self.identity.verify(replica)
                replica.connections.add(connection)
        except RetryableError as error:
            if not error.is_broken and not str(error).startswith("429"):
                self.pool.on_fault(replica)
            raise
        except (httpx.RequestError, TimeoutError):
            self.pool.on_fault(replica)
            raise
        except RejectedError as error:
            if self.pool.replies and str(error).startswith("403"):
                raise RefusedError(str(error)) from None
            if self.pool.replies and str(error).startswith("404"):  # the model is gone: which one is there now?
                self.pool.on_fault(replica)
                raise RetryableError(str(error)) from None
            raise ConfigError(
                f"{replica.url}: the server refuses the request for '{self.name}': {self._redact(str(error))}; "
                "expected 200: check the address, the model's name and the key (MEGAPAIRS_MODEL_API_KEY)"
            ) from None
        if completion["model"] not in (None, self.name):
            raise ConfigError(
                f"{replica.url}: answers as '{completion['model']}', asked for '{self.name}'; was it restarted with "
                "another model?"
            )
        self.pool.on_success(replica)
        return {name: value for name, value in completion.items() if name != "model"}

    def _exchange(self, replica: Replica, body: dict[str, Any]) -> tuple[Answer, object]:
        """One POST, complete within the deadline and the size limit; its answer, and the connection that it came over.

        Raises:
            TimeoutError: it was not complete in time.
            RetryableError: it is too long.
        """
        end = time.monotonic() + self.timeout_s
        content = b""
        with self._client.stream("POST", f"{replica.url}/chat/completions", json=body) as response:
            for block in response.iter_bytes():
                content += block
                if len(content) > MAX_REPLY_BYTES:
                    raise RetryableError(f"an answer of more than {MAX_REPLY_BYTES} bytes", is_broken=True)
                if time.monotonic() > end:
                    raise TimeoutError(f"not done after {self.timeout_s:g} s")
            return Answer(response.status_code, content), response.extensions.get("network_stream", replica)

    # --- many requests ---

    def _complete_all(self, requests: Sequence[Request], options: Mapping[str, Any]) -> list[dict[str, Any] | Refusal]:
        """Replies in order; the first error ends all: requests that were not sent by then never are."""
        if not requests:
            return []
        for replica in self.replicas:
            replica.is_verified = False  # a call may come hours after the last one
        self._learn_identity()
        has_failed = threading.Event()

        def complete(request: Request) -> dict[str, Any] | Refusal:
            if has_failed.is_set():  # a thread is free before the others can be cancelled
                raise CancelledError
            try:
                return self._complete(request, options)
            except BaseException:
                has_failed.set()
                raise

        with self.usage.clock(), ThreadPoolExecutor(self.in_flight) as pool:
            pending: list[Future[dict[str, Any] | Refusal]] = [pool.submit(complete, request) for request in requests]
            try:
                return [reply.result() for reply in pending]
            finally:
                has_failed.set()

    def _learn_identity(self) -> None:
        """Ask the servers which weights they have, for the cache's keys; a server that does not answer is passed over.

        Raises:
            ConfigError: one has another model.
        """
        import httpx

        for replica in () if self._has_asked else self.replicas:
            try:
                self.identity.verify(replica)
                self._has_asked = True
            except (RetryableError, httpx.RequestError):
                self.pool.on_fault(replica)

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        """One greedy reply per request, in order."""
        replies = self._complete_all(requests, {"max_tokens": self.max_new_tokens})
        return [
            Reply("", 0, 0, refusal=r)
            if isinstance(r, Refusal)
            else Reply(r["text"], r["prompt_tokens"], r["output_tokens"], bool(r.get("is_cut")))
            for r in replies
        ]

    def yes_probability(self, requests: Sequence[Request]) -> list[float | Refusal]:
        """P(yes) among yes and no at the first answer token; 0 where neither is among the 20 most likely.

        Raises:
            ConfigError: the server reports no log-probabilities.
        """
        replies = self._complete_all(requests, {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS})
        answered = [r for r in replies if not isinstance(r, Refusal)]
        if answered and all(r["likely"] is None for r in answered):
            raise ConfigError(
                f"{self.replicas[0].url}: '{self.name}' gives no top_logprobs, which judging reads; serve it with "
                "logprobs on"
            )
        return [_yes_or_refusal(r) for r in replies]


class ServedWriter(ServedCaptioner):
    """A text LLM behind OpenAI-compatible servers."""

    def write(self, prompts: Sequence[str], *, max_tokens: int | None = None) -> list[Reply]:
        """One greedy reply per prompt, in order."""
        return self.chat([Request((), prompt, None, max_tokens) for prompt in prompts])


def server_urls(config: LlmConfig) -> list[str]:
    """The base URLs of a model's servers.

    Raises:
        ConfigError: none is named, or one that is none.
    """
    urls = split_urls(config.url)
    if not urls:
        raise ConfigError(
            f"model '{config.model}': engine 'openai' needs a url; name the server's base URL, ending in /v1"
        )
    try:
        check_server_urls(config.url)
    except ValueError as error:
        raise ConfigError(f"model '{config.model}': {error}") from None
    return urls


def _yes_or_refusal(reply: dict[str, Any] | Refusal) -> float | Refusal:
    if isinstance(reply, Refusal):
        return reply
    if reply["likely"] is None:
        return Refusal("request_refused", "a reply without top_logprobs")
    return yes_probability((token, logprob) for token, logprob in reply["likely"])
