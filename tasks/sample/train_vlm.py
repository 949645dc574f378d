"""The describer: an Idefics3 (the class of SmolVLM) that writes what two images share and what changed.

Stage A teaches the vision tower and the connector what is in each grid cell, under an auxiliary head; nine visual
tokens per image, one per cell. Stage B teaches the language model to write, 5 in 6 samples a comparison and 1 in 6 a
caption, while a second auxiliary head predicts for each cell what was there in the first image and how it changed.
Batches are families, so that an image's vision features are computed once for all pairs it is part of. Stage C goes on
with pairs of any mix of changes (tasks/sample/related.py), as mining finds them across families, and with the reply to
pairs that differ in more than a description states. 2.8 M parameters, 5.8 MB.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
)

from tasks.sample import phrases, tokens
from tasks.sample.common import (
    WORKERS,
    TrainingLog,
    average_gradients,
    cosine_schedule,
    held_out_pairs,
    render_view,
    run_workers,
    save,
    to_pixel_values,
    train_scene,
)
from tasks.sample.related import SAID_EDITS, TOO_DIFFERENT, related_pair
from tasks.sample.scenes import (
    BACKGROUNDS,
    COLOURS,
    PATTERNS,
    PLACES,
    SHAPES,
    SIDE_PX,
    SIZES,
    Scene,
    difference,
    draw,
    family,
)

VISUAL_TOKENS = 9  # of an image, one per cell
FAMILIES = 14  # of three scenes each, in a batch of stage B
OLD_FAMILIES, RELATED = 4, 11  # in a batch of stage C: families, and related pairs, each in both orders
RELATED_EDITS = {1: 0.15, 2: 0.3, 3: 0.35, SAID_EDITS + 1: 0.2}  # number of edits of a related pair -> how often
PEAK, LATER_PEAK = 1.5e-3, 6e-4  # learning rates after warm-up, of stages B and C
CLASSES = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1, len(PATTERNS) + 1)
FLAGS = ("colour", "shape", "size", "pattern", "moved away", "moved here", "remove", "add", "background")


def build() -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """An untrained model and its processor. The text head_dim is 32, which vLLM's CPU attention supports."""
    try:
        from transformers import Idefics3ImageProcessorPil as ImageProcessor
    except ImportError:
        from transformers import Idefics3ImageProcessor as ImageProcessor  # type: ignore[assignment]
    words = tokens.tokenizer(images=True)
    side = {"longest_edge": SIDE_PX}
    half = [0.5] * 3
    images = ImageProcessor(do_image_splitting=False, size=side, max_image_size=side, image_mean=half, image_std=half)
    processor = Idefics3Processor(images, words, image_seq_len=VISUAL_TOKENS, chat_template=words.chat_template)
    config = Idefics3Config(
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=True,
        vision_config={
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "image_size": SIDE_PX,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(words),
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "pad_token_id": words.pad_token_id,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
    )
    model = Idefics3ForConditionalGeneration(config)
    set_greedy_decoding(model, words)
    return model, processor


def set_greedy_decoding(model: nn.Module, words: object) -> None:
    """Set greedy decoding up to the end token as the checkpoint's default."""
    model.generation_config.eos_token_id = words.eos_token_id  # type: ignore[attr-defined, union-attr]
    model.generation_config.pad_token_id = words.pad_token_id  # type: ignore[attr-defined, union-attr]
    model.generation_config.do_sample = False  # type: ignore[union-attr]


def format_turn(images: int, text: str, processor: Idefics3Processor) -> str:
    """One user turn of `images` images and a text, up to where the answer begins, with the image tokens expanded."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    one = "<fake_token_around_image><global-img>" + "<image>" * VISUAL_TOKENS + "<fake_token_around_image>"
    return chat.replace("<image>", one)


def encode_prompt(images: int, text: str, processor: Idefics3Processor) -> list[int]:
    """Token ids of `format_turn`."""
    return processor.tokenizer(format_turn(images, text, processor), add_special_tokens=False).input_ids


def check_against_processor(processor: Idefics3Processor) -> None:
    """Raise RuntimeError unless training's token ids and pixels are those of the processor at inference."""
    scene = train_scene(random.Random(0))
    image = Image.fromarray(draw(scene))
    content = [{"type": "image", "image": image}] * 2 + [{"type": "text", "text": tokens.prompt("describe")}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    if inputs["input_ids"][0].tolist() != encode_prompt(2, tokens.prompt("describe"), processor):
        prompt = processor.tokenizer.decode(inputs["input_ids"][0])
        raise RuntimeError(f"the processor's prompt differs from the training prompt: {prompt!r}")
    if (inputs["pixel_values"][0, 0] - to_pixel_values([draw(scene)])[0]).abs().max() > 0.01:
        raise RuntimeError("the processor's pixels differ from the training pixels")


def image_features(model: Idefics3ForConditionalGeneration, values: torch.Tensor) -> torch.Tensor:
    """(n, 9, width) visual tokens of (n, 3, 96, 96) pixels."""
    patches = torch.ones(values.shape[0], 6, 6, dtype=torch.bool)
    hidden = model.model.vision_model(pixel_values=values, patch_attention_mask=patches).last_hidden_state
    return model.model.connector(hidden)


@torch.no_grad()
def rescale_connector(model: Idefics3ForConditionalGeneration, level: float = 0.5) -> float:
    """Scale the connector so that visual tokens have root mean square `level`; returns the value before.

    Stage A leaves them at about 4.8, against text embeddings of 0.04: the language model's layers then hardly change
    the states at an image's tokens, and two images are never compared there. Measured: shape edits 0 of 46 right, and
    no improvement from 60,000 to 130,000 samples.
    """
    rng = random.Random(0)
    before = float(
        image_features(model, to_pixel_values([draw(train_scene(rng)) for _ in range(64)])).pow(2).mean().sqrt()
    )
    model.model.connector.modality_projection.proj.weight.mul_(level / before)
    return before


def label_cells(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Shape, colour, size, pattern of each cell (n, 9, 4), 0 where empty; and the background of each scene (n,)."""
    cells = np.zeros((len(scenes), 9, 4), np.int64)
    for row, scene in zip(cells, scenes, strict=True):
        for t in scene.objects:
            values = (
                SHAPES.index(t.shape),
                list(COLOURS).index(t.colour),
                list(SIZES).index(t.size),
                PATTERNS.index(t.pattern),
            )
            row[t.cell] = np.add(values, 1)
    grounds = torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes])
    return torch.from_numpy(cells), grounds


def train_vision(
    model: Idefics3ForConditionalGeneration, rng: random.Random, steps: int, log: TrainingLog, batch: int = 96
) -> None:
    """Stage A: vision tower and connector, until about 98% of scenes are classified without an error."""
    head = nn.Linear(model.config.text_config.hidden_size, sum(CLASSES) + len(BACKGROUNDS))
    weights = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    optimizer = torch.optim.AdamW([*weights, *head.parameters()], lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * cosine_schedule(step, steps)
        scenes = [train_scene(rng) for _ in range(batch)]
        cells, grounds = label_cells(scenes)
        out = head(image_features(model, to_pixel_values([render_view(s, rng) for s in scenes]))).split(
            [*CLASSES, len(BACKGROUNDS)], -1
        )
        loss = sum(F.cross_entropy(o.flatten(0, 1), cells[..., i].flatten()) for i, o in enumerate(out[:4]))
        loss = loss + 0.3 * F.cross_entropy(out[4].flatten(0, 1), grounds.repeat_interleave(9))
        optimizer.zero_grad()
        loss.backward()
        average_gradients([*weights, *head.parameters()])
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            right = torch.stack([o.argmax(-1) == cells[..., i] for i, o in enumerate(out[:4])]).all(0).all(1)
            log.write(
                stage="A", step=step + 1, loss=round(float(loss), 4), scenes_right=round(float(right.float().mean()), 3)
            )


def label_changes(query: Scene, target: Scene) -> torch.Tensor:
    """(9, 9) float: for each cell, which of FLAGS apply to it; that of the background applies to every cell."""
    flags = torch.zeros(9, len(FLAGS))
    for edit in difference(query, target):
        if edit.kind == "background":
            flags[:, FLAGS.index("background")] = 1
        elif edit.kind == "add":
            flags[PLACES.index(edit.value), FLAGS.index("add")] = 1
        else:
            cell = query.find(edit.name).cell  # type: ignore[union-attr]
            flags[cell, FLAGS.index("moved away" if edit.kind == "move" else edit.kind)] = 1
            if edit.kind == "move":
                flags[PLACES.index(edit.value), FLAGS.index("moved here")] = 1
    return flags


class ComparisonHead(nn.Module):
    """An auxiliary head over the second image's tokens, half-way up the language model; not part of the checkpoint.

    The text loss alone teaches comparison slowly, since one word in forty depends on it. Here every cell of every pair
    does.
    """

    def __init__(self, width: int, layers: tuple[int, ...] = (2, 3)) -> None:
        super().__init__()
        self.layers = layers
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in layers)
        self.before = nn.ModuleList(nn.Linear(width, sum(CLASSES)) for _ in layers)
        self.flags = nn.ModuleList(nn.Linear(width, len(FLAGS)) for _ in layers)
        self.rare = torch.tensor(4.0)

    def loss(
        self, states: Sequence[torch.Tensor], cells: torch.Tensor, flags: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """(loss, share of pairs with every flag right).

        Args:
            states: hidden states (n, 9, width) of each layer.
            cells: of the first image (n, 9, 4), see `label_cells`.
            flags: (n, 9, 9), see `label_changes`.
        """
        total = torch.zeros(())
        right = 0.0
        for state, norm, before, flag in zip(states, self.norms, self.before, self.flags, strict=True):
            x = norm(state)
            for i, part in enumerate(before(x).split(CLASSES, -1)):
                total = total + 0.25 * F.cross_entropy(part.flatten(0, 1), cells[..., i].flatten())
            logits = flag(x)
            total = total + 3 * F.binary_cross_entropy_with_logits(logits, flags, pos_weight=self.rare)
            right = float(((logits > 0) == (flags > 0.5)).all(-1).all(-1).float().mean())
        return total / len(self.layers), right


class DescriptionLoss:
    """Loss of the texts of sampled pairs and single images, from vision features computed once per image."""

    def __init__(self, model: Idefics3ForConditionalGeneration, processor: Idefics3Processor) -> None:
        self.model, self.words = model, processor.tokenizer
        self.comparing = ComparisonHead(model.config.text_config.hidden_size)
        self.compare = encode_prompt(2, tokens.prompt("describe"), processor)
        self.caption = encode_prompt(1, tokens.prompt("caption"), processor)
        self.image_id = model.config.image_token_id
        self.verbs = {
            self.words(f" {v}", add_special_tokens=False).input_ids[0]
            for v in ("make", "turn", "move", "add", "remove", "change")
        }
        self.cut = self.words("; change", add_special_tokens=False).input_ids[-1]
        self.second = [i for i, token in enumerate(self.compare) if token == self.image_id][VISUAL_TOKENS:]

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer, its end token included."""
        return [*self.words(text, add_special_tokens=False).input_ids, self.words.eos_token_id]

    def loss(
        self, features: torch.Tensor, samples: list[tuple[list[int], list[int], list[int]]], scenes: Sequence[Scene]
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """(mean loss of the answers, ComparisonHead's loss, its share right).

        Tokens after 'change' weigh double, the verbs among them six times.

        Args:
            features: (images, 9, width).
            samples: (indices of its images, question ids, answer ids) each.
            scenes: what is in the images.
        """
        length = max(len(q) + len(a) for _, q, a in samples) - 1
        ids = torch.full((len(samples), length), self.words.pad_token_id)
        labels = torch.full((len(samples), length), -100)
        weight = torch.ones(len(samples), length)
        for row, (_, q, a) in enumerate(samples):
            ids[row, : len(q) + len(a) - 1] = torch.tensor([*q, *a][:-1])
            labels[row, len(q) - 1 : len(q) + len(a) - 1] = torch.tensor(a)
            if self.cut in a:
                start = a.index(self.cut) + 1
                weight[row, len(q) + start - 1 : len(q) + len(a) - 1] = 2.0
                for at, token in enumerate(a[start:], start):
                    if token in self.verbs:  # the word that decides the kind of change
                        weight[row, len(q) + at - 1] = 6.0
        embedded = self.model.get_input_embeddings()(ids)
        where = [i for images, _, _ in samples for i in images]
        embedded = embedded.masked_scatter((ids == self.image_id)[..., None], features[where])
        out = self.model.model.text_model(inputs_embeds=embedded, use_cache=False, output_hidden_states=True)
        hidden = out.last_hidden_state
        is_answer = labels != -100  # padding is on the right, so the causal mask is enough
        losses = F.cross_entropy(self.model.lm_head(hidden[is_answer]), labels[is_answer], reduction="none")
        pairs = [(row, *images) for row, (images, _, _) in enumerate(samples) if len(images) == 2]
        states = [
            out.hidden_states[layer][[row for row, _, _ in pairs]][:, self.second] for layer in self.comparing.layers
        ]
        before, _ = label_cells([scenes[i] for _, i, _ in pairs])
        flags = torch.stack([label_changes(scenes[i], scenes[j]) for _, i, j in pairs])
        compared, right = self.comparing.loss(states, before, flags)
        return (losses * weight[is_answer]).sum() / weight[is_answer].sum(), compared, right


def sample_pairs(scenes: Sequence[Scene], rng: random.Random, count: int) -> list[tuple[int, int]]:
    """`count` ordered pairs of a family, drawn so that about half have two or three edits."""
    every = [(i, j) for i in range(len(scenes)) for j in range(len(scenes)) if i != j]
    weights = [(1.0, 0.8, 0.9)[len(difference(scenes[i], scenes[j])) - 1] for i, j in every]
    return rng.choices(every, weights, k=count)


@dataclass
class Batch:
    """Scenes, pairs of them to be described, and single ones to be captioned, by their positions."""

    scenes: list[Scene] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    singles: list[int] = field(default_factory=list)

    def add(self, scenes: Sequence[Scene], pairs: Sequence[tuple[int, int]], single: int | None = None) -> None:
        """Add scenes; `pairs` and `single` count from the first of them."""
        first = len(self.scenes)
        self.scenes += scenes
        self.pairs += [(first + i, first + j) for i, j in pairs]
        if single is not None:
            self.singles.append(first + single)


def family_batch(rng: random.Random, families: int = FAMILIES) -> Batch:
    """Families of three, three pairs of each; of every other family a caption."""
    batch = Batch()
    for n, scenes in enumerate([family(rng, "train", 3) for _ in range(families)]):
        pairs, single = sample_pairs(scenes, rng, 3), rng.randrange(3)
        batch.add(scenes, pairs, single if n % 2 == 0 else None)
    return batch


def related_batch(rng: random.Random) -> Batch:
    """A few families, and pairs of related scenes in both orders."""
    batch = family_batch(rng, OLD_FAMILIES)
    for _ in range(RELATED):
        edits = rng.choices(list(RELATED_EDITS), list(RELATED_EDITS.values()))[0]
        batch.add(related_pair(rng, "train", edits), [(0, 1), (1, 0)])
    return batch


def gold_description(query: Scene, target: Scene) -> str:
    """What the describer is to write about two scenes."""
    return phrases.describe(query, target) if len(difference(query, target)) <= SAID_EDITS else TOO_DIFFERENT


@dataclass(frozen=True)
class Writing:
    """How one stage teaches to write.

    Attributes:
        stage: its letter in the training curve.
        steps: optimiser steps.
        peak: learning rate after warm-up.
        batch: draws a step's scenes.
    """

    stage: str
    steps: int
    peak: float
    batch: Callable[[random.Random], Batch]


def train_writing(
    model: Idefics3ForConditionalGeneration,
    processor: Idefics3Processor,
    rng: random.Random,
    writing: Writing,
    log: TrainingLog,
    folder: Path,
) -> None:
    """The whole model learns descriptions and captions; a checkpoint and a measurement every 150 steps.

    Args:
        model: trained in place.
        processor: saved with it.
        rng: of this worker's samples.
        writing: the stage.
        log: of the training curve; only a worker whose log is not silent saves checkpoints.
        folder: of the checkpoint.
    """
    description_loss = DescriptionLoss(model, processor)
    weights = [*model.parameters(), *description_loss.comparing.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=writing.peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    test = held_out_pairs(120, seed=77)
    compare, caption, answer = description_loss.compare, description_loss.caption, description_loss.answer
    for step in range(writing.steps):
        for group in optimizer.param_groups:
            group["lr"] = writing.peak * cosine_schedule(step, writing.steps)
        batch = writing.batch(rng)
        scenes = batch.scenes
        samples = [([i, j], compare, answer(gold_description(scenes[i], scenes[j]))) for i, j in batch.pairs]
        samples += [([i], caption, answer(phrases.caption(scenes[i]))) for i in batch.singles]
        samples.sort(key=lambda sample: len(sample[1]) + len(sample[2]))
        features = image_features(model, to_pixel_values([render_view(s, rng) for s in scenes]))
        half = len(samples) // 2  # two halves by length: a fifth less padding
        parts = [description_loss.loss(features, part, scenes) for part in (samples[:half], samples[half:])]
        written, compared = (parts[0][0] + parts[1][0]) / 2, (parts[0][1] + parts[1][1]) / 2
        loss = written + compared
        optimizer.zero_grad()
        loss.backward()
        average_gradients(weights)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            seen = (step + 1) * len(samples) * WORKERS
            log.write(
                stage=writing.stage,
                step=step + 1,
                samples=seen,
                loss=round(float(written), 4),
                compared=round((parts[0][2] + parts[1][2]) / 2, 3),
            )
        if (step + 1) % 150 == 0 and not log.is_silent:
            log.write(stage=writing.stage, step=step + 1, **measure(model, processor, test))
            save(folder, model, processor)


@torch.no_grad()
def write_descriptions(
    model: Idefics3ForConditionalGeneration,
    processor: Idefics3Processor,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[str]:
    """The model's descriptions of pairs of images, each (96, 96, 3) uint8; greedy."""
    ids = torch.tensor([encode_prompt(2, tokens.prompt("describe"), processor)])
    texts: list[str] = []
    for start in range(0, len(pairs), 64):
        part = pairs[start : start + 64]
        values = torch.stack([to_pixel_values(pair) for pair in part])
        inputs = ids.repeat(len(part), 1)
        out = model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), pixel_values=values, max_new_tokens=80
        )
        texts += processor.tokenizer.batch_decode(out[:, inputs.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def measure(
    model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, pairs: Sequence[tuple[Scene, Scene]]
) -> dict[str, object]:
    """Shares of pairs described exactly: the whole text, and the changes alone, by their number of edits."""
    model.eval()
    texts = write_descriptions(model, processor, [(draw(s, rendering=1), draw(t, rendering=2)) for s, t in pairs])
    model.train()
    whole: dict[int, list[bool]] = {}
    change: dict[int, list[bool]] = {}
    for (s, t), text in zip(pairs, texts, strict=True):
        gold, edits = phrases.describe(s, t), len(difference(s, t))
        whole.setdefault(edits, []).append(text == gold)
        change.setdefault(edits, []).append(text.split("change: ")[-1] == gold.split("change: ")[-1])
    out: dict[str, object] = {f"exact_{n}": round(float(np.mean(v)), 3) for n, v in sorted(whole.items())}
    out |= {f"change_{n}": round(float(np.mean(v)), 3) for n, v in sorted(change.items())}
    return out


def train(
    folder: Path,
    *,
    seed: int = 0,
    steps: int = 1500,
    vision_steps: int = 320,
    related_steps: int = 2400,
    start: Path | None = None,
) -> None:
    """Train into `folder`; the same arguments give the same weights.

    Args:
        folder: of the checkpoint.
        seed: of weights and samples.
        steps: of stage B.
        vision_steps: of stage A.
        related_steps: of stage C.
        start: a checkpoint of stages A and B, to go on from with stage C alone; from scratch where None.
    """
    run_workers(_train, folder, seed, (vision_steps, steps, related_steps), start)


def _train(rank: int, folder: Path, seed: int, steps: tuple[int, int, int], start: Path | None) -> None:
    torch.manual_seed(seed)  # the same weights in every worker, other samples
    rng = random.Random(f"{seed}:{rank}")
    log = TrainingLog(folder, is_silent=rank > 0)
    model, processor = build()
    check_against_processor(processor)
    log.write(parameters=sum(p.numel() for p in model.parameters()), vocabulary=len(processor.tokenizer))
    model.train()
    if start is None:
        train_vision(model, rng, steps[0], log)
        rescale_connector(model)
        train_writing(model, processor, rng, Writing("B", steps[1], PEAK, family_batch), log, folder)
    else:
        model.load_state_dict(AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32).state_dict())
    rng = random.Random(f"{seed}:{rank}:C")  # as if stage C continued from the saved weights
    train_writing(model, processor, rng, Writing("C", steps[2], LATER_PEAK, related_batch), log, folder)
    if rank == 0:
        save(folder, model, processor)
        log.write(stage="end", **measure(model, processor, held_out_pairs(600, seed=78)))
