"""The contract of the engines: the same prompts, the same words and nearly the same P(yes) from transformers, vLLM and its server.

Runs where vLLM is: `make test-vllm` (an environment of its own, 3.5 GB). Elsewhere it is skipped with one line.
"""

import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tasks.caption import read_prompts
from tasks.descriptions import read_description
from tasks.models.captioner import Captioner, load_captioner
from tasks.models.replies import Request
from tasks.models.writer import load_writer
from tasks.sample.scenes import draw, family

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not in this environment; `make test-vllm` makes one that has it")

CHECKPOINTS = Path("tasks/sample/checkpoints").resolve()
START_S = 240


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    rng = random.Random(3)
    return [Image.fromarray(draw(scene)) for _ in range(4) for scene in family(rng, "corpus", 4)]


@pytest.fixture(scope="module")
def asked(scenes: list[Image.Image]) -> list[Request]:
    return [Request((scenes[4 * f + a], scenes[4 * f + b]), "Compare the pictures.") for f in range(4) for a, b in ((0, 1), (1, 2), (2, 3))]


@pytest.fixture(scope="module")
def questions(scenes: list[Image.Image]) -> list[Request]:
    texts = ("Does it fit: change the background to teal", "Does it fit: remove the small red star")
    return [Request((scenes[4 * f], scenes[4 * f + 1]), text) for f in range(4) for text in texts]


@pytest.fixture(scope="module")
def plain() -> Captioner:
    return load_captioner(str(CHECKPOINTS / "vlm"), device="cpu", max_new_tokens=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real vLLM server; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "32", "--kv-cache-memory-bytes", "134217728"]
    flags += ["--limit-mm-per-prompt", json.dumps({"image": 2, "video": 0}), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(CHECKPOINTS / "vlm"), *flags]
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with open(log, "wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        url, end = f"http://127.0.0.1:{port}/v1", time.monotonic() + START_S
        try:
            while True:
                assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-3000:]
                try:
                    if httpx.get(f"{url}/models", timeout=2).status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(1)
            yield url
        finally:
            process.terminate()


def test_vllm_offline_says_what_transformers_says(plain: Captioner, asked: list[Request], questions: list[Request]):
    offline = load_captioner(str(CHECKPOINTS / "vlm"), engine="vllm", max_new_tokens=60)
    replies, expected = offline.chat(asked), plain.chat(asked)
    same = [a.text == b.text for a, b in zip(replies, expected, strict=True)]
    assert sum(same) >= len(same) - 1, [(a.text, b.text) for a, b in zip(replies, expected, strict=True) if a.text != b.text]
    assert [r.prompt_tokens for r in replies] == [r.prompt_tokens for r in expected]
    assert offline.revision == plain.revision and offline.engine.startswith("vllm ")
    judge = load_captioner(str(CHECKPOINTS / "vlm"), device="cpu")
    for a, b in zip(offline.yes_probability(questions), judge.yes_probability(questions), strict=True):
        assert abs(a - b) < 0.02 or a == 0.0  # 0: neither word among the 20 likeliest of a model that was not taught to judge


def test_the_writer_too():
    prompts = ["style: short\nboth: nothing; change: remove the small red star", "style: imperative\nboth: nothing; change: remove the small red star"]
    offline, local = load_writer(str(CHECKPOINTS / "writer"), engine="vllm", max_new_tokens=40), load_writer(str(CHECKPOINTS / "writer"), max_new_tokens=40)
    assert [r.text for r in offline.write(prompts)] == [r.text for r in local.write(prompts)]


def test_the_server_says_what_transformers_says_and_follows_a_schema(server: str, plain: Captioner, asked: list[Request]):
    served = load_captioner("tiny", engine="openai", url=server, max_new_tokens=60, in_flight=8)
    replies = served.chat(asked)  # pictures travel as JPEG here, which a tiny model may tell
    assert sum(a.text == b.text for a, b in zip(replies, plain.chat(asked), strict=True)) >= 0.75 * len(asked)
    assert served.engine.startswith("openai, vllm ")
    guided = load_captioner("tiny", engine="openai", url=server, max_new_tokens=400)
    text = guided.chat([Request(asked[0].images, asked[0].text, read_prompts("standard").schema)])[0].text
    assert read_description(text) is not None or text.startswith("{"), text  # a schema gives the form; this model may not reach its end
