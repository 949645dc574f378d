"""The MLLM in process: fast and generic path agree, yes is a probability, equal calls give equal bytes."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import DataError
from tasks.judge.questions import Question, yes_probabilities
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_captioner
from tasks.models.llm.local_captioner import LocalCaptioner, QuestionGroup, move_common_start
from tasks.models.llm.requests import Reply, Request
from tasks.sample.scenes import draw, family

CONFIG = LlmConfig("tasks/sample/checkpoints/judge", device="cpu", max_new_tokens=24, batch=4, question_batch=7)


@pytest.fixture(scope="module")
def model(project: Path) -> LocalCaptioner:
    loaded = load_captioner(CONFIG)
    assert isinstance(loaded, LocalCaptioner) and loaded.is_fast
    return loaded


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return [Image.fromarray(draw(scene)) for scene in family(random.Random(3), "corpus", 5)]


def generic_answers(model: LocalCaptioner, requests: list[Request]) -> tuple[list[Reply], list[float]]:
    model.is_fast = False
    try:
        return model.chat(requests), model.yes_probability(requests)
    finally:
        model.is_fast = True


def random_requests(scenes: list[Image.Image]) -> list[Request]:
    rng = random.Random(1)
    texts = [
        "Compare the pictures.",
        "Does it fit: make the small red star blue",
        "Does it fit: remove the large green cross and change the background to teal",
    ]
    pairs = [Request((rng.choice(scenes), rng.choice(scenes)), rng.choice(texts)) for _ in range(12)]
    return [*pairs, Request((scenes[0],), "Describe the picture.")]


def test_the_fast_path_gives_the_answers_of_the_generic_path(model: LocalCaptioner, scenes: list[Image.Image]):
    requests = random_requests(scenes)
    replies, yes = generic_answers(model, requests)
    assert model.chat(requests) == replies
    assert np.allclose(model.yes_probability(requests), yes, atol=1e-5)
    assert all(0 <= p <= 1 for p in yes) and all(r.prompt_tokens > 0 for r in replies)


def test_equal_calls_give_equal_bytes_whatever_was_requested_before(model: LocalCaptioner, scenes: list[Image.Image]):
    requests = random_requests(scenes)
    first = model.yes_probability(requests), model.chat(requests)
    model.yes_probability(requests[:3])
    fresh = load_captioner(CONFIG)
    assert (fresh.yes_probability(requests), fresh.chat(requests)) == first


def test_the_judge_is_shown_the_query_first(model: LocalCaptioner, scenes: list[Image.Image]):
    yes = yes_probabilities(model, [Question(scenes[0], scenes[1], "make {it} blue")], "Does it fit: {instruction}")
    assert yes == model.yes_probability([Request((scenes[0], scenes[1]), "Does it fit: make {it} blue")])


def test_images_need_not_be_square(model: LocalCaptioner):
    requests = [
        Request((Image.new("RGB", size, "red"), Image.new("RGB", (96, 96), "blue")), "Compare the pictures.")
        for size in ((96, 48), (200, 96), (96, 96))
    ]
    assert len(model.chat(requests)) == 3 and len(model.yes_probability(requests)) == 3


def test_a_text_with_an_image_token_is_refused(model: LocalCaptioner, scenes: list[Image.Image]):
    with pytest.raises(DataError, match="2 places for 1 images"):
        model.chat([Request((scenes[0],), "Compare <image>")])


def test_questions_of_many_lengths_are_answered_as_each_alone(
    small_batches: LocalCaptioner, mixed_images: list[Image.Image]
):
    texts = ["Does it fit: " + " ".join(["remove the small red star"] * n) for n in (1, 4, 2)]
    ends = ((0, 1), (1, 2), (0, 3))
    requests = [Request((mixed_images[a], mixed_images[b]), text) for a, b in ends for text in texts]
    alone = [small_batches.yes_probability([request])[0] for request in requests]
    assert small_batches.yes_probability(requests) == pytest.approx(alone, abs=1e-5)


def test_questions_that_begin_alike_are_answered_as_each_alone(model: LocalCaptioner, scenes: list[Image.Image]):
    texts = [f"Does it fit: make the small {colour} star blue" for colour in ("red", "green", "dark red")]
    requests = [Request((scenes[0], scene), text) for scene in scenes for text in texts]
    alone = [model.yes_probability([request])[0] for request in requests]
    assert np.allclose(model.yes_probability(requests), alone, atol=1e-5)


def test_what_all_questions_begin_with_is_read_once_per_group_and_no_token_is_lost():
    rng = random.Random(5)
    for _ in range(100):
        start = [rng.randrange(3) for _ in range(rng.randint(0, 4))]
        groups = [
            QuestionGroup((7,) * rng.randint(0, 2), (), list(range(count)), [[]] * count)
            for count in (rng.randint(1, 3) for _ in range(rng.randint(0, 3)))
        ]
        for group in groups:
            group.tails = [start + [rng.randrange(3) for _ in range(rng.randint(1, 3))] for _ in group.tails]
        before = [[(*group.prefix, *tail) for tail in group.tails] for group in groups]
        lengths = [len(group.prefix) for group in groups]
        move_common_start(groups)
        assert [[(*group.prefix, *tail) for tail in group.tails] for group in groups] == before
        moved = {len(group.prefix) - length for group, length in zip(groups, lengths, strict=True)}
        assert len(moved) <= 1 and all(count >= len(start) for count in moved), "all that is common, the same for all"
        assert all(group.tails and all(group.tails) for group in groups), "a token is left to ask with"
