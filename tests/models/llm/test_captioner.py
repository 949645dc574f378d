"""The MLLM in process: the fast way says what the plain way says; yes is a probability; equal calls, equal bytes."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import ConfigError, DataError
from tasks.judge.questions import Question, yes_probabilities
from tasks.models.llm.captioner import LocalCaptioner, Request, batches_by_length
from tasks.models.llm.load import load_captioner, load_writer
from tasks.sample.scenes import draw, family

CHECKPOINTS = Path("tasks/sample/checkpoints")


@pytest.fixture(scope="module")
def model() -> LocalCaptioner:
    found = load_captioner(str(CHECKPOINTS / "judge"), device="cpu", max_new_tokens=24, batch=4, question_batch=7)
    assert isinstance(found, LocalCaptioner) and found.is_fast
    return found


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return [Image.fromarray(draw(scene)) for scene in family(random.Random(3), "corpus", 5)]


def plainly(model: LocalCaptioner, requests: list[Request]) -> tuple[list, list]:
    model.is_fast = False
    try:
        return model.chat(requests), model.yes_probability(requests)
    finally:
        model.is_fast = True


def questions(scenes: list[Image.Image]) -> list[Request]:
    rng = random.Random(1)
    texts = [
        "Compare the pictures.",
        "Does it fit: make the small red star blue",
        "Does it fit: remove the large green cross and change the background to teal",
    ]
    return [Request((rng.choice(scenes), rng.choice(scenes)), rng.choice(texts)) for _ in range(12)] + [
        Request((scenes[0],), "Describe the picture.")
    ]


def test_the_fast_way_says_what_the_plain_way_says(model: LocalCaptioner, scenes: list[Image.Image]):
    asked = questions(scenes)
    replies, yes = plainly(model, asked)
    assert model.chat(asked) == replies
    assert np.allclose(model.yes_probability(asked), yes, atol=1e-5)
    assert all(0 <= p <= 1 for p in yes) and all(r.prompt_tokens > 0 for r in replies)


def test_equal_calls_give_equal_bytes_whatever_was_asked_before(model: LocalCaptioner, scenes: list[Image.Image]):
    asked = questions(scenes)
    first = model.yes_probability(asked), model.chat(asked)
    model.yes_probability(asked[:3])
    fresh = load_captioner(str(CHECKPOINTS / "judge"), device="cpu", max_new_tokens=24, batch=4, question_batch=7)
    assert (fresh.yes_probability(asked), fresh.chat(asked)) == first


def test_the_judge_shows_the_query_first(model: LocalCaptioner, scenes: list[Image.Image]):
    yes = yes_probabilities(model, [Question(scenes[0], scenes[1], "make {it} blue")], "Does it fit: {instruction}")
    assert yes == model.yes_probability([Request((scenes[0], scenes[1]), "Does it fit: make {it} blue")])


def test_images_that_are_not_square_get_through(model: LocalCaptioner):
    asked = [
        Request((Image.new("RGB", size, "red"), Image.new("RGB", (96, 96), "blue")), "Compare the pictures.")
        for size in ((96, 48), (200, 96), (96, 96))
    ]
    assert len(model.chat(asked)) == 3 and len(model.yes_probability(asked)) == 3


def test_a_text_that_brings_an_image_token_of_its_own_is_refused(model: LocalCaptioner, scenes: list[Image.Image]):
    with pytest.raises(DataError, match="2 places for 1 pictures"):
        model.chat([Request((scenes[0],), "Compare <image>")])


def test_what_cannot_be_loaded_says_so(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_captioner(str(tmp_path))
    with pytest.raises(ConfigError, match="known are 'transformers', 'openai', 'vllm'"):
        load_captioner("x", engine="llama.cpp")


def test_the_writer_answers_in_order_and_equal_prompts_once():
    writer = load_writer(str(CHECKPOINTS / "writer"), device="cpu", max_new_tokens=40, batch=2)
    prompts = [
        "style: short\nboth: nothing; change: remove the small red star",
        "style: imperative\nboth: nothing; change: remove the small red star",
    ]
    alone = [writer.write([p])[0].text for p in prompts]
    assert [r.text for r in writer.write([*prompts, prompts[0]])] == [*alone, alone[0]]
    assert all(alone) and alone[0] != alone[1]


def test_batches_are_fixed_by_length_and_position():
    assert batches_by_length([3, 9, 3, 5], 2) == [[1, 3], [0, 2]]
    assert batches_by_length([], 2) == []
