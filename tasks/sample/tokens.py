"""Tokenizers, chat template and prompts of the tiny checkpoints.

Byte-level BPE over the sample world's own sentences: one token per word, so that a description is about 30 tokens long;
any other text still encodes, byte by byte. The prompts are files in `tasks/prompts/tiny/`, read here and by the stages,
so that the models get the prompts that they were trained with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tasks.sample import phrases
from tasks.sample.scenes import BACKGROUNDS, COLOURS, KINDS, PATTERNS, PLACES, SHAPES, SIZES, Edit, SceneObject

PROMPTS = Path(__file__).parents[1] / "prompts" / "tiny"
CHECKPOINTS = Path(__file__).parent / "checkpoints"
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [PAD, START, END, "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
# CLIP's text tower pools at the end token, but where that has id 2, transformers pools at the token with the highest id
# (which CLIP's first checkpoints need): with END at 2 a text was read no further than its highest-numbered word.
SPECIAL_CLIP = [PAD, START, *SPECIAL[3:], END]
VOCABULARY = 480  # tokens: 7 special, 256 bytes, the rest merges; every word of the sample world is one token

# Content is a string or OpenAI's list of parts; vLLM detects from the template which of the two it accepts.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ['image', 'image_url'] %}<image>{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def prompt(name: str) -> str:
    """The text of `tasks/prompts/tiny/<name>.txt`, without its last line break; may contain {fields}."""
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


def sentences(count: int = 4000, seed: int = 1) -> Iterator[str]:
    """Texts as the checkpoints read and write them, with random words of the sample world, to learn BPE merges from."""
    rng = random.Random(seed)
    words = {
        "colour": tuple(COLOURS),
        "shape": SHAPES,
        "size": tuple(SIZES),
        "pattern": PATTERNS,
        "move": PLACES,
        "add": PLACES,
    }

    def name() -> str:
        return SceneObject(
            0, rng.choice(SHAPES), rng.choice(tuple(COLOURS)), rng.choice(tuple(SIZES)), rng.choice(PATTERNS)
        ).name

    def edit() -> Edit:
        kind = rng.choice(KINDS)
        if kind == "background":
            return Edit(kind, "", rng.choice(tuple(BACKGROUNDS)))
        return Edit(kind, name(), "" if kind == "remove" else rng.choice(words[kind]))

    for _ in range(count):
        edits = [edit() for _ in range(rng.randint(1, 3))]
        common = [name(), f"{rng.choice(tuple(BACKGROUNDS))} background"][: rng.randint(0, 2)]
        style = rng.choice(phrases.STYLES)
        text, written = phrases.description(edits, common), phrases.instruction(edits, common, style)
        caption = f"a {name()} at the {rng.choice(PLACES)}, a {name()} at the {rng.choice(PLACES)}"
        yield f"user\n{prompt('describe')}"
        yield f"assistant\n{text}"
        yield f"user\n{prompt('caption')}"
        yield f"assistant\n{caption} on a {rng.choice(tuple(BACKGROUNDS))} background"
        yield f"user\n{prompt('judge').format(instruction=written)}"
        yield "assistant\n" + rng.choice(("yes", "no"))
        yield f"user\n{prompt('write').format(style=style, description=text)}"
        yield f"assistant\n{written}"


def tokenizer(*, images: bool = False, clip: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer over `sentences`.

    Args:
        images: define the image tokens that an Idefics3Processor requires of its tokenizer.
        clip: add start and end tokens around every text, as CLIP's text tower needs, instead of a chat template.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = SPECIAL_CLIP if clip else SPECIAL
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(sentences(), trainer)
    if clip:
        ends = [(token, core.token_to_id(token)) for token in (START, END)]
        core.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    extra = {
        "image_token": "<image>",
        "image_boundary_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        model_max_length=64 if clip else 1024,
        padding_side="right" if clip else "left",
        extra_special_tokens=extra if images else {},
    )
    if not clip:
        made.chat_template = CHAT_TEMPLATE
    return made
