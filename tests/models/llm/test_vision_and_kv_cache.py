"""What makes the engine in process fast changes nothing: images prepared together and ahead, a cache with room, a pass
that ends early.
"""

import random
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.cache_utils import DynamicCache

from tasks.models.llm.captioner import LocalCaptioner, Request
from tasks.models.llm.kv_cache import chosen, filled_cache, roomy_cache
from tasks.models.llm.load import load_captioner
from tasks.models.llm.vision import Looking
from tasks.sample.scenes import draw, family

JUDGE = str(Path("tasks/sample/checkpoints/judge"))


@pytest.fixture(scope="module")
def model() -> LocalCaptioner:
    found = load_captioner(JUDGE, device="cpu", max_new_tokens=8, batch=2)
    assert isinstance(found, LocalCaptioner)
    return found


@pytest.fixture
def images() -> list[Image.Image]:
    drawn = [Image.fromarray(draw(scene)) for scene in family(random.Random(3), "corpus", 4)]
    return [*drawn, Image.new("RGB", (200, 96), "red"), Image.new("L", (64, 64), 90)]


def test_images_prepared_together_are_those_prepared_alone(model: LocalCaptioner, images: list[Image.Image]):
    together = model.vision.prepare(images)
    for image, inputs in zip(images, together, strict=True):
        alone = model.processor(
            text=[model.processor.image_token], images=[[image]], add_special_tokens=False, return_tensors="pt"
        )
        assert set(inputs) == {"pixel_values", "pixel_attention_mask"}
        assert all(torch.equal(inputs[name], alone[name]) for name in inputs)
        assert model.vision.form(image).text == model.tokenizer.decode(alone["input_ids"][0])


def test_the_order_in_which_images_are_needed_changes_no_bit(model: LocalCaptioner, images: list[Image.Image]):
    with Looking(model.vision, images) as looking, torch.inference_mode():
        forwards = [looking.rows(i) for i in images]
    with Looking(model.vision, images) as looking, torch.inference_mode():
        looking.expect(reversed(images))
        backwards = [looking.rows(i) for i in reversed(images)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_later_images_are_prepared_while_the_model_writes(model: LocalCaptioner, monkeypatch: pytest.MonkeyPatch):
    """The writer waits until the thread has prepared the next pass's images: this ends only if that does not wait for
    the writer.
    """
    scenes = [Image.fromarray(draw(scene)) for _ in range(5) for scene in family(random.Random(7), "corpus", 2)]
    asked = [Request((scenes[n], scenes[n + 1]), "Compare the pictures.") for n in range(0, 10, 2)]
    prepared, where, prepare, generate = threading.Semaphore(0), set(), model.vision.prepare, model.model.generate
    told: list[bool] = []

    def tell(images):
        made = prepare(images)
        where.add(threading.current_thread() is threading.main_thread())
        prepared.release()
        return made

    def wait(**inputs):
        if not told:
            # the first batch's pass, and the two after it
            told.append(all(prepared.acquire(timeout=30) for _ in range(3)))
        return generate(**inputs)

    monkeypatch.setattr(model.vision, "prepare", tell)
    monkeypatch.setattr(model.model, "generate", wait)
    assert len(model.chat(asked)) == 5
    assert told == [True] and where == {False}


def test_a_fault_of_the_preparing_thread_is_the_calls_fault(
    model: LocalCaptioner, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    def broken(images):
        raise OSError("a truncated picture")

    model.vision.form(images[0])
    monkeypatch.setattr(model.vision, "prepare", broken)
    fresh = [i.copy() for i in images[:2]]
    with pytest.raises(OSError, match="truncated"):
        model.chat([Request(tuple(fresh), "Compare the pictures.")])


def test_a_roomy_cache_holds_what_a_plain_one_holds(model: LocalCaptioner):
    plain, roomy = DynamicCache(config=model.model.config), roomy_cache(model.model.config)
    torch.manual_seed(0)
    for tokens in (5, 1, 1, 70, 1, 3, 200):  # within its room, beyond it, and beyond twice of it
        for layer in range(2):
            keys, values = torch.randn(2, 6, tokens, 32), torch.randn(2, 6, tokens, 32)
            expected, found = plain.update(keys, values, layer), roomy.update(keys, values, layer)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1, 0) == plain.get_mask_sizes(1, 0)


def test_a_pass_that_ends_early_leaves_the_whole_cache(model: LocalCaptioner):
    rows = torch.randn(3, 7, model.model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(1))
    inputs = {"inputs_embeds": rows, "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    ended: list[int] = []
    with torch.inference_mode():
        expected = model.model.model(**inputs, use_cache=True).past_key_values
        hook = model.model.model.text_model.layers[-1].mlp.register_forward_pre_hook(lambda *_: ended.append(1))
        found = filled_cache(model.model.model, model.model.config, **inputs)
        hook.remove()
    assert ended == []  # the last layer's own work was left out
    assert len(found.layers) == len(expected.layers) and found.get_seq_length() == 7
    assert all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        for a, b in zip(found.layers, expected.layers, strict=True)
    )
    some = chosen(found, torch.tensor([2, 0, 2]), 12)
    assert some.get_mask_sizes(2, 0) == (12, 0) and some.get_seq_length() == 7
    new = torch.ones(3, 6, 2, 32)
    keys, _ = some.update(new, new, 0)
    assert keys.shape[2] == 12 and torch.equal(keys[:, :, :7], found.layers[0].keys[[2, 0, 2]])
    assert torch.equal(keys[:, :, 7:9], new) and not keys[:, :, 9:].any()
    assert found.get_seq_length() == 7  # the one it was chosen from stays


def test_questions_of_many_lengths_are_answered_as_each_alone(model: LocalCaptioner, images: list[Image.Image]):
    texts = ["Does it fit: " + " ".join(["remove the small red star"] * n) for n in (1, 4, 2)]
    asked = [Request((images[a], images[b]), text) for a, b in ((0, 1), (1, 2), (0, 3)) for text in texts]
    together = model.yes_probability(asked)
    assert together == pytest.approx([model.yes_probability([one])[0] for one in asked], abs=1e-5)
