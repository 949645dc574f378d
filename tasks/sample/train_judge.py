"""The judge: does the second image fit, given the first and an instruction? Yes or no, read from the logits.

The describer's architecture, initialised with its weights. Eight questions about one pair of images are packed into one
sequence under a block-diagonal mask, each with the positions it would have alone: eight labels for about three times
the work of one. A 'no' is a near miss: another member of the family, the query itself, a text with one word wrong, or a
text that the describer got wrong. A question is right as `truth.is_true` defines it: a text that states one change of
several is right.

Two auxiliary heads, not part of the checkpoint, teach the parts of the answer: what happened in each cell (as for the
describer), and, at each word of each phrase of the text, whether a true phrase could begin so. In addition the words of
right texts are predicted, as in the describer's training. What a layer encodes about the next word can only be compared
with the actual next word by a later layer: so after the first stage two layers are added on top, which change nothing
at first, and everything is trained further. Edits of shape are learnt last: a third stage shows many. Mined negatives
can be far from the query, and there an object that the text names may be elsewhere and changed: a fourth and a fifth
stage show such scenes. 3.8 M parameters.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, Idefics3ForConditionalGeneration, Idefics3Processor

from tasks.sample import phrases, truth
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
)
from tasks.sample.judge_packing import QuestionPacker
from tasks.sample.judge_questions import (
    Question,
    distant_scene,
    has_shape_edit,
    held_out_questions,
    make_phrases,
    make_questions,
)
from tasks.sample.scenes import Scene, draw, family, random_scene
from tasks.sample.train_vlm import ComparisonHead, image_features, label_cells, label_changes, write_descriptions

GROUPS = 16  # pairs of images in a batch, besides two of the describer's errors
EXTRA_LAYERS = 2  # added on top of the describer's four
PEAK = 8e-4  # learning rate; low enough to keep what the describer's weights encode
LOW, HIGH = 0.03, 0.06  # the false-yes rates at which a threshold is reported


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        steps: optimiser steps of the default run.
        decay_steps: steps over which the learning rate falls; more than `steps` where the next stage goes on falling.
        peak: learning rate after warm-up.
        shape_share: of the families, those in which an edit of shape is enforced.
        distant_share: of the candidates, those that are far from the query.
        changed_share: of these, those in which an object of the query has another shape or colour.
    """

    steps: int
    decay_steps: int
    peak: float
    shape_share: float = 0.0
    distant_share: float = 0.0
    changed_share: float = 0.0


STAGES = (
    Stage(450, 1100, PEAK),
    Stage(700, 700, PEAK),
    Stage(280, 280, PEAK, shape_share=0.4),
    Stage(120, 120, PEAK / 2, shape_share=0.2, distant_share=0.5),
    Stage(110, 110, PEAK / 2, shape_share=0.2, distant_share=0.5, changed_share=0.7),
)


def find_describer_errors(
    model: Idefics3ForConditionalGeneration,
    processor: Idefics3Processor,
    pairs: Sequence[tuple[Scene, Scene]],
    rng: random.Random,
) -> list[Question]:
    """Changes that the describer states wrongly for these pairs, one question each: those that parse and are false."""
    texts = write_descriptions(model, processor, [(draw(s, rendering=1), draw(t, rendering=2)) for s, t in pairs])
    errors = []
    for (query, target), text in zip(pairs, texts, strict=True):
        for change in (phrases.parse_description(text) or ([], []))[1]:
            parsed = truth.parse(change)
            if parsed and parsed.edits and not truth.is_true(change, query, target):
                style = rng.choice(("imperative", "noun phrase", "question", "short"))
                stated = parsed.edits[:1] if style == "short" else parsed.edits
                parts = make_phrases(stated, query, target, style)
                if not all(part.is_true for part in parts):
                    instruction = phrases.instruction(stated, [], style)
                    errors.append(Question(query, target, instruction, False, "describer's own error", tuple(parts)))
    return errors


def measure_answers(questions: Sequence[Question], scores: np.ndarray) -> dict[str, object]:
    """AUC; threshold and true-yes rate where the false-yes rate is LOW and HIGH; yes rate by case at HIGH."""
    is_right = np.array([q.is_right for q in questions])
    yes, no = np.sort(scores[is_right]), np.sort(scores[~is_right])
    out: dict[str, object] = {"auc": round(float(np.searchsorted(no, yes).mean() / len(no)), 4)}
    for rate in (LOW, HIGH):
        threshold = float(no[int(np.ceil((1 - rate) * len(no))) - 1]) + 1e-6
        out[f"at_{rate}"] = {"threshold": round(threshold, 4), "true_yes": round(float((yes >= threshold).mean()), 4)}
    by_case = {}
    for case in sorted({q.case for q in questions}):
        accepted = [score >= threshold for q, score in zip(questions, scores, strict=True) if q.case == case]
        by_case[case] = round(float(np.mean(accepted)), 4)
    return out | {f"yes_by_kind_at_{HIGH}": by_case}


def add_layers(model: Idefics3ForConditionalGeneration, layers: int = EXTRA_LAYERS) -> None:
    """Add layers on top of the language model: copies of its last one whose output is zero at first."""
    text_model = model.model.text_model
    for _ in range(layers):
        layer = copy.deepcopy(text_model.layers[-1])
        layer.self_attn.layer_idx = len(text_model.layers)
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
        text_model.layers.append(layer)
    model.config.text_config.num_hidden_layers = text_model.config.num_hidden_layers = len(text_model.layers)


@dataclass(frozen=True)
class Run:
    """Arguments of `train` that every worker needs; see there.

    Attributes:
        share: of the stages' default steps.
    """

    folder: Path
    seed: int
    share: float
    first_stage: int
    describer: Path
    practice: int


@dataclass(frozen=True)
class Worker:
    """What one worker process trains with.

    Attributes:
        rank: 0 saves and measures.
        folder: of the checkpoint.
        model: trained in place.
        processor: saved with it.
        log: of the training curve.
        errors: of the describer, in training pairs.
        test: held-out questions; empty unless rank is 0.
    """

    rank: int
    folder: Path
    model: Idefics3ForConditionalGeneration
    processor: Idefics3Processor
    log: TrainingLog
    errors: Sequence[Question]
    test: Sequence[Question]

    def measure(self) -> dict[str, object]:
        """Figures of the model on the held-out questions."""
        self.model.eval()
        return measure_answers(self.test, QuestionPacker(self.model, self.processor).score(self.test))


def train(
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    first_stage: int = 1,
    describer: Path | None = None,
    practice: int = 900,
) -> None:
    """Train into `folder` from the describer's weights.

    Args:
        folder: of the checkpoint.
        seed: of the questions; the initial weights are the describer's.
        steps: of two workers, about 290 questions each, divided among the stages as in STAGES; as many as there where
            None.
        first_stage: 2 to 5 continue from the checkpoint in `folder`.
        describer: its checkpoint; the folder `vlm` beside `folder` where None.
        practice: pairs that the describer describes in each worker first, to collect its errors.
    """
    share = 1.0 if steps is None else steps / sum(stage.steps for stage in STAGES)
    run_workers(_train, Run(folder, seed, share, first_stage, describer or folder.parent / "vlm", practice))


def _train(rank: int, run: Run) -> None:
    """All stages in one worker."""
    torch.manual_seed(run.seed)
    rng = random.Random(f"judge:{run.seed}:{rank}")
    log = TrainingLog(run.folder, is_silent=rank > 0)
    model = AutoModelForImageTextToText.from_pretrained(run.describer, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(run.describer)
    pairs: list[tuple[Scene, Scene]] = []
    while len(pairs) < run.practice:
        query, target, *_ = family(rng, "train", 4)
        pairs.append((query, target))
    errors = find_describer_errors(model, processor, pairs, rng)
    test: list[Question] = []
    if rank == 0:
        test_errors = find_describer_errors(model, processor, held_out_pairs(run.practice // 2, 83), rng)
        test = held_out_questions(600, 82, test_errors)
    log.write(own_errors_in_training=len(errors), in_test=sum(q.case == "describer's own error" for q in test))
    if run.first_stage > 1:
        model = AutoModelForImageTextToText.from_pretrained(run.folder, dtype=torch.float32)
    worker = Worker(rank, run.folder, model, processor, log, errors, test)
    for number, stage in enumerate(STAGES, 1):
        if number < run.first_stage:
            continue
        if number == 2:
            add_layers(model)
        if number > 1:  # as if it continued from the saved weights, which are float16
            rng = random.Random(f"judge:{run.seed}:{rank}:{number}")
            for weight in model.parameters():
                weight.data = weight.data.half().float()
        torch.manual_seed(run.seed)
        steps, decay_steps = (max(1, round(run.share * count)) for count in (stage.steps, stage.decay_steps))
        _train_stage(worker, rng, number, replace(stage, steps=steps, decay_steps=decay_steps))
    if rank == 0:
        save(run.folder, model, processor)
        log.write(stage="end", **worker.measure())


@dataclass
class Batch:
    """Pairs of images with their questions.

    Attributes:
        images: scenes; a pair refers to two of them.
        where: each pair's two rows of `images`.
        rows: each pair's questions.
    """

    images: list[Scene] = field(default_factory=list)
    where: list[tuple[int, int]] = field(default_factory=list)
    rows: list[list[Question]] = field(default_factory=list)

    def add(self, scenes: Sequence[Scene], candidate: int, questions: list[Question]) -> None:
        """Add two scenes, and questions about the first and the one of index `candidate`."""
        self.where.append((len(self.images), len(self.images) + candidate))
        self.rows.append(questions)
        self.images += scenes

    def draw_pixels(self, rng: random.Random) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """(pixels of all images, each pair's two rows of them).

        Where the candidate is the query itself, it is another drawing of the query in half of the cases.
        """
        twins = [self.images[j] for i, j in self.where if i == j]
        new_rows = iter(range(len(self.images), len(self.images) + len(twins)))
        where = [(i, next(new_rows) if rng.random() < 0.5 else j) if i == j else (i, j) for i, j in self.where]
        return to_pixel_values([render_view(s, rng) for s in self.images + twins]), where


def make_batch(rng: random.Random, stage: Stage, errors: Sequence[Question]) -> Batch:
    """GROUPS pairs of random families, and two of the describer's errors."""
    batch = Batch()
    for _ in range(GROUPS):
        relatives = family(rng, "train", 4)
        if rng.random() < stage.shape_share:
            while not has_shape_edit(*relatives[:2]):
                relatives = family(rng, "train", 4)
        if rng.random() < stage.distant_share:
            relatives[1] = distant_scene(relatives[0], rng, changed=stage.changed_share)
        candidate = 0 if rng.random() < 0.12 else 1
        questions = make_questions(relatives[0], relatives[candidate], relatives, rng)
        batch.add(relatives[:2], candidate, questions)
    for error in rng.sample(errors, min(2, len(errors))):
        relatives = [error.query, error.candidate, random_scene(rng)]
        questions = make_questions(error.query, error.candidate, relatives, rng)
        batch.add(relatives[:2], 1, [error, *questions[:-1]])
    return batch


def _train_stage(worker: Worker, rng: random.Random, number: int, stage: Stage) -> None:
    """Train in place; a checkpoint and a measurement every 150 steps."""
    model, log = worker.model, worker.log
    packer = QuestionPacker(model, worker.processor)
    model.train()
    width, top = model.config.text_config.hidden_size, len(model.model.text_model.layers)
    comparing, may_begin = ComparisonHead(width), nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
    weights = [*model.parameters(), *comparing.parameters(), *may_begin.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=stage.peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    total = count = marks_right = word_total = 0.0
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.peak * cosine_schedule(step, stage.decay_steps)
        batch = make_batch(rng, stage, worker.errors)
        values, where = batch.draw_pixels(rng)
        answers = packer.logits(image_features(model, values), where, batch.rows)
        labels = torch.tensor([[packer.yes if q.is_right else packer.no for q in row] for row in batch.rows])
        loss = F.cross_entropy(answers.logits.flatten(0, 1), labels.flatten())
        pairs = [(batch.images[i], batch.images[j]) for i, j in batch.where]
        flags = torch.stack([label_changes(one, other) for one, other in pairs])
        compared, cells_right = comparing.loss(
            [answers.states[layer][:, packer.second] for layer in comparing.layers],
            label_cells([one for one, _ in pairs])[0],
            flags,
        )
        rows, positions = [row for row, _, _ in answers.marks], [at for _, at, _ in answers.marks]
        mark_logits = may_begin(answers.states[top - 1][rows, positions])[:, 0]
        mark_labels = torch.tensor([float(may) for _, _, may in answers.marks])
        mark_loss = F.binary_cross_entropy_with_logits(mark_logits, mark_labels)
        optimizer.zero_grad()
        (loss + 0.5 * compared + 2 * mark_loss + 0.5 * answers.word_loss).backward()
        average_gradients(weights)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        total, count = total + float(loss.detach()), count + 1
        word_total += float(answers.word_loss.detach())
        marks_right += float(((mark_logits > 0) == (mark_labels > 0.5)).float().mean())
        if (step + 1) % 50 == 0:
            log.write(
                stage=number,
                step=step + 1,
                labels=(step + 1) * WORKERS * labels.numel(),
                loss=round(total / count, 4),
                marks_right=round(marks_right / count, 3),
                words=round(word_total / count, 3),
                compared=round(cells_right, 3),
            )
            total = count = marks_right = word_total = 0.0
        if (step + 1) % 150 == 0 and worker.rank == 0:
            log.write(stage=number, step=step + 1, **worker.measure())
            model.train()
            save(worker.folder, model, worker.processor)
