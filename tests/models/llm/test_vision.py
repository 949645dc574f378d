"""Image features: images prepared together, ahead and in any order give the same bits."""

import random
import threading

import pytest
import torch
from PIL import Image

from tasks.models.llm.local_captioner import LocalCaptioner
from tasks.models.llm.requests import Request
from tasks.models.llm.vision import ImageFeatures
from tasks.sample.scenes import draw, family


def test_images_prepared_together_are_those_prepared_alone(
    small_batches: LocalCaptioner, mixed_images: list[Image.Image]
):
    model = small_batches
    for image, inputs in zip(mixed_images, model.vision.prepare(mixed_images), strict=True):
        alone = model.processor(
            text=[model.processor.image_token], images=[[image]], add_special_tokens=False, return_tensors="pt"
        )
        assert set(inputs) == {"pixel_values", "pixel_attention_mask"}
        assert all(torch.equal(inputs[name], alone[name]) for name in inputs)
        assert model.vision.layout(image).text == model.tokenizer.decode(alone["input_ids"][0])


def test_the_order_in_which_images_are_needed_changes_no_bit(
    small_batches: LocalCaptioner, mixed_images: list[Image.Image]
):
    with ImageFeatures(small_batches.vision, mixed_images) as features, torch.inference_mode():
        forwards = [features.rows(image) for image in mixed_images]
    with ImageFeatures(small_batches.vision, mixed_images) as features, torch.inference_mode():
        features.prefetch(reversed(mixed_images))
        backwards = [features.rows(image) for image in reversed(mixed_images)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_later_images_are_prepared_while_the_model_writes(
    small_batches: LocalCaptioner, monkeypatch: pytest.MonkeyPatch
):
    """The first pass of the model waits until the images of the next passes are prepared: it returns only if the
    preparing thread does not wait for the model.
    """
    model = small_batches
    scenes = [Image.fromarray(draw(scene)) for _ in range(5) for scene in family(random.Random(7), "corpus", 2)]
    requests = [Request((scenes[n], scenes[n + 1]), "Compare the pictures.") for n in range(0, 10, 2)]
    prepared, in_main_thread = threading.Semaphore(0), set()
    prepare, generate = model.vision.prepare, model.model.generate
    waited: list[bool] = []

    def prepare_and_signal(images):
        inputs = prepare(images)
        in_main_thread.add(threading.current_thread() is threading.main_thread())
        prepared.release()
        return inputs

    def wait_and_generate(**inputs):
        if not waited:
            # the first batch's pass, and the two after it
            waited.append(all(prepared.acquire(timeout=300) for _ in range(3)))
        return generate(**inputs)

    monkeypatch.setattr(model.vision, "prepare", prepare_and_signal)
    monkeypatch.setattr(model.model, "generate", wait_and_generate)
    assert len(model.chat(requests)) == 5
    assert waited == [True] and in_main_thread == {False}


def test_an_error_of_the_preparing_thread_is_raised_by_the_call(
    small_batches: LocalCaptioner, mixed_images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    def fail(images):
        raise OSError("a truncated image")

    small_batches.vision.layout(mixed_images[0])
    monkeypatch.setattr(small_batches.vision, "prepare", fail)
    fresh = [image.copy() for image in mixed_images[:2]]
    with pytest.raises(OSError, match="truncated"):
        small_batches.chat([Request(tuple(fresh), "Compare the pictures.")])
