"""Pairs of related scenes as mining finds them across families: any mix of changes, one to many.

Two members of a family differ in slots that the family fixed (`scenes.family`): an object that is gone and another one
that is new never occur together, nor an object that is elsewhere and of another shape. Nearest neighbours of different
families differ in just such ways, so a describer that has seen families alone cannot say how.
"""

from __future__ import annotations

import random
from dataclasses import replace

from tasks.sample.scenes import (
    ATTRIBUTES,
    BACKGROUNDS,
    MAX_OBJECTS,
    Scene,
    SceneObject,
    assign_split,
    difference,
    random_scene,
)

SAID_EDITS = 3  # most edits that a description states; a pair with more is `TOO_DIFFERENT`
TOO_DIFFERENT = "too different"
# what is changed, and how often: encoders bring images with the same background together, and shapes apart last
_PARTS = {"background": 0.5, "add": 0.7, "another": 0.4, "object": 1.5}
_ATTRIBUTES = {"shape": 2.0, "colour": 1.0, "size": 1.3, "pattern": 1.3}
# how an object of the query becomes one of the target, and how often
_CHANGES = {"attribute": 4.0, "move": 2.0, "remove": 2.0, "moved and changed": 1.5, "two attributes": 1.5}


def _draw(rng: random.Random, weights: dict[str, float], count: int) -> list[str]:
    """`count` different names, drawn one by one by their weights; all of them where there are no more."""
    left, drawn = dict(weights), list[str]()
    while left and len(drawn) < count:
        name = rng.choices(list(left), list(left.values()))[0]
        drawn.append(name)
        left.pop(name)
    return drawn


def _change_object(item: SceneObject, kind: str, free: list[int], rng: random.Random) -> SceneObject | None:
    """The object after one of `_CHANGES`; None where it is removed."""
    if kind == "remove":
        return None
    count = {"attribute": 1, "moved and changed": 1, "two attributes": 2}.get(kind, 0)
    for name in _draw(rng, _ATTRIBUTES, count):
        value = rng.choice([v for v in ATTRIBUTES[name] if v != getattr(item, name)])
        item = replace(item, **{name: value})  # type: ignore[arg-type]
    return replace(item, cell=rng.choice(free)) if kind in ("move", "moved and changed") and free else item


def related_scene(query: Scene, rng: random.Random, changes: int) -> Scene | None:
    """A scene that `changes` changes lead to; None where they leave no valid scene.

    Args:
        query: the scene to start from.
        rng: source of all random choices.
        changes: of objects, of the background, or additions, a count; one change of an object may be two edits.
    """
    named = {item.name: _PARTS["object"] for item in query.objects}
    parts = _draw(rng, {name: _PARTS[name] for name in ("background", "add", "another")} | named, changes)
    ground = rng.choice([b for b in BACKGROUNDS if b != query.background]) if "background" in parts else None
    objects: list[SceneObject] = []
    taken = {t.cell for t in query.objects}
    for item in query.objects:
        free = [cell for cell in range(9) if cell not in taken]
        changed: SceneObject | None = item
        if item.name in parts:
            changed = _change_object(item, _draw(rng, _CHANGES, 1)[0], free, rng)
        if changed is not None:
            objects.append(changed)
            taken.add(changed.cell)
    for new in random_scene(rng).objects[: ("add" in parts) + ("another" in parts)]:
        used = {t.cell for t in objects}
        # an object that is new stands in a free cell, or where another one was taken away
        cell = rng.choice([cell for cell in range(9) if cell not in used])
        if len(objects) < MAX_OBJECTS:
            objects.append(replace(new, cell=cell))
    if not objects or len({t.name for t in objects}) < len(objects):
        return None
    return Scene(ground or query.background, tuple(objects))


def held_out_related(count: int, seed: int, split: str = "benchmark") -> list[tuple[Scene, Scene]]:
    """Ordered related pairs of a split that training never sees, as many of one, two, three and more edits."""
    rng = random.Random(seed)
    return [related_pair(rng, split, 1 + n % (SAID_EDITS + 1)) for n in range(count)]


def related_pair(rng: random.Random, split: str, edits: int) -> tuple[Scene, Scene]:
    """An ordered pair of scenes of one split, `edits` edits apart; more are allowed where `edits` > SAID_EDITS."""
    while True:
        query = random_scene(rng)
        if assign_split(query) != split:
            continue
        for _ in range(6):
            changes = rng.randint(max(1, edits - 1), edits) if edits <= SAID_EDITS else rng.randint(2, 6)
            target = related_scene(query, rng, changes)
            if target is None or assign_split(target) != split:
                continue
            apart = len(difference(query, target))
            if apart == edits if edits <= SAID_EDITS else apart >= edits:
                return (query, target)
