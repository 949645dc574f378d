"""Canaries and labelled questions for real models, so simple that a model which receives its images cannot miss them.

    python -m tasks.sample.plain_probes        writes both again below tasks/sample/plain

plain/canaries/: 12 pairs, such as a red disc that turns blue, or a house with and without a tree; canaries.csv accepts
synonyms. plain/labels.csv: 48 questions over those images, half of them fit; the others show the query itself or
another change.

They separate a model that sees its images from one that does not; they measure nothing about photographs, which needs a
team's own set (docs/decisions/0044). The sample world's own probes (probes.py) use words that its checkpoints were
trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.sample.probes import write_csv

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

HERE = Path(__file__).parent / "plain"
SIDE_PX, SCALE = 336, 3  # drawn at SCALE times the size, then averaged
RED, BLUE, GREEN, YELLOW, BLACK, WHITE, BROWN, SKY = (
    "#d62020",
    "#1f3fd6",
    "#1e9e3a",
    "#f2c811",
    "#111111",
    "#ffffff",
    "#7a4a21",
    "#9fd3f2",
)

# draws one shape at a scale of pixels per unit; the image is 100 units wide
Draw = Callable[["ImageDraw.ImageDraw", float], None]


def disc(colour: str, x: float = 50, y: float = 50, r: float = 24) -> Draw:
    """A filled circle."""
    return lambda pen, s: pen.ellipse([(x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s], fill=colour)


def area(colour: str, *points: tuple[float, float]) -> Draw:
    """A filled polygon."""
    return lambda pen, s: pen.polygon([(x * s, y * s) for x, y in points], fill=colour)


def box(colour: str, left: float = 28, top: float = 28, right: float = 72, bottom: float = 72) -> Draw:
    """A filled rectangle."""
    return area(colour, (left, top), (right, top), (right, bottom), (left, bottom))


def star(colour: str, x: float = 50, y: float = 50, r: float = 28) -> Draw:
    """A star of five points."""
    turns = [(r if n % 2 == 0 else 0.42 * r, math.pi * (n / 5 - 0.5)) for n in range(10)]
    return area(colour, *((x + far * math.cos(a), y + far * math.sin(a)) for far, a in turns))


def heart(colour: str, x: float, y: float, r: float) -> list[Draw]:
    """A heart."""
    return [
        disc(colour, x - r / 2, y, r / 2 + 0.6),
        disc(colour, x + r / 2, y, r / 2 + 0.6),
        area(colour, (x - r, y + 2), (x + r, y + 2), (x, y + 1.5 * r)),
    ]


def face(is_sad: bool) -> list[Draw]:
    """A yellow face that smiles or frowns."""
    at, ends = ((32, 58, 68, 88), (200, 340)) if is_sad else ((30, 36, 70, 74), (20, 160))
    mouth: Draw = lambda pen, s: pen.arc([v * s for v in at], *ends, fill=BLACK, width=round(4 * s))  # noqa: E731 - one of a list of drawings
    return [disc(YELLOW, r=36), disc(BLACK, 38, 42, 4), disc(BLACK, 62, 42, 4), mouth]


def word(text: str) -> Draw:
    """Big letters in the middle."""

    def write(pen: ImageDraw.ImageDraw, s: float) -> None:
        from PIL import ImageFont

        pen.text((50 * s, 50 * s), text, fill=BLACK, font=ImageFont.load_default(36 * s), anchor="mm")

    return write


HOUSE = [
    box(SKY, 0, 0, 100, 70),
    box(GREEN, 0, 70, 100, 100),
    box(BROWN, 18, 45, 48, 78),
    area(RED, (13, 46), (33, 26), (53, 46)),
    box(BLACK, 29, 60, 38, 78),
]
TREE = [box(BROWN, 74, 52, 79, 78), disc("#166b28", 76.5, 44, 15)]
ARROW_LEFT = [box(BLACK, 35, 43, 85, 57), area(BLACK, (15, 50), (40, 28), (40, 72))]
ARROW_UP = [box(BLACK, 43, 35, 57, 85), area(BLACK, (50, 15), (28, 40), (72, 40))]
STRIPED = [disc(RED, r=30), *(box(WHITE, 15, 22 + 12 * n, 85, 27 + 12 * n) for n in range(5))]

# name -> (query, target): the shapes drawn, on white unless a background is drawn first
SCENES: dict[str, tuple[list[Draw], list[Draw]]] = {
    "colour": ([disc(RED)], [disc(BLUE)]),
    "shape": ([box(GREEN)], [area(GREEN, (50, 20), (82, 78), (18, 78))]),
    "count": ([star(YELLOW, r=18)], [star(YELLOW, 20, 50, 17), star(YELLOW, 50, 50, 17), star(YELLOW, 80, 50, 17)]),
    "ground": ([star(RED)], [box(BLACK, 0, 0, 100, 100), star(RED)]),
    "size": ([disc(BLUE, r=9)], [disc(BLUE, r=42)]),
    "added": (HOUSE, [*HOUSE, *TREE]),
    "pattern": ([disc(RED, r=30)], STRIPED),
    "heart": ([box(BLUE, 10, 32, 46, 68)], [box(BLUE, 10, 32, 46, 68), *heart(RED, 74, 44, 16)]),
    "word": ([word("CAT")], [word("DOG")]),
    "face": (face(is_sad=False), face(is_sad=True)),
    "arrow": (ARROW_LEFT, ARROW_UP),
    "place": ([disc(GREEN, 20, 50, 13)], [disc(GREEN, 80, 50, 13)]),
}
EXPECTED = {
    "colour": "blue|navy|azure|cobalt",
    "shape": "triangle|triangular|pyramid|cone",
    "count": "three|3|multiple|several",
    "ground": "black|dark",
    "size": "large|larger|big|bigger|huge|enlarged|fills",
    "added": "tree|trees|bush|plant",
    "pattern": "stripe|stripes|striped|lines|bands|banded",
    "heart": "heart|heart shaped",
    "word": "dog",
    "face": "sad|frown|frowns|frowning|frowny|unhappy|upset|sadness",
    "arrow": "up|upward|upwards|north|vertical",
    "place": "right|right hand",
}
# scene -> two instructions that fit its target, and fit neither its query nor another scene's target
INSTRUCTIONS = {
    "colour": ("make it blue", "the same shape in blue instead of red"),
    "shape": ("turn the square into a triangle", "a triangle of the same colour"),
    "count": ("show three of them in a row", "what if there were three instead of one?"),
    "ground": ("put it on a black background", "the same star before black"),
    "size": ("make it much larger", "keep the colour, let it almost fill the picture"),
    "added": ("add a tree beside the house", "the same house with a tree to its right"),
    "pattern": ("give it white stripes", "the same one, but striped"),
    "heart": ("add a red heart at the right", "is there one with a heart beside it?"),
    "word": ("change the word to DOG", "the same, but it says DOG"),
    "face": ("make the face sad", "the same face, frowning"),
    "arrow": ("let the arrow point up", "turn it so that it points upwards"),
    "place": ("move it to the right", "the same dot on the right side"),
}


def draw_shapes(shapes: list[Draw]) -> Image.Image:
    """Shapes on white, (336, 336) RGB."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE_PX * SCALE,) * 2, WHITE)
    for shape in shapes:
        shape(ImageDraw.Draw(image), SIDE_PX * SCALE / 100)
    return image.resize((SIDE_PX,) * 2, Image.Resampling.BOX)


def main() -> None:
    """Write images, canaries.csv and labels.csv."""
    folder = HERE / "canaries"
    folder.mkdir(parents=True, exist_ok=True)
    canaries: list[tuple[str, ...]] = []
    questions: list[tuple[str, ...]] = []
    names = list(SCENES)
    for n, (name, pair) in enumerate(SCENES.items()):
        query, target = f"{name}-query.png", f"{name}-target.png"
        for file, shapes in zip((query, target), pair, strict=True):
            draw_shapes(shapes).quantize(64).save(folder / file, optimize=True)
        canaries.append((query, target, EXPECTED[name]))
        for text, wrong in zip(INSTRUCTIONS[name], (query, f"{names[(n + 5) % len(names)]}-target.png"), strict=True):
            questions += [
                (f"canaries/{query}", f"canaries/{candidate}", text, fits)
                for candidate, fits in ((target, "yes"), (wrong, "no"))
            ]
    write_csv(folder / "canaries.csv", ("query", "target", "expect"), canaries)
    write_csv(HERE / "labels.csv", ("query", "candidate", "instruction", "fits"), questions)


if __name__ == "__main__":
    main()
