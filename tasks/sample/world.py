"""The sample corpus: a folder of generated images with captions, as a web crawl might have left it.

    python -m tasks.sample.world <folder> --seed 7 --images 2200             # the first batch
    python -m tasks.sample.world <folder> --seed 7 --images 260 --batch 1    # a week later, into the same folder

Families of scenes from the split 'corpus', and what real crawls contain besides: exact copies, re-encoded and resized
copies, corrupt and truncated files, images too small to use, images without captions, a few wrong captions. The scene
of each image is written to a file outside the folder (`--truth`, default `<folder>.truth.jsonl`), which only evaluation
reads.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from tasks.sample.phrases import web_caption
from tasks.sample.scenes import Scene, draw_image, family

COLUMNS = ("path", "caption", "licence", "source")
SHARES = {"exact_copy": 0.02, "near_copy": 0.05, "corrupt": 0.01, "truncated": 0.005, "too_small": 0.005}
WITHOUT_CAPTION, WRONG_CAPTION = 0.04, 0.01
# least share of one-edit pairs in a family, one of the two at random: about 47/43/10% of pairs have 1/2/3 edits
CLOSE = (0.0, 0.5)
LATE_SHARE = 0.15  # of a later batch: new members of families of the first batch
LICENCES = ("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0")


@dataclass
class _File:
    """One file to write: its name, its bytes, its caption and the truth about it."""

    name: str
    content: bytes
    caption: str
    kind: str
    scene: Scene | None = None
    copy_of: str | None = None
    is_caption_wrong: bool = False
    extra: dict[str, str] = field(default_factory=dict)

    def truth(self) -> dict[str, object]:
        return {
            "path": self.name,
            "kind": self.kind,
            "copy_of": self.copy_of,
            "scene": self.scene.to_record() if self.scene else None,
            "is_caption_wrong": self.is_caption_wrong,
        }


def make_world(
    folder: Path, *, seed: int, images: int, offset: int = 0, truth: Path | None = None, split: str = "corpus"
) -> dict[str, int]:
    """Write a batch of images into `folder` and its rows into `folder/captions.csv`.

    Args:
        folder: created where missing; a later batch is added to what is there.
        seed: of the whole world; the same arguments write the same bytes.
        images: files to write, a count, damaged ones included.
        offset: 0 for the first batch; for a later one the number of files before it, so that it brings new families and
            a few new members of the first batch's.
        truth: JSON-lines file with the scene of each image; `<folder>.truth.jsonl` where None. Never inside `folder`.
        split: of the scenes; what is calibrated on a world takes one of 'train'.
    Returns:
        How many files of each kind were written.
    """
    rng = random.Random(f"world:{seed}:{offset}")
    counts = {kind: round(images * share) for kind, share in SHARES.items()}
    if images >= 60:
        counts = {kind: max(1, count) for kind, count in counts.items()}
    files = _originals(rng, seed, images - sum(counts.values()), offset, split)
    originals = list(files)
    for kind, count in counts.items():
        for original in rng.choices(originals, k=count):
            files.append(_make_copy(rng, original, kind))
    _spoil_captions(rng, files)
    rng.shuffle(files)
    return _write(folder, files, rng, truth)


def poison_copies(folder: Path, *, seed: int, images: int, truth: Path | None = None) -> dict[str, int]:
    """Add `images` exact and near copies of the folder's images: a batch that the images gate must stop."""
    rng = random.Random(f"copies:{seed}")
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".jpg", ".png") and _is_readable(path))
    files = []
    for name in rng.choices(names, k=images):
        original = _File(name, (folder / name).read_bytes(), "one more copy", "original")
        files.append(_make_copy(rng, original, rng.choice(("exact_copy", "near_copy"))))
    return _write(folder, files, rng, truth)


def poison_captions(folder: Path, *, seed: int, images: int, offset: int, truth: Path | None = None) -> dict[str, int]:
    """Add a batch of new images whose captions are shuffled among them: a batch that the pairs gate must stop."""
    rng = random.Random(f"captions:{seed}:{offset}")
    files = _originals(rng, seed, images, offset, "corpus")
    captions = [file.caption for file in files]
    for file, caption in zip(files, captions[len(files) // 2 :] + captions[: len(files) // 2], strict=True):
        file.caption, file.is_caption_wrong = caption, True
    return _write(folder, files, rng, truth)


def _families(seed: int, offset: int, split: str) -> Iterator[tuple[list[Scene], Scene]]:
    """Endless families of a batch, each with one more member that only a later batch contains."""
    number = 0
    while True:
        rng = random.Random(f"family:{seed}:{offset}:{number}")
        members = family(rng, split, rng.randint(5, 8), close=rng.choice(CLOSE))
        yield members[:-1], members[-1]
        number += 1


def _originals(rng: random.Random, seed: int, count: int, offset: int, split: str) -> list[_File]:
    scenes: list[Scene] = []
    if offset:
        late = zip(range(min(round(count * LATE_SHARE), offset // 12)), _families(seed, 0, split), strict=False)
        scenes += [last for _, (_, last) in late]
    for members, _ in _families(seed, offset, split):
        if len(scenes) >= count:
            break
        scenes += members
    unique = list({scene.key: scene for scene in scenes}.values())[:count]
    files = []
    for number, scene in enumerate(unique):
        side_px = rng.choices((96, 112, 128), (70, 15, 15))[0]
        image = draw_image(scene, side_px=side_px, rendering=rng.getrandbits(24))
        suffix, content = _encoded(image, rng)
        files.append(_File(_name(seed, offset, number) + suffix, content, web_caption(scene, rng), "original", scene))
    return files


def _name(*parts: object) -> str:
    return hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=6).hexdigest()


def _encoded(image: Image.Image, rng: random.Random, quality: int = 90) -> tuple[str, bytes]:
    out = io.BytesIO()
    if rng.random() < 0.7:
        image.save(out, "JPEG", quality=quality)
        return ".jpg", out.getvalue()
    image.save(out, "PNG")
    return ".png", out.getvalue()


def _make_copy(rng: random.Random, original: _File, kind: str) -> _File:
    """A copy of a file: exact, re-encoded, too small, truncated or corrupt, by its kind."""
    suffix, content = Path(original.name).suffix, original.content
    caption = web_caption(original.scene, rng) if original.scene else original.caption
    if kind in ("near_copy", "too_small"):
        image = Image.open(io.BytesIO(content)).convert("RGB")
        side_px = (
            rng.choice((12, 16, 24))
            if kind == "too_small"
            else rng.choice((image.width, image.width, 80, 104, 144, 160))
        )
        if side_px != image.width:
            image = image.resize((side_px, side_px), rng.choice((Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=rng.randint(65, 88))
        suffix, content = ".jpg", out.getvalue()
    elif kind == "truncated":
        content = content[: int(len(content) * rng.uniform(0.3, 0.7))]
    elif kind == "corrupt":
        content = rng.choice((rng.randbytes(900), b"<html><body>404 Not Found</body></html>", b""))
    scene = original.scene if kind in ("exact_copy", "near_copy", "too_small") else None
    return _File(_name(original.name, kind, rng.getrandbits(40)) + suffix, content, caption, kind, scene, original.name)


def _spoil_captions(rng: random.Random, files: list[_File]) -> None:
    originals = [file for file in files if file.kind == "original"]
    chosen = rng.sample(originals, round(len(originals) * (WITHOUT_CAPTION + WRONG_CAPTION)))
    wrong = chosen[: round(len(originals) * WRONG_CAPTION)]
    for file in chosen[len(wrong) :]:
        file.caption = ""
    for file in wrong:
        background = file.scene.background if file.scene else ""
        others = [f for f in originals if f.scene and f.caption and f.scene.background != background]
        other = rng.choice(others)
        file.caption, file.is_caption_wrong = other.caption, True


def _write(folder: Path, files: list[_File], rng: random.Random, truth: Path | None) -> dict[str, int]:
    folder.mkdir(parents=True, exist_ok=True)
    truth = truth or folder.with_name(f"{folder.name}.truth.jsonl")
    if folder.resolve() in truth.resolve().parents:
        raise ValueError(
            f"truth file {truth} lies inside {folder}, where the pipeline would see it; give a path outside"
        )
    truth.parent.mkdir(parents=True, exist_ok=True)
    table = folder / "captions.csv"
    is_new = not table.exists()
    with table.open("a", newline="", encoding="utf-8") as rows, truth.open("a", encoding="utf-8") as truths:
        writer = csv.writer(rows, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        for file in files:
            (folder / file.name).write_bytes(file.content)
            truths.write(json.dumps(file.truth()) + "\n")
            if file.caption or rng.random() < 0.5:  # half of those without a caption have a row all the same
                writer.writerow(
                    (file.name, file.caption, rng.choice(LICENCES), f"https://example.org/{file.name[:2]}/{file.name}")
                )
    return dict(Counter(file.kind for file in files))


def _is_readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
            return min(image.size) >= 64
    except (OSError, SyntaxError):
        return False


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write a batch."""
    parser = argparse.ArgumentParser(prog="python -m tasks.sample.world", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--images", type=int, default=2200)
    parser.add_argument("--batch", type=int, choices=(0, 1), default=0)
    parser.add_argument("--truth", type=Path)
    options = parser.parse_args(arguments)
    before = len([p for p in options.folder.iterdir() if p.suffix in (".jpg", ".png")]) if options.batch else 0
    print(
        json.dumps(
            make_world(options.folder, seed=options.seed, images=options.images, offset=before, truth=options.truth)
        )
    )


if __name__ == "__main__":
    main()
