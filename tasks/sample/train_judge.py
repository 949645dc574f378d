"""The judge: does the second image fit, given the first and an instruction? Yes or no, read from the logits.

The describer's architecture and, to begin with, its weights. Eight questions about one pair of images are packed into
one sequence under a block-diagonal mask, each with the positions it has alone: eight labels for about three times the
work of one. A 'no' is a near miss: another member of the family, the query itself, a text with one word wrong, a text
that the describer itself got wrong. What is asked is `truth.is_true`: a text that states one change of several is
right. Two throw-away heads teach the parts of the answer: what happened in each cell (as for the describer), and, at
each word of each phrase of the text, whether a phrase that holds could begin so. And the right texts are predicted word
by word, as the describer predicts its own. What a layer knows of the next word only a later layer can hold against the
word that comes: so after a first stage two layers are put on top, which change nothing to begin with, and all is
trained on. Edits of a
shape are learnt last: a third stage shows many. Mined negatives may be far from the query, and
there an object that the text names may stand elsewhere, changed: a fourth and a fifth show such. 3.8 M parameters.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, Idefics3ForConditionalGeneration, Idefics3Processor

from tasks.sample import phrases, tokens, truth
from tasks.sample.common import Log, average, cosine, held_out_pairs, pixels, save, side_by_side, view
from tasks.sample.scenes import (
    ATTRIBUTES,
    BACKGROUNDS,
    PLACES,
    Edit,
    Scene,
    any_scene,
    difference,
    draw,
    family,
    renamed,
    shared,
    split_of,
)
from tasks.sample.train_vlm import (
    VISUAL_TOKENS,
    Comparing,
    cell_flags,
    cell_labels,
    image_features,
    turn,
    write_descriptions,
)

QUESTIONS = 8  # a pair of images
DEPTH, MORE = 4, 2  # layers of the describer, and those put on top of them
PEAK = 8e-4  # learning rate; the describer's weights are to be used, not to be forgotten
# steps; over how many the learning rate falls; its peak; share of shape edits on top; share of candidates far from the
# query
STAGES = (
    (450, 1100, PEAK, 0.0, 0.0),
    (700, 700, PEAK, 0.0, 0.0),
    (280, 280, PEAK, 0.4, 0.0),
    (120, 120, PEAK / 2, 0.2, 0.5),
    (110, 110, PEAK / 2, 0.2, 0.5),
)
LOW, HIGH = 0.03, 0.06  # the false-yes rates at which a threshold is reported


@dataclass(frozen=True)
class Part:
    """A phrase of a text: whether it holds by itself, and what would hold in its place, in the same style."""

    phrase: str
    holds: bool
    instead: tuple[str, ...]

    def may_begin(self, characters: int) -> bool:
        """Whether so many of its first characters begin a phrase that holds; the whole of it: whether it holds."""
        return (
            self.holds
            if characters >= len(self.phrase)
            else any(other.startswith(self.phrase[:characters]) for other in self.instead)
        )


@dataclass(frozen=True)
class Asked:
    """One text about one pair of images and whether it is right; `why` names the kind of case, `parts` are its phrases
    in their order.
    """

    query: Scene
    candidate: Scene
    text: str
    is_right: bool
    why: str
    parts: tuple[Part, ...] = ()


def true_elsewhere(query: Scene, candidate: Scene) -> list[Edit]:
    """Attribute edits that hold though the object stands in another place: `difference` calls them a removal and an
    addition.
    """
    found = []
    for new in candidate.things:
        for old in query.things:
            changed = [a for a in ATTRIBUTES if getattr(old, a) != getattr(new, a)]
            if len(changed) == 1 and old.cell != new.cell:
                edit = Edit(changed[0], old.name, getattr(new, changed[0]))
                if truth.holds(edit, query, candidate):
                    found.append(edit)
    return found


def parts_of(edits: Sequence[Edit], query: Scene, candidate: Scene, style: str) -> list[Part]:
    """The edits as phrases of a style."""
    instead = tuple(
        phrases.phrase(edit, style) for edit in difference(query, candidate) + true_elsewhere(query, candidate)
    )
    return [Part(phrases.phrase(edit, style), truth.holds(edit, query, candidate), instead) for edit in edits]


def word(
    edits: Sequence[Edit], query: Scene, candidate: Scene, rng: random.Random, *, keeps_lie: bool = False
) -> tuple[str, bool, tuple[Part, ...]]:
    """The edits as a text of a random style, whether it is right of the two scenes, and the same of its parts."""
    style = rng.choice(phrases.STYLES) if len(edits) == 1 else rng.choice(phrases.STYLES[:4])
    kept = shared(query, candidate)
    if keeps_lie:
        style, kept = "keep", [t.name for t in query.things] + [f"{query.background} background"]
    elif kept:
        kept = [rng.choice(kept)]
    if keeps_lie:
        kept = [rng.choice(kept)]
    parts = parts_of(edits, query, candidate, style)
    if style == "keep":
        both = tuple(
            k
            for k in [t.name for t in query.things] + [f"{query.background} background"]
            if truth.keeps(k, query, candidate)
        )
        parts = [Part(k, k in both, both) for k in kept[-1:]] + parts
    return phrases.instruction(edits, kept, style), all(part.holds for part in parts), tuple(parts)


def some_of(edits: Sequence[Edit], rng: random.Random) -> list[Edit]:
    """All of the edits (six times in ten) or some; one or two of more than three."""
    if len(edits) > 3:
        return [edits[i] for i in sorted(rng.sample(range(len(edits)), rng.randint(1, 2)))]
    if rng.random() < 0.6 or len(edits) == 1:
        return list(edits)
    chosen = rng.sample(range(len(edits)), rng.randint(1, len(edits) - 1))
    return [edits[i] for i in sorted(chosen)]


def one_word_off(edit: Edit, rng: random.Random) -> Edit:
    """The edit with another value, or about an object with one attribute changed."""
    values = {"background": tuple(BACKGROUNDS), "move": PLACES, "add": PLACES} | ATTRIBUTES
    if edit.kind in values and (not edit.name or rng.random() < 0.6) and edit.kind not in ("size", "pattern"):
        return replace(edit, value=rng.choice([v for v in values[edit.kind] if v != edit.value]))
    kind = rng.choice([a for a in ATTRIBUTES if a != edit.kind])
    changed = [renamed(edit.name, kind, v) for v in ATTRIBUTES[kind]]
    return replace(edit, name=rng.choice([name for name in changed if name != edit.name]))


def near_miss(query: Scene, candidate: Scene, relatives: Sequence[Scene], rng: random.Random) -> Asked:
    """A text that is almost right of the pair; it may happen to be right after all."""
    edits = difference(query, candidate)
    kind = rng.choices(
        ("other member", "one word off", "one too many", "backwards", "kept wrongly"), (40, 25, 20, 7, 8)
    )[0]
    others = [r for r in relatives if r not in (query, candidate)]
    if kind == "other member" or not edits:
        text, right, parts = word(some_of(difference(query, rng.choice(others)), rng), query, candidate, rng)
        return Asked(query, candidate, text, right, "other member" if edits else "query itself", parts)
    if kind in ("backwards", "kept wrongly"):
        said = difference(candidate, query) if kind == "backwards" else edits
        text, right, parts = word(some_of(said, rng), query, candidate, rng, keeps_lie=kind == "kept wrongly")
        return Asked(query, candidate, text, right, kind, parts)
    stated = some_of(edits, rng)
    if kind == "one too many":
        more = difference(query, rng.choice(others)) + [one_word_off(rng.choice(edits), rng)]
        extra = rng.choice([e for e in more if e not in edits] or more)
        stated.insert(rng.randint(0, len(stated)), extra)
    else:
        at = rng.randrange(len(stated))
        stated[at] = one_word_off(stated[at], rng)
    text, right, parts = word(stated, query, candidate, rng)
    return Asked(query, candidate, text, right, kind, parts)


def questions_about(query: Scene, candidate: Scene, relatives: Sequence[Scene], rng: random.Random) -> list[Asked]:
    """QUESTIONS texts about one pair, about half of them right (none where the candidate is the query)."""
    asked: list[Asked] = []
    edits, elsewhere = difference(query, candidate), true_elsewhere(query, candidate)
    wanted = QUESTIONS // 2 if edits else 0
    while len(asked) < wanted:
        stated = [rng.choice(elsewhere)] if elsewhere and rng.random() < 0.5 else some_of(edits, rng)
        text, right, parts = word(stated, query, candidate, rng)
        asked.append(Asked(query, candidate, text, right, "right", parts))
    tries = 0
    while len(asked) < QUESTIONS:
        missed = near_miss(query, candidate, relatives, rng)
        tries += 1
        if not missed.is_right or tries > 40:
            asked.append(missed)
    return asked


class Packer:
    """Packs the questions about each pair of images into one sequence and reads the answers' logits."""

    def __init__(self, model: Idefics3ForConditionalGeneration, processor: Idefics3Processor) -> None:
        self.model, self.words, self.processor = model, processor.tokenizer, processor
        self.image_id = model.config.image_token_id
        chat = turn(2, tokens.prompt("judge").format(instruction="\0"), processor)
        cut = chat.rindex("<fake_token_around_image>") + len("<fake_token_around_image>")
        self.prefix = self.words(chat[:cut], add_special_tokens=False).input_ids
        self.before, self.after = chat[cut:].split("\0")
        self.second = [i for i, token in enumerate(self.prefix) if token == self.image_id][VISUAL_TOKENS:]
        self.yes, self.no = (self.words(t, add_special_tokens=False).input_ids[0] for t in ("yes", "no"))

    def tail(self, asked: Asked) -> tuple[list[int], list[tuple[int, bool]], list[int]]:
        """Token ids of a question after the images, up to where the answer begins; (where, `Part.may_begin`) of the
        parts' tokens; where the text's are.
        """
        said = self.words(self.before + asked.text + self.after, add_special_tokens=False, return_offsets_mapping=True)
        marks, begin = [], len(self.before)
        for part in asked.parts:
            begin = (self.before + asked.text).index(part.phrase, begin)
            stop = begin + len(part.phrase)
            marks += [
                (i, part.may_begin(end - begin))
                for i, (_, end) in enumerate(said.offset_mapping)
                if begin < end <= stop
            ]
            begin = stop
        first, last = len(self.before), len(self.before) + len(asked.text)
        return said.input_ids, marks, [i for i, (_, end) in enumerate(said.offset_mapping) if first < end <= last]

    def logits(
        self, features: torch.Tensor, where: Sequence[tuple[int, int]], rows: Sequence[Sequence[Asked]]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], list[tuple[int, int, bool]], torch.Tensor]:
        """Logits of each answer's first token (pairs, questions, vocabulary), every layer's states, marks, the loss of
        the right texts' words.

        Args:
            features: (images, 9, width) visual tokens.
            where: each pair's two rows of `features`.
            rows: each pair's questions, equally many for every pair.
        Returns:
            A mark is (row, position, whether a phrase that holds may begin so).
        """
        start = len(self.prefix)
        cut = [[self.tail(asked) for asked in row] for row in rows]
        tails = [[ids for ids, _, _ in row] for row in cut]
        marks: list[tuple[int, int, bool]] = []
        spoken: list[tuple[int, int]] = []
        length = start + max(sum(map(len, row)) for row in tails)
        ids = torch.full((len(rows), length), self.words.pad_token_id)
        block = torch.full((len(rows), length), -1)
        position = torch.zeros(len(rows), length, dtype=torch.long)
        last = torch.zeros(len(rows), len(rows[0]), dtype=torch.long)
        ids[:, :start], block[:, :start], position[:, :start] = torch.tensor(self.prefix), 0, torch.arange(start)
        for i, row in enumerate(tails):
            at = start
            for j, tail in enumerate(row):
                end = at + len(tail)
                ids[i, at:end], block[i, at:end] = torch.tensor(tail), j + 1
                position[i, at:end] = torch.arange(start, start + len(tail))
                marks += [(i, at + token, may) for token, may in cut[i][j][1]]
                spoken += [(i, at + token) for token in cut[i][j][2] if rows[i][j].is_right]
                last[i, j], at = end - 1, end
        mask = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])  # (pairs, to, from)
        mask = mask & torch.ones(length, length, dtype=torch.bool).tril()
        embedded = self.model.get_input_embeddings()(ids)
        embedded = embedded.masked_scatter(
            (ids == self.image_id)[..., None], features[[i for pair in where for i in pair]]
        )
        out = self.model.model.text_model(
            inputs_embeds=embedded,
            attention_mask=mask[:, None],
            position_ids=position,
            use_cache=False,
            output_hidden_states=True,
        )
        hidden = out.last_hidden_state
        picked = hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1]))
        words = torch.zeros(())
        if spoken:
            row, to = torch.tensor(spoken).T
            text_model = self.model.model.text_model
            at_depth = hidden if len(text_model.layers) == DEPTH else text_model.norm(out.hidden_states[DEPTH])
            words = F.cross_entropy(self.model.lm_head(at_depth[row, to - 1]), ids[row, to])
        return self.model.lm_head(picked), out.hidden_states, marks, words

    @torch.no_grad()
    def score(self, asked: Sequence[Asked]) -> np.ndarray:
        """P(yes) against no of each question, (n,) float; one question a sequence, as at inference."""
        scores = []
        for i in range(0, len(asked), 64):
            part = asked[i : i + 64]
            images = [draw(s, rendering=r) for a in part for s, r in ((a.query, 1), (a.candidate, 2))]
            features = image_features(self.model, pixels(images))
            out = self.logits(features, [(2 * k, 2 * k + 1) for k in range(len(part))], [[a] for a in part])[0][:, 0]
            scores += (out[:, self.yes] - out[:, self.no]).sigmoid().tolist()
        return np.asarray(scores)


def own_errors(
    model: Idefics3ForConditionalGeneration,
    processor: Idefics3Processor,
    pairs: Sequence[tuple[Scene, Scene]],
    rng: random.Random,
) -> list[Asked]:
    """What the describer gets wrong: its changes for these pairs, one by one, where they parse and are false."""
    texts = write_descriptions(model, processor, [(draw(s, rendering=1), draw(t, rendering=2)) for s, t in pairs])
    found = []
    for (query, target), text in zip(pairs, texts, strict=True):
        for change in (phrases.read_description(text) or ([], []))[1]:
            reading = truth.parse(change)
            if reading and reading.edits and not truth.is_true(change, query, target):
                style = rng.choice(("imperative", "noun phrase", "question", "short"))
                stated = reading.edits[:1] if style == "short" else reading.edits
                parts = parts_of(stated, query, target, style)
                if not all(part.holds for part in parts):
                    found.append(
                        Asked(
                            query,
                            target,
                            phrases.instruction(stated, [], style),
                            False,
                            "describer's own error",
                            tuple(parts),
                        )
                    )
    return found


def held_out_questions(count: int, seed: int, errors: Sequence[Asked]) -> list[Asked]:
    """Balanced: half right; the wrong half in equal parts one edit off the target, the query itself, the describer's
    errors.
    """
    rng = random.Random(seed)
    asked = []
    for query, target in held_out_pairs(count // 2, seed):
        text, right, _ = word(some_of(difference(query, target), rng), query, target, rng)
        asked.append(Asked(query, target, text, right, "right"))
    wrong: list[Asked] = list(rng.choices(errors, k=count // 6)) if len(errors) >= 20 else list(errors)
    while len(wrong) < count // 2:
        query, target, *others = family(rng, "benchmark", 5)
        text, _, _ = word(difference(query, target), query, target, rng)
        near = [s for s in others if len(difference(s, target)) == 1 and not truth.is_true(text, query, s)]
        if len(wrong) % 2 and near:
            wrong.append(Asked(query, rng.choice(near), text, False, "one edit off"))
        elif not len(wrong) % 2:
            wrong.append(Asked(query, query, text, False, "query itself"))
    return asked + wrong


def figures(asked: Sequence[Asked], scores: np.ndarray) -> dict[str, object]:
    """True-yes and false-yes at the thresholds where false-yes is LOW and HIGH, the AUC, false-yes by kind of case."""
    right = np.array([a.is_right for a in asked])
    yes, no = np.sort(scores[right]), np.sort(scores[~right])
    out: dict[str, object] = {"auc": round(float(np.searchsorted(no, yes).mean() / len(no)), 4)}
    for rate in (LOW, HIGH):
        threshold = float(no[int(np.ceil((1 - rate) * len(no))) - 1]) + 1e-6
        out[f"at_{rate}"] = {"threshold": round(threshold, 4), "true_yes": round(float((yes >= threshold).mean()), 4)}
    by_kind = {why: round(float(np.mean([s >= threshold for a, s in zip(asked, scores, strict=True) if a.why == why])), 4)
               for why in sorted({a.why for a in asked})}  # fmt: skip
    return out | {f"yes_by_kind_at_{HIGH}": by_kind}


def deepen(model: Idefics3ForConditionalGeneration, layers: int = MORE) -> None:
    """Put layers on top of the language model: copies of its last one that add nothing yet."""
    text_model = model.model.text_model
    for _ in range(layers):
        layer = copy.deepcopy(text_model.layers[-1])
        layer.self_attn.layer_idx = len(text_model.layers)
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
        text_model.layers.append(layer)
    model.config.text_config.num_hidden_layers = text_model.config.num_hidden_layers = len(text_model.layers)


def train(
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    first_stage: int = 1,
    describer: Path | None = None,
    practice: int = 900,
) -> None:
    """Train into `folder` from the describer's weights (the folder `vlm` beside it where None).

    Args:
        folder: of the checkpoint.
        seed: of the questions; the weights are the describer's.
        steps: of two workers, about 290 questions each; the stages share them as in STAGES. As many as there where
            None.
        first_stage: 2 to 5 go on from what `folder` holds.
        describer: its checkpoint.
        practice: pairs that each worker lets the describer describe first, to learn from its errors.
    """
    share = 1.0 if steps is None else steps / sum(stage[0] for stage in STAGES)
    side_by_side(_train, folder, seed, share, first_stage, describer or folder.parent / "vlm", practice)


def _train(rank: int, folder: Path, seed: int, share: float, first_stage: int, describer: Path, practice: int) -> None:
    torch.manual_seed(seed)
    rng = random.Random(f"judge:{seed}:{rank}")
    log = Log(folder, is_silent=rank > 0)
    model = AutoModelForImageTextToText.from_pretrained(describer, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(describer)
    pairs: list[tuple[Scene, Scene]] = []
    while len(pairs) < practice:
        query, target, *_ = family(rng, "train", 4)
        pairs.append((query, target))
    errors = own_errors(model, processor, pairs, rng)
    test = (
        held_out_questions(600, 82, own_errors(model, processor, held_out_pairs(practice // 2, 83), rng))
        if rank == 0
        else []
    )
    log.write(own_errors_in_training=len(errors), in_test=sum(a.why == "describer's own error" for a in test))
    if first_stage > 1:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    for stage, (steps, falls_over, peak, shapes, far) in enumerate(STAGES, 1):
        if stage < first_stage:
            continue
        if stage == 2:
            deepen(model)
        if stage > 1:  # as if it went on from the saved weights, which are of float16
            rng = random.Random(f"judge:{seed}:{rank}:{stage}")
            for weight in model.parameters():
                weight.data = weight.data.half().float()
        torch.manual_seed(seed)
        count, over = max(1, round(share * steps)), max(1, round(share * falls_over))
        _practise(
            rank,
            folder,
            model,
            processor,
            rng,
            log,
            errors,
            test,
            steps=count,
            falls_over=over,
            peak=peak,
            stage=stage,
            shapes=shapes,
            far=far,
        )
    if rank == 0:
        save(folder, model, processor)
        log.write(stage="end", **figures(test, Packer(model.eval(), processor).score(test)))


def far_from(query: Scene, rng: random.Random, changed: float = 0.0) -> Scene:
    """A scene of the split 'train' that has some of the query's objects and some of a stranger's; mostly four to eight
    edits away.

    With chance `changed` one of the query's objects is there, somewhere, with another shape or colour.
    """
    while True:
        other = any_scene(rng)
        things = [t for t in query.things if rng.random() < 0.4]
        if rng.random() < changed:
            old, kind = rng.choice(query.things), rng.choice(("shape", "shape", "colour"))
            value = rng.choice([v for v in ATTRIBUTES[kind] if v != getattr(old, kind)])
            things = [t for t in things if t != old]
            free = [cell for cell in range(9) if all(t.cell != cell for t in things)]
            new = replace(old, cell=rng.choice(free), **{kind: value})
            if query.named(new.name) is None:
                things.append(new)
        for t in other.things:
            if len(things) < 4 and all(t.cell != u.cell and t.name != u.name for u in things):
                things.append(t)
        scene = Scene(query.background if rng.random() < 0.3 else other.background, tuple(things))
        if things and split_of(scene) == "train" and scene != query:
            return scene


def has_shape_edit(query: Scene, target: Scene) -> bool:
    """Whether an object turned into another shape."""
    return any(edit.kind == "shape" for edit in difference(query, target))


def _practise(
    rank: int,
    folder: Path,
    model: Idefics3ForConditionalGeneration,
    processor: Idefics3Processor,
    rng: random.Random,
    log: Log,
    errors: Sequence[Asked],
    test: Sequence[Asked],
    *,
    steps: int,
    falls_over: int,
    peak: float,
    stage: int,
    shapes: float,
    far: float,
    groups: int = 16,
) -> None:
    """Train in place; a checkpoint and a measurement every 150 steps. The learning rate falls as if there were
    `falls_over` steps.
    """
    packer = Packer(model, processor)
    model.train()
    width, top = model.config.text_config.hidden_size, len(model.model.text_model.layers)
    comparing, may_begin = Comparing(width), nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
    weights = [*model.parameters(), *comparing.parameters(), *may_begin.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    total = count = marks_right = spoken = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * cosine(step, falls_over)
        images: list[Scene] = []
        where: list[tuple[int, int]] = []
        rows: list[list[Asked]] = []
        for _ in range(groups):
            relatives = family(rng, "train", 4)
            if rng.random() < shapes:
                while not has_shape_edit(*relatives[:2]):
                    relatives = family(rng, "train", 4)
            if rng.random() < far:
                relatives[1] = far_from(relatives[0], rng, changed=0.7 if stage == 5 else 0.0)
            j = 0 if rng.random() < 0.12 else 1
            where.append((len(images), len(images) + j))
            rows.append(questions_about(relatives[0], relatives[j], relatives, rng))
            images += relatives[:2]
        for error in rng.sample(errors, min(2, len(errors))):
            relatives = [error.query, error.candidate, any_scene(rng)]
            where.append((len(images), len(images) + 1))
            rows.append([error, *questions_about(error.query, error.candidate, relatives, rng)[:-1]])
            images += relatives[:2]
        twins = [images[j] for i, j in where if i == j]  # the query itself: half the time in another drawing of it
        seen_again = iter(range(len(images), len(images) + len(twins)))
        again = [(i, next(seen_again) if rng.random() < 0.5 else j) if i == j else (i, j) for i, j in where]
        features = image_features(model, pixels([view(s, rng) for s in images + twins]))
        out, states, marks, words = packer.logits(features, again, rows)
        answers = torch.tensor([[packer.yes if a.is_right else packer.no for a in row] for row in rows])
        loss = F.cross_entropy(out.flatten(0, 1), answers.flatten())
        there = [(images[i], images[j]) for i, j in where]
        flags = torch.stack([cell_flags(one, other) for one, other in there])
        compared, cells_right = comparing.loss(
            [states[layer][:, packer.second] for layer in comparing.layers],
            cell_labels([one for one, _ in there])[0],
            flags,
        )
        said = may_begin(states[top - 1][[row for row, _, _ in marks], [at for _, at, _ in marks]])[:, 0]
        truly = torch.tensor([float(may) for _, _, may in marks])
        optimizer.zero_grad()
        (loss + 0.5 * compared + 2 * F.binary_cross_entropy_with_logits(said, truly) + 0.5 * words).backward()
        average(weights)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        total, count, spoken = total + float(loss.detach()), count + 1, spoken + float(words.detach())
        marks_right += float(((said > 0) == (truly > 0.5)).float().mean())
        if (step + 1) % 50 == 0:
            labels = (step + 1) * 2 * answers.numel()
            log.write(
                stage=stage,
                step=step + 1,
                labels=labels,
                loss=round(total / count, 4),
                marks_right=round(marks_right / count, 3),
                words=round(spoken / count, 3),
                compared=round(cells_right, 3),
            )
            total = count = marks_right = spoken = 0.0
        if (step + 1) % 150 == 0 and rank == 0:
            model.eval()
            log.write(stage=stage, step=step + 1, **figures(test, packer.score(test)))
            model.train()
            save(folder, model, processor)
