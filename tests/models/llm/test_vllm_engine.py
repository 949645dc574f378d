"""The contract of the engines: the same prompts, parsing and records from transformers, vLLM and its server, on the
tiny checkpoints.

Equal: the prompts' token counts, the reasons and columns of a row, and the words of a reply given the same pixels; of
twelve replies one may differ, for kernels add in different orders and a greedy word may be a near tie. Close: P(yes),
within 0.02. Not equal: engine, sampling and, where a server does not tell its weights, the revision. A server is sent
JPEG, so transformers is shown here what that decodes to.

Runs where vLLM is: `make test-vllm` (an environment of its own, 3.5 GB). Elsewhere it is skipped with one line.
"""

import base64
import importlib.util
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.vllm_server import Server, ServerDidNotStart, serving
from tasks.caption.chunk import CaptionSetup
from tasks.caption.descriptions import parse_description
from tasks.caption.draft import Draft
from tasks.caption.generate import describe, write
from tasks.caption.rows import captioned_row
from tasks.config import load_params
from tasks.errors import ConfigError
from tasks.judge.questions import Question, yes_probabilities
from tasks.models.llm.base import Captioner, LlmConfig
from tasks.models.llm.load import load_captioner, load_writer
from tasks.models.llm.openai_server import ServedCaptioner
from tasks.models.llm.requests import Request
from tasks.prompts.prompt_set import read_prompt_set
from tasks.sample.scenes import draw, family

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not in this environment; `make test-vllm` makes one that has it",
)

CHECKPOINTS = Path("tasks/sample/checkpoints").resolve()
CLOSE = 0.02
ENGINE_COLUMNS = {"captioner", "captioner_revision", "engine", "sampling"}


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    rng = random.Random(3)
    return [Image.fromarray(draw(scene)) for _ in range(4) for scene in family(rng, "corpus", 4)]


@pytest.fixture(scope="module")
def requests(scenes: list[Image.Image]) -> list[Request]:
    return [
        Request((scenes[4 * f + a], scenes[4 * f + b]), "Compare the pictures.")
        for f in range(4)
        for a, b in ((0, 1), (1, 2), (2, 3))
    ]


@pytest.fixture(scope="module")
def questions(scenes: list[Image.Image]) -> list[Question]:
    texts = ("change the background to teal", "remove the small red star", "add a large green diamond at the top left")
    return [Question(scenes[4 * f], scenes[4 * f + 1], text) for f in range(4) for text in texts]


@pytest.fixture(scope="module")
def local() -> Captioner:
    return load_captioner(LlmConfig(str(CHECKPOINTS / "vlm"), device="cpu", max_new_tokens=60))


@pytest.fixture(scope="module")
def judge() -> Captioner:
    return load_captioner(LlmConfig(str(CHECKPOINTS / "judge"), device="cpu"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(sys.executable, str(CHECKPOINTS / "vlm"), tmp_path_factory.mktemp("vllm") / "server.log") as running:
        yield running


def as_sent(image: Image.Image) -> Image.Image:
    """What a server decodes of the image."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return Image.open(file).convert("RGB")


def caption_rows(model: Captioner, images: list[tuple[Image.Image, ...]]) -> list[dict[str, object]]:
    """The rows of table `captioned` that a describing model and the tiny writer give, by the stage's own steps."""
    config, prompts = load_params().caption, read_prompt_set("tiny")
    writer = load_writer(LlmConfig(str(CHECKPOINTS / "writer"), max_new_tokens=60))
    drafts = [Draft(f"p{n}") for n in range(len(images))]
    describe(drafts, images, model, prompts, max_chars=4 * config.max_chars)
    write(drafts, [(None, None)] * len(drafts), config, writer, prompts)
    setup = CaptionSetup(model, writer, prompts, config)
    return [captioned_row(d, "2026.01.05", setup) for d in drafts]


def require_same_records(answers: list[dict[str, object]], expected: list[dict[str, object]]) -> None:
    assert all(set(a) == set(b) for a, b in zip(answers, expected, strict=True))
    differing = [
        (a, b) for a, b in zip(answers, expected, strict=True) if any(a[k] != b[k] for k in set(a) - ENGINE_COLUMNS)
    ]
    assert len(differing) <= 1, differing
    assert all(
        row[k] for row in answers for k in ("engine", "sampling", "captioner_revision", "prompt_sha256")
    ) and all(row["seed"] == 0 for row in answers)
    assert sum(len(row["instructions"]) >= 3 for row in expected) >= 0.75 * len(expected)  # type: ignore[arg-type] - the rows are worth comparing


def test_vllm_offline_gives_the_replies_of_transformers(local: Captioner, requests: list[Request]):
    offline = load_captioner(LlmConfig(str(CHECKPOINTS / "vlm"), engine="vllm", max_new_tokens=60))
    replies, expected = offline.chat(requests), local.chat(requests)
    differing = [(a.text, b.text) for a, b in zip(replies, expected, strict=True) if a.text != b.text]
    assert len(differing) <= 1, differing
    assert [r.prompt_tokens for r in replies] == [r.prompt_tokens for r in expected]
    assert offline.revision == local.revision and offline.engine.startswith("vllm ")
    require_same_records(
        caption_rows(offline, [r.images for r in requests]), caption_rows(local, [r.images for r in requests])
    )


def test_vllm_offline_gives_the_probabilities_of_transformers(judge: Captioner, questions: list[Question]):
    offline = load_captioner(LlmConfig(str(CHECKPOINTS / "judge"), engine="vllm"))
    answers, expected = (yes_probabilities(m, questions, "Does it fit: {instruction}") for m in (offline, judge))
    assert answers == pytest.approx(expected, abs=CLOSE)
    assert min(expected) < 0.2 < 0.8 < max(expected)  # there is something to tell apart


def test_vllm_offline_writes_what_transformers_writes():
    prompts = [
        "style: short\nboth: nothing; change: remove the small red star",
        "style: imperative\nboth: nothing; change: remove the small red star",
    ]
    offline, local = (
        load_writer(LlmConfig(str(CHECKPOINTS / "writer"), engine="vllm", max_new_tokens=40)),
        load_writer(LlmConfig(str(CHECKPOINTS / "writer"), max_new_tokens=40)),
    )
    assert [r.text for r in offline.write(prompts)] == [r.text for r in local.write(prompts)]


def test_the_server_gives_the_replies_of_transformers(server: Server, local: Captioner, requests: list[Request]):
    served = load_captioner(LlmConfig("tiny", engine="openai", url=server.url, max_new_tokens=60, in_flight=8))
    replies, expected = (
        served.chat(requests),
        local.chat([Request(tuple(map(as_sent, r.images)), r.text) for r in requests]),
    )
    differing = [(a.text, b.text) for a, b in zip(replies, expected, strict=True) if a.text != b.text]
    assert len(differing) <= 1, differing
    assert [r.prompt_tokens for r in replies] == [r.prompt_tokens for r in expected]
    assert served.engine.startswith("openai, vllm ")
    images = [r.images for r in requests]
    require_same_records(caption_rows(served, images), caption_rows(local, [tuple(map(as_sent, i)) for i in images]))


def test_images_reach_the_server_as_bytes_and_no_url_is_followed(server: Server, requests: list[Request]):
    served = load_captioner(LlmConfig("tiny", engine="openai", url=server.url, max_new_tokens=4))
    assert isinstance(served, ServedCaptioner)
    urls = [part["image_url"]["url"] for part in served._body(requests[0], {})["messages"][0]["content"][:2]]
    for url, image in zip(urls, requests[0].images, strict=True):
        content = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"), validate=True)
        assert Image.open(io.BytesIO(content)).size == image.size
    with pytest.raises(ConfigError, match="serves .*'tiny'.*, not 'another'"):
        load_captioner(LlmConfig("another", engine="openai", url=server.url)).chat(requests[:1])


def test_the_server_follows_a_schema(server: Server, requests: list[Request]):
    guided = load_captioner(LlmConfig("tiny", engine="openai", url=server.url, max_new_tokens=400))
    text = guided.chat([Request(requests[0].images, requests[0].text, read_prompt_set("standard").schema)])[0].text
    # a schema gives the form; this model may not reach its end
    assert parse_description(text) is not None or text.startswith("{"), text
    small = {
        "type": "object",
        "properties": {"fits": {"type": "boolean"}},
        "required": ["fits"],
        "additionalProperties": False,
    }
    assert guided.chat([Request(requests[0].images, requests[0].text, small)])[0].text in (
        '{"fits":true}',
        '{"fits":false}',
        '{"fits": true}',
        '{"fits": false}',
    )


def test_the_server_gives_the_probabilities_of_transformers(
    judge: Captioner, questions: list[Question], tmp_path: Path
):
    with serving(sys.executable, str(CHECKPOINTS / "judge"), tmp_path / "server.log") as running:
        served = load_captioner(LlmConfig("tiny", engine="openai", url=running.url))
        answers = yes_probabilities(served, questions, "Does it fit: {instruction}")
    decoded = [Question(as_sent(q.query), as_sent(q.candidate), q.instruction) for q in questions]
    assert answers == pytest.approx(yes_probabilities(judge, decoded, "Does it fit: {instruction}"), abs=CLOSE)


def test_a_server_that_cannot_start_reports_its_exit_code(tmp_path: Path):
    with (
        pytest.raises(ServerDidNotStart, match=r"exit code [1-9]"),
        serving(sys.executable, str(tmp_path / "no model"), tmp_path / "server.log"),
    ):
        pass
