"""A store of six plain images named by their colour, with five pairs, and parameters that caption and judge them."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import tasks.caption.models
import tasks.caption.stage
import tasks.judge.stage
from tasks.config import Params, load_params
from tasks.models.llm.requests import Refusal, Request
from tasks.store import Store
from tasks.store.shards import shard_path
from tests.support.fake_llm import FakeLlm

BATCH = "2026.01.05"
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "yellow": (255, 255, 0),
}
PAIRS = (("red", "blue"), ("red", "green"), ("blue", "red"), ("green", "white"), ("white", "black"))
DESCRIPTION = "the wall got another colour"


def colour_params() -> Params:
    """Profile test, in chunks of two pairs, three styles, without canaries, labelled questions and calibration."""
    params = load_params("params.yaml", "test")
    caption = {
        "chunk_pairs": 2,
        "styles": ("imperative", "question", "short"),
        "instructions_min": 2,
        "canaries": None,
    }
    judge = {
        "labelled": None,
        "calibration": None,  # the probabilities are those that the tests give
        "chunk_pairs": 2,
        "threshold": 0.5,
        "negative_threshold": 0.5,
        "instructions_min": 1,
    }
    return with_caption(with_judge(with_batch(params, BATCH), **judge), **caption)


def with_batch(params: Params, batch: str) -> Params:
    return params.model_copy(update={"open_run": params.open_run.model_copy(update={"batch": batch})})


def with_caption(params: Params, **changes: object) -> Params:
    return params.model_copy(update={"caption": params.caption.model_copy(update=changes)})


def with_judge(params: Params, **changes: object) -> Params:
    return params.model_copy(update={"judge": params.judge.model_copy(update=changes)})


def write_colour_store(root: Path) -> Store:
    """The images, and the pairs p0 to p4 with two mined negatives each."""
    store = Store(root)
    shard, images = b"", []
    for colour, rgb in COLOURS.items():
        file = io.BytesIO()
        Image.new("RGB", (8, 8), rgb).save(file, "PNG")
        content = file.getvalue()
        images.append(
            {
                "image_id": colour,
                "batch": BATCH,
                "width_px": 8,
                "height_px": 8,
                "caption": f"a plain {colour} wall",
                "caption_source": "source",
                "source_uri": f"s:{colour}.png",
                "source_sha256": "",
                "license_code": "",
                "attribution": "",
                "fetched_at": "",
                "phash": "",
                "thumbnail": b"",
                "shard": f"{BATCH}-00000.tar",
                "offset_bytes": len(shard),
                "size_bytes": len(content),
            }
        )
        shard += content
    store.write_bytes(shard_path(store.root, f"{BATCH}-00000.tar"), shard)
    store.write(store.table_path("images", BATCH), images, "images")
    pairs = []
    for n, (query, target) in enumerate(PAIRS):
        pairs.append(
            {
                "pair_id": f"p{n}",
                "batch": BATCH,
                "query_image_id": query,
                "target_image_id": target,
                "mined_by": ["semantic"],
                "negative_image_ids": [query, *[c for c in COLOURS if c not in (query, target)][:2]],
                "similarity_semantic": 0.9,
                "similarity_pattern": None,
                "similarity_caption": 0.8,
                "rank": 0,
                "negative_similarity": [0.9, 0.8, 0.7],
            }
        )
    store.write(store.table_path("pairs", BATCH), pairs, "pairs")
    return store


def use_models(
    monkeypatch: pytest.MonkeyPatch,
    captioner: FakeLlm | None = None,
    writer: FakeLlm | None = None,
    judge: FakeLlm | None = None,
) -> None:
    """Let the stages load these models; by default a captioner and a writer whose replies are accepted."""
    captioner = captioner or FakeLlm(lambda _: DESCRIPTION)
    writer = writer or FakeLlm(paint)
    monkeypatch.setattr(tasks.caption.models, "load_captioner", lambda _: captioner)
    monkeypatch.setattr(tasks.caption.models, "load_writer", lambda _: writer)
    monkeypatch.setattr(tasks.judge.stage, "load_judge", lambda *_: judge or FakeLlm())


def paint(request: Request) -> str:
    """An instruction that differs by style."""
    return f"paint it, {request.text.splitlines()[0].removeprefix('style: ')}"


def by_colours(rule: Callable[[str, str, str], float | Refusal]) -> FakeLlm:
    """A judge that gives P(yes) by the colours of query and candidate, and the text."""
    names = {rgb: colour for colour, rgb in COLOURS.items()}

    def yes(request: Request) -> float | Refusal:
        query, candidate = (names[image.getpixel((0, 0))] for image in request.images)  # type: ignore[index]
        return rule(query, candidate, request.text)

    return FakeLlm(yes=yes)


def table_bytes(store: Store) -> dict[str, bytes]:
    """Every table's file, by its path."""
    return {str(p.relative_to(store.root)): p.read_bytes() for p in sorted(store.folder("data").rglob("*.parquet"))}
