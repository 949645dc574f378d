"""Scenes of the sample world: what an image contains, how two images differ, and how an image is drawn.

A scene is a background and 1 to 4 objects on a 3x3 grid. A family is a set of scenes at most three edits apart, like
the series of a shop or a photographer. A hash of its content assigns every scene to one split, whatever the seed, so
that checkpoints are never trained on a scene of the corpus or the benchmark. Drawing uses numpy over cached
anti-aliased masks: about 7,000 scenes per second and core at 96 px, so that training draws its images as it runs and
stores none.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (240, 200, 30),
    "purple": (135, 52, 180),
    "orange": (243, 126, 22),
}
SIZES = {"small": 0.21, "large": 0.34}  # diameter, as a share of the image's side
PATTERNS = ("plain", "striped")
BACKGROUNDS = {
    "white": (245, 245, 245),
    "light grey": (190, 190, 190),
    "dark grey": (80, 80, 80),
    "black": (15, 15, 15),
    "beige": (222, 203, 164),
    "teal": (20, 120, 125),
}
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right"))
KINDS = ("colour", "shape", "size", "pattern", "move", "add", "remove", "background")
SPLITS = ("train", "corpus", "benchmark")
SIDE_PX = 96
MAX_OBJECTS = 4
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "pattern": PATTERNS,
}


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene; `cell` numbers the grid row by row, 0 (top left) to 8 (bottom right)."""

    cell: int
    shape: str
    colour: str
    size: str
    pattern: str = "plain"

    @property
    def name(self) -> str:
        """Its name without its position: 'large striped red circle'; the pattern 'plain' is not named."""
        return " ".join(
            w for w in (self.size, "striped" if self.pattern == "striped" else "", self.colour, self.shape) if w
        )

    @property
    def place(self) -> str:
        """Its position in words: 'top left' to 'bottom right'."""
        return PLACES[self.cell]


@dataclass(frozen=True)
class Scene:
    """A background and objects in order of their cells; names of objects are unique within a scene."""

    background: str
    objects: tuple[SceneObject, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(sorted(self.objects, key=lambda item: item.cell)))

    @property
    def key(self) -> str:
        """Its content as one line of text; equal exactly for equal scenes."""
        parts = [f"{t.cell}:{t.name}" for t in self.objects]
        return "|".join([self.background, *parts])

    def find(self, name: str) -> SceneObject | None:
        """The object of that name, or None."""
        return next((item for item in self.objects if item.name == name), None)

    def to_record(self) -> dict[str, object]:
        """The scene as plain JSON values."""
        return {
            "background": self.background,
            "things": [[t.cell, t.shape, t.colour, t.size, t.pattern] for t in self.objects],
        }

    @classmethod
    def from_record(cls, record: dict) -> Scene:
        """The scene of `to_record`."""
        return cls(record["background"], tuple(SceneObject(int(t[0]), *t[1:]) for t in record["things"]))


@dataclass(frozen=True)
class Edit:
    """One difference between two scenes.

    Attributes:
        kind: one of KINDS.
        name: the object's name in the query (in the target for 'add'), '' for 'background'.
        value: the new attribute, the new position ('move', 'add'), the new background, or '' ('remove').
    """

    kind: str
    name: str
    value: str


def rename_object(name: str, kind: str, value: str) -> str:
    """The name of an object called `name` after its attribute `kind` has become `value`."""
    words = name.split()
    size, pattern, colour, shape = words[0], "striped" if "striped" in words else "plain", words[-2], words[-1]
    return replace(SceneObject(0, shape, colour, size, pattern), **{kind: value}).name  # type: ignore[arg-type]


def assign_split(scene: Scene) -> str:
    """'train' (60%), 'corpus' (25%) or 'benchmark' (15%), by a hash of the scene's content only."""
    share = int.from_bytes(hashlib.blake2b(scene.key.encode(), digest_size=4).digest(), "big") / 2**32
    return "train" if share < 0.60 else "corpus" if share < 0.85 else "benchmark"


def difference(query: Scene, target: Scene) -> list[Edit]:
    """The edits that turn `query` into `target`: canonical, from content only, each true by `truth.is_edit_true`.

    Objects are matched by name (at another position: a move), then by position where one attribute differs; what is
    left was removed or added. Ordered by grid cell, the background last.
    """
    edits: list[tuple[tuple[int, int], Edit]] = []
    for new in target.objects:
        old = query.find(new.name)
        if old is not None and old.cell != new.cell:
            edits.append(((old.cell, 1), Edit("move", old.name, new.place)))
    removed = {t.cell: t for t in query.objects if target.find(t.name) is None}
    added = {t.cell: t for t in target.objects if query.find(t.name) is None}
    for cell, old in removed.items():
        changed = [a for a in ATTRIBUTES if cell in added and getattr(old, a) != getattr(added[cell], a)]
        if len(changed) == 1:
            edits.append(((cell, 0), Edit(changed[0], old.name, getattr(added.pop(cell), changed[0]))))
        else:
            edits.append(((cell, 2), Edit("remove", old.name, "")))
    edits += [((cell, 3), Edit("add", new.name, new.place)) for cell, new in added.items()]
    if query.background != target.background:
        edits.append(((9, 0), Edit("background", "", target.background)))
    return [edit for _, edit in sorted(edits, key=lambda item: item[0])]


def shared(query: Scene, target: Scene) -> list[str]:
    """What both scenes contain, in words: names of objects in the same position, then the background if equal."""
    names = [t.name for t in query.objects if t in target.objects]
    return names + ([f"{query.background} background"] if query.background == target.background else [])


def random_scene(rng: random.Random) -> Scene:
    """A random scene, without regard to families or splits."""
    while True:
        cells = rng.sample(range(9), rng.randint(1, MAX_OBJECTS))
        objects = [_random_object(rng, cell) for cell in cells]
        if len({t.name for t in objects}) == len(objects):
            return Scene(rng.choice(tuple(BACKGROUNDS)), tuple(objects))


def _random_object(rng: random.Random, cell: int) -> SceneObject:
    return SceneObject(
        cell, rng.choice(SHAPES), rng.choice(tuple(COLOURS)), rng.choice(tuple(SIZES)), rng.choice(PATTERNS)
    )


_SLOT_WEIGHTS = {
    "colour": 1.0,
    "shape": 1.0,
    "size": 1.6,
    "pattern": 1.6,
    "move": 1.0,
    "presence": 3.5,
    "background": 0.7,
}


def family(rng: random.Random, split: str, members: int, *, close: float = 0.0) -> list[Scene]:
    """`members` scenes of one split, any two of them one to three edits apart (about 50/35/15% of the pairs).

    Two or three slots on distinct objects vary (an object's attribute, position or presence, or the background);
    members are combinations of their values. A name that one object may take is never taken by another, so that the
    number of edits between two members is the number of slots in which they differ.

    Args:
        rng: source of all random choices.
        split: one of SPLITS.
        members: how many scenes, 2 to 8.
        close: least share of its pairs that are one edit apart. A rare split contains few of a family's combinations,
            and those further apart; see `world.CLOSE`. 'train' has about 50/42/8% without it.
    """
    while True:
        slots = _pick_slots(rng)
        count = max(1 + sum(s in ATTRIBUTES or s == "move" for s in slots), rng.randint(1, MAX_OBJECTS))
        count = min(MAX_OBJECTS, max(count, 2 if "presence" in slots else 1))
        varied = [s for s in slots if s != "background"]
        if len(varied) > count:
            continue
        cells = rng.sample(range(9), 9)
        objects, spare = [_random_object(rng, cell) for cell in cells[:count]], cells[count:]
        axes: list[list[object]] = []
        for index, slot in enumerate(varied):
            if slot == "presence":
                axes.append([True, False])
            elif slot == "move":
                axes.append([objects[index].cell, *rng.sample(spare, 3)])
            else:
                axes.append(list(ATTRIBUTES[slot]))
        axes.append(list(BACKGROUNDS) if "background" in slots else [rng.choice(tuple(BACKGROUNDS))])
        possible_names = [
            {replace(t, **{varied[i]: v}).name for v in ATTRIBUTES[varied[i]]}  # type: ignore[arg-type]
            if i < len(varied) and varied[i] in ATTRIBUTES
            else {t.name}
            for i, t in enumerate(objects)
        ]
        if sum(map(len, possible_names)) != len(set().union(*possible_names)):
            continue
        combos = list(itertools.product(*axes))
        if len(combos) > 150:
            combos = rng.sample(combos, 150)
        usable = [(c, s) for c in combos if (s := _combine(objects, varied, c)).objects and assign_split(s) == split]
        if len(usable) < members:
            continue
        chosen = _spread(rng, usable, members)
        apart = [len(difference(a, b)) for a, b in itertools.combinations(chosen, 2)]
        if apart.count(1) >= close * len(apart):
            return chosen


def _pick_slots(rng: random.Random) -> list[str]:
    weights, slots = dict(_SLOT_WEIGHTS), []
    for _ in range(rng.choice((2, 3, 3))):
        slot = rng.choices(list(weights), list(weights.values()))[0]
        slots.append(slot)
        if slot in ("background", "presence") or rng.random() < 0.7:
            weights.pop(slot)
    return slots


def _combine(objects: Sequence[SceneObject], varied: Sequence[str], combo: Sequence[object]) -> Scene:
    out = list(objects)
    absent = None
    for index, (slot, value) in enumerate(zip(varied, combo, strict=False)):
        if slot == "presence":
            absent = None if value else index
        else:
            out[index] = replace(out[index], **{"cell" if slot == "move" else slot: value})  # type: ignore[arg-type]
    return Scene(str(combo[-1]), tuple(t for i, t in enumerate(out) if i != absent))


def _spread(rng: random.Random, usable: list[tuple], members: int) -> list[Scene]:
    """Members chosen one by one near the earlier ones, so that close pairs are more frequent than distant ones."""
    chosen = [usable.pop(rng.randrange(len(usable)))]
    while len(chosen) < members:
        weights = []
        for combo, _ in usable:
            steps = [sum(a != b for a, b in zip(combo, other, strict=True)) for other, _ in chosen]
            weights.append(math.prod((1.0, 0.4, 0.25)[s - 1] for s in steps))
        chosen.append(usable.pop(rng.choices(range(len(usable)), weights)[0]))
    return [scene for _, scene in chosen]


# ---------------------------------------------------------------- drawing


def _outline(x: float, y: float, r: float, shape: str) -> list[tuple[float, float]]:
    if shape == "triangle":
        return [(x, y - r), (x + r, y + r * 0.9), (x - r, y + r * 0.9)]
    if shape == "diamond":
        return [(x, y - r), (x + r * 0.75, y), (x, y + r), (x - r * 0.75, y)]
    if shape == "square":
        h = r * 0.88
        return [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]
    if shape == "star":
        radii = [r if i % 2 == 0 else r * 0.42 for i in range(10)]
        return [(x + q * math.sin(i * math.pi / 5), y - q * math.cos(i * math.pi / 5)) for i, q in enumerate(radii)]
    w = r * 0.34  # the cross
    arms = [(-w, -r), (w, -r), (w, -w), (r, -w), (r, w), (w, w), (w, r), (-w, r), (-w, w), (-r, w), (-r, -w), (-w, -w)]
    return [(x + dx, y + dy) for dx, dy in arms]


@lru_cache(maxsize=512)
def _mask(shape: str, size: str, pattern: str, side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and shade of one object, both (n, n, 1) float32 in [0, 1]; drawn eight times larger, then averaged."""
    r = SIZES[size] * side_px / 2
    n, q = int(2 * r) + 3, 8
    image = Image.new("L", (n * q, n * q), 0)
    pen = ImageDraw.Draw(image)
    c = n * q / 2
    if shape == "circle":
        pen.ellipse((c - r * q, c - r * q, c + r * q, c + r * q), fill=255)
    else:
        pen.polygon(_outline(c, c, r * q, shape), fill=255)
    cover = np.asarray(image.resize((n, n), Image.Resampling.BOX), dtype=np.float32)[..., None] / 255
    shade = np.ones((n, n, 1), np.float32)
    if pattern == "striped":
        band = side_px / 32  # 3 px dark, 3 px bright at 96 px
        x = (np.arange(n * q) + 0.5) / q - n / 2
        dark = (np.floor(x / band + 0.5).astype(int) % 2 == 0).astype(np.float32).reshape(n, q).mean(1)
        shade = shade - 0.68 * dark[None, :, None]
    return cover, shade


def draw(scene: Scene, *, side_px: int = SIDE_PX, rendering: int = 0, jitter_px: int = 2) -> np.ndarray:
    """The scene's image, (side_px, side_px, 3) uint8 RGB; objects lie up to `jitter_px` off their cell's centre.

    The jitter is drawn from the scene's key and `rendering`, so that these two give the same image on any machine.
    """
    noise = np.frombuffer(
        hashlib.blake2b(f"{scene.key}#{rendering}".encode(), digest_size=2 * MAX_OBJECTS).digest(), np.uint8
    )
    image = np.empty((side_px, side_px, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    scale = side_px / SIDE_PX
    for index, item in enumerate(scene.objects):
        cover, shade = _mask(item.shape, item.size, item.pattern, side_px)
        n = cover.shape[0]
        dx, dy = (round((int(v) % (2 * jitter_px + 1) - jitter_px) * scale) for v in noise[2 * index : 2 * index + 2])
        x = min(max(0, int((item.cell % 3 + 0.5) * side_px / 3 - n / 2) + dx), side_px - n)
        y = min(max(0, int((item.cell // 3 + 0.5) * side_px / 3 - n / 2) + dy), side_px - n)
        part = image[y : y + n, x : x + n]
        part += cover * (shade * np.asarray(COLOURS[item.colour], np.float32) - part)
    return (image + 0.5).astype(np.uint8)


def draw_image(scene: Scene, *, side_px: int = SIDE_PX, rendering: int = 0) -> Image.Image:
    """`draw` as a Pillow image."""
    return Image.fromarray(draw(scene, side_px=side_px, rendering=rendering))
