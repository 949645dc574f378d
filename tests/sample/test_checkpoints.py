"""The shipped checkpoints: each loads through the same calls as a real model, and works on held-out scenes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from tasks.sample import judge_packing, judge_questions, phrases, train_clip, train_judge, train_vlm, train_writer
from tasks.sample.common import held_out_pairs
from tasks.sample.related import SAID_EDITS, TOO_DIFFERENT, held_out_related
from tasks.sample.scenes import assign_split, difference, draw, draw_image
from tasks.sample.tokens import CHECKPOINTS, prompt

PAIRS = held_out_pairs(40, seed=101)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vlm():
    folder = CHECKPOINTS / "vlm"
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32
    ).eval(), AutoProcessor.from_pretrained(folder)


def test_all_checkpoints_together_are_at_most_25_mib():
    assert sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()) <= 25 * 2**20


def test_clip_and_dino_embed_images_and_texts():
    images = [draw_image(s, side_px=side) for side, (s, _) in zip((96, 128), PAIRS, strict=False)]
    processor, model = (
        AutoProcessor.from_pretrained(CHECKPOINTS / "clip"),
        AutoModel.from_pretrained(CHECKPOINTS / "clip", dtype=torch.float32),
    )
    values = processor(images=images, return_tensors="pt")["pixel_values"]
    assert (
        train_clip.image_vectors(model, values).shape
        == train_clip.text_vectors(model, processor, ["a", "b"]).shape
        == (2, 128)
    )
    processor, model = (
        AutoImageProcessor.from_pretrained(CHECKPOINTS / "dino"),
        AutoModel.from_pretrained(CHECKPOINTS / "dino", dtype=torch.float32),
    )
    hidden = model(pixel_values=processor(images=images, return_tensors="pt")["pixel_values"]).last_hidden_state
    assert hidden[:, 0].shape == (2, 128)


def test_clip_reads_a_text_to_its_end():
    # transformers pools at the highest token id where the end token has id 2; whatever stands behind that word would
    # not count
    processor, model = (
        AutoProcessor.from_pretrained(CHECKPOINTS / "clip"),
        AutoModel.from_pretrained(CHECKPOINTS / "clip", dtype=torch.float32),
    )
    begun = "on a white background: a small red star at the top left, a large "
    with torch.no_grad():
        one, other = train_clip.text_vectors(
            model, processor, [begun + "blue circle at the middle left", begun + "green cross at the middle left"]
        )
    assert float(one @ other) < 0.9


def test_the_processor_gives_the_training_prompt_and_pixels(vlm):
    train_vlm.check_against_processor(vlm[1])


def test_string_and_list_content_give_the_same_prompt(vlm):
    words = vlm[1].tokenizer
    as_text = words.apply_chat_template([{"role": "user", "content": "Hello."}], tokenize=False)
    as_parts = words.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Hello."}]}], tokenize=False
    )
    assert as_text == as_parts


@pytest.mark.parametrize(("edits", "bar"), [(1, 0.95), (2, 0.85), (3, 0.65)])
def test_the_describer_is_right_on_most_held_out_pairs(vlm, edits, bar):
    model, processor = vlm
    pairs = [(s, t) for s, t in held_out_pairs(80, seed=104) if len(difference(s, t)) == edits]
    texts = train_vlm.write_descriptions(model, processor, [(draw(s), draw(t)) for s, t in pairs])
    right = [text == phrases.describe(s, t) for (s, t), text in zip(pairs, texts, strict=True)]
    assert np.mean(right) >= bar, list(zip(texts, right, strict=True))


def test_the_describer_calls_scenes_too_different_that_differ_in_many_things_and_no_others(vlm):
    model, processor = vlm
    pairs = held_out_related(120, seed=105)
    texts = train_vlm.write_descriptions(model, processor, [(draw(s), draw(t)) for s, t in pairs])
    edits = [len(difference(s, t)) for s, t in pairs]
    said = [text == TOO_DIFFERENT for text in texts]
    assert np.mean([x for x, n in zip(said, edits, strict=True) if n > SAID_EDITS + 1]) >= 0.95
    assert np.mean([x for x, n in zip(said, edits, strict=True) if n <= SAID_EDITS]) <= 0.05
    for changes, bar in ((2, 0.85), (3, 0.65)):  # of any mix of so many changes, not those of families alone
        asked = [(pair, text) for pair, text, n in zip(pairs, texts, edits, strict=True) if n == changes]
        assert np.mean([text == phrases.describe(*pair) for pair, text in asked]) >= bar


def test_the_describer_reads_images_through_its_processor(vlm):
    model, processor = vlm
    s, t = PAIRS[0]
    parts = [{"type": "image", "image": draw_image(x, side_px=128)} for x in (s, t)] + [
        {"type": "text", "text": prompt("describe")}
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    out = model.generate(**inputs, max_new_tokens=80)
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert phrases.parse_description(text) is not None, text


@pytest.mark.slow
def test_the_judge_separates_right_texts_from_near_misses(vlm):
    folder = CHECKPOINTS / "judge"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    packer = judge_packing.QuestionPacker(model, AutoProcessor.from_pretrained(folder))
    questions = judge_questions.held_out_questions(600, 102, [])
    scores = packer.score(questions)
    assert train_judge.measure_answers(questions, scores)["at_0.06"]["true_yes"] >= 0.75


def test_packed_questions_get_the_same_answers_as_alone(vlm):
    model, processor = vlm
    packer = judge_packing.QuestionPacker(model, processor)
    rng = random.Random(0)
    s, t = PAIRS[1]
    questions = judge_questions.make_questions(s, t, [s, t, PAIRS[2][0]], rng)
    features = train_vlm.image_features(model, train_vlm.to_pixel_values([draw(s, rendering=1), draw(t, rendering=2)]))
    with torch.no_grad():
        packed = packer.logits(features, [(0, 1)], [questions]).logits[0]
    alone = packer.score(questions)
    assert (packed[:, packer.yes] - packed[:, packer.no]).sigmoid().numpy() == pytest.approx(alone, abs=1e-4)


def test_the_writer_copies_names_exactly_in_every_style():
    words = AutoTokenizer.from_pretrained(CHECKPOINTS / "writer")
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "writer", dtype=torch.float32)
    shares = train_writer.measure(model, words, 20)
    assert all(share >= 0.9 for share in shares.values()), shares


def test_a_black_image_is_not_taken_for_padding(vlm):
    """Idefics3 takes an image of zeros for padding and drops it: a black image must not become one (-1, not 0)."""
    model, processor = vlm
    black = Image.new("RGB", (96, 96))
    values = processor.image_processor(images=[[black]], return_tensors="pt")["pixel_values"]
    assert float(values.max()) == -1.0


def test_held_out_pairs_are_of_the_benchmark_split():
    assert {assign_split(scene) for pair in PAIRS for scene in pair} == {"benchmark"}
