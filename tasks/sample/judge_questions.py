"""Questions for the judge: instructions about pairs of scenes that are right, or near misses.

A wrong question is a near miss: a text about another member of the family, with one word wrong, with one edit too many,
of the edits backwards, or with an item kept that is not in both images; or a right text about the query itself. Whether
a text is right is decided by tasks/sample/truth.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tasks.sample import phrases, truth
from tasks.sample.common import held_out_pairs
from tasks.sample.scenes import (
    ATTRIBUTES,
    BACKGROUNDS,
    PLACES,
    Edit,
    Scene,
    assign_split,
    difference,
    family,
    random_scene,
    rename_object,
    shared,
)

QUESTIONS = 8  # per pair of images


@dataclass(frozen=True)
class Phrase:
    """A phrase of a text.

    Attributes:
        text: its words.
        is_true: of the pair of scenes, by itself.
        true_phrases: phrases of the same style that are true of the pair.
    """

    text: str
    is_true: bool
    true_phrases: tuple[str, ...]

    def may_begin(self, characters: int) -> bool:
        """Whether its first `characters` characters begin a true phrase; at its full length, whether it is true."""
        if characters >= len(self.text):
            return self.is_true
        return any(other.startswith(self.text[:characters]) for other in self.true_phrases)


@dataclass(frozen=True)
class Question:
    """One text about one pair of images.

    Attributes:
        query, candidate: the scenes of the two images.
        text: the instruction.
        is_right: whether the candidate fits it.
        case: the kind of question, for figures by case.
        parts: the text's phrases in their order.
    """

    query: Scene
    candidate: Scene
    text: str
    is_right: bool
    case: str
    parts: tuple[Phrase, ...] = ()


def moved_attribute_edits(query: Scene, candidate: Scene) -> list[Edit]:
    """Attribute edits that are true although the object is at another position.

    `difference` states them as a removal and an addition.
    """
    edits = []
    for new in candidate.objects:
        for old in query.objects:
            changed = [a for a in ATTRIBUTES if getattr(old, a) != getattr(new, a)]
            if len(changed) == 1 and old.cell != new.cell:
                edit = Edit(changed[0], old.name, getattr(new, changed[0]))
                if truth.is_edit_true(edit, query, candidate):
                    edits.append(edit)
    return edits


def make_phrases(edits: Sequence[Edit], query: Scene, candidate: Scene, style: str) -> list[Phrase]:
    """The edits as phrases of a style."""
    true_edits = difference(query, candidate) + moved_attribute_edits(query, candidate)
    true_phrases = tuple(phrases.phrase(edit, style) for edit in true_edits)
    return [
        Phrase(phrases.phrase(edit, style), truth.is_edit_true(edit, query, candidate), true_phrases) for edit in edits
    ]


def write_text(
    edits: Sequence[Edit], query: Scene, candidate: Scene, rng: random.Random, *, is_kept_wrong: bool = False
) -> tuple[str, bool, tuple[Phrase, ...]]:
    """(text of a random style, whether it is right of the two scenes, its phrases).

    Args:
        edits: what the text states.
        query, candidate: the scenes.
        rng: draws the style and what is kept.
        is_kept_wrong: use the style 'keep', with any item of the query, which the candidate may not have.
    """
    style = rng.choice(phrases.STYLES) if len(edits) == 1 else rng.choice(phrases.STYLES[:4])
    query_items = [t.name for t in query.objects] + [f"{query.background} background"]
    kept = shared(query, candidate)
    if is_kept_wrong:
        style, kept = "keep", query_items
    if kept:
        kept = [rng.choice(kept)]
    parts = make_phrases(edits, query, candidate, style)
    if style == "keep":
        in_both = tuple(item for item in query_items if truth.is_kept(item, query, candidate))
        parts = [Phrase(item, item in in_both, in_both) for item in kept[-1:]] + parts
    return phrases.instruction(edits, kept, style), all(part.is_true for part in parts), tuple(parts)


def choose_edits(edits: Sequence[Edit], rng: random.Random) -> list[Edit]:
    """All of the edits (60%) or some of them; one or two of them where there are more than three."""
    if len(edits) > 3:
        return [edits[i] for i in sorted(rng.sample(range(len(edits)), rng.randint(1, 2)))]
    if rng.random() < 0.6 or len(edits) == 1:
        return list(edits)
    chosen = rng.sample(range(len(edits)), rng.randint(1, len(edits) - 1))
    return [edits[i] for i in sorted(chosen)]


def corrupt_edit(edit: Edit, rng: random.Random) -> Edit:
    """The edit with another value, or about an object whose name differs in one attribute."""
    values = {"background": tuple(BACKGROUNDS), "move": PLACES, "add": PLACES} | ATTRIBUTES
    if edit.kind in values and (not edit.name or rng.random() < 0.6) and edit.kind not in ("size", "pattern"):
        return replace(edit, value=rng.choice([v for v in values[edit.kind] if v != edit.value]))
    kind = rng.choice([a for a in ATTRIBUTES if a != edit.kind])
    changed = [rename_object(edit.name, kind, v) for v in ATTRIBUTES[kind]]
    return replace(edit, name=rng.choice([name for name in changed if name != edit.name]))


def near_miss(query: Scene, candidate: Scene, relatives: Sequence[Scene], rng: random.Random) -> Question:
    """A question whose text is almost right of the pair; by chance it may be right."""
    edits = difference(query, candidate)
    kind = rng.choices(
        ("other member", "one word off", "one too many", "backwards", "kept wrongly"), (40, 25, 20, 7, 8)
    )[0]
    others = [r for r in relatives if r not in (query, candidate)]
    if kind == "other member" or not edits:
        text, right, parts = write_text(choose_edits(difference(query, rng.choice(others)), rng), query, candidate, rng)
        return Question(query, candidate, text, right, "other member" if edits else "query itself", parts)
    if kind in ("backwards", "kept wrongly"):
        stated = difference(candidate, query) if kind == "backwards" else edits
        text, right, parts = write_text(
            choose_edits(stated, rng), query, candidate, rng, is_kept_wrong=kind == "kept wrongly"
        )
        return Question(query, candidate, text, right, kind, parts)
    stated = choose_edits(edits, rng)
    if kind == "one too many":
        more = difference(query, rng.choice(others)) + [corrupt_edit(rng.choice(edits), rng)]
        extra = rng.choice([e for e in more if e not in edits] or more)
        stated.insert(rng.randint(0, len(stated)), extra)
    else:
        at = rng.randrange(len(stated))
        stated[at] = corrupt_edit(stated[at], rng)
    text, right, parts = write_text(stated, query, candidate, rng)
    return Question(query, candidate, text, right, kind, parts)


def make_questions(query: Scene, candidate: Scene, relatives: Sequence[Scene], rng: random.Random) -> list[Question]:
    """QUESTIONS questions about one pair, about half of them right (none where the candidate is the query)."""
    questions: list[Question] = []
    edits, elsewhere = difference(query, candidate), moved_attribute_edits(query, candidate)
    wanted = QUESTIONS // 2 if edits else 0
    while len(questions) < wanted:
        stated = [rng.choice(elsewhere)] if elsewhere and rng.random() < 0.5 else choose_edits(edits, rng)
        text, right, parts = write_text(stated, query, candidate, rng)
        questions.append(Question(query, candidate, text, right, "right", parts))
    tries = 0
    while len(questions) < QUESTIONS:
        missed = near_miss(query, candidate, relatives, rng)
        tries += 1
        if not missed.is_right or tries > 40:
            questions.append(missed)
    return questions


def held_out_questions(count: int, seed: int, errors: Sequence[Question]) -> list[Question]:
    """Balanced questions of the split 'benchmark': half right, half wrong.

    The wrong ones are, in equal parts, one edit off the target, the query itself, and the describer's errors.
    """
    rng = random.Random(seed)
    questions = []
    for query, target in held_out_pairs(count // 2, seed):
        text, right, _ = write_text(choose_edits(difference(query, target), rng), query, target, rng)
        questions.append(Question(query, target, text, right, "right"))
    wrong: list[Question] = list(rng.choices(errors, k=count // 6)) if len(errors) >= 20 else list(errors)
    while len(wrong) < count // 2:
        query, target, *others = family(rng, "benchmark", 5)
        text, _, _ = write_text(difference(query, target), query, target, rng)
        near = [s for s in others if len(difference(s, target)) == 1 and not truth.is_true(text, query, s)]
        if len(wrong) % 2 and near:
            wrong.append(Question(query, rng.choice(near), text, False, "one edit off"))
        elif not len(wrong) % 2:
            wrong.append(Question(query, query, text, False, "query itself"))
    return questions + wrong


def distant_scene(query: Scene, rng: random.Random, changed: float = 0.0) -> Scene:
    """A scene of the split 'train' with some of the query's objects and some random ones; mostly 4 to 8 edits away.

    Args:
        query: the scene to be far from.
        rng: source of all random choices.
        changed: chance that one of the query's objects is in it, anywhere, with another shape or colour.
    """
    while True:
        other = random_scene(rng)
        objects = [t for t in query.objects if rng.random() < 0.4]
        if rng.random() < changed:
            old, kind = rng.choice(query.objects), rng.choice(("shape", "shape", "colour"))
            value = rng.choice([v for v in ATTRIBUTES[kind] if v != getattr(old, kind)])
            objects = [t for t in objects if t != old]
            free = [cell for cell in range(9) if all(t.cell != cell for t in objects)]
            new = replace(old, cell=rng.choice(free), **{kind: value})
            if query.find(new.name) is None:
                objects.append(new)
        for t in other.objects:
            if len(objects) < 4 and all(t.cell != u.cell and t.name != u.name for u in objects):
                objects.append(t)
        scene = Scene(query.background if rng.random() < 0.3 else other.background, tuple(objects))
        if objects and assign_split(scene) == "train" and scene != query:
            return scene


def has_shape_edit(query: Scene, target: Scene) -> bool:
    """Whether an object has another shape in the target."""
    return any(edit.kind == "shape" for edit in difference(query, target))
