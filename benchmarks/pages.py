"""How fast the pages answer: the triplets explorer over a million triplets, composed search over 100,000 images.

    python -m benchmarks.pages [--triplets 1000000] [--images 100000] [--requests 200] [--quick]

Explorer: drawn triplets (four instructions each, words as often as in a language) are indexed as a version's are
(tasks/browse); each request is a search by words, filters, a score band or a page far behind, up to the finished HTML.
Search: each request encodes an image and a text by the embedded checkpoint, for two models side by side, and ranks all
images exactly for composed, image-only and text-only query (tasks/knn/top_k.py, rows of 512 numbers as CLIP's). A
larger encoder takes longer; the ranking does not. The network and the browser are left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measure import parse_arguments, peak_mib
from tasks.browse.explorer import Explorer
from tasks.browse.selection import Selection
from tasks.browse.triplets import TripletIndex
from tasks.pages.render import html

VOCABULARY, TEXT_WORDS, TEXTS = 20_000, 7, 4
DIMS, TOP_K = 512, 20
CHECKPOINT = "tasks/sample/checkpoints/clip"
ENCODERS, STYLES = ("semantic", "pattern", "caption"), ("imperative", "question", "keep", "short")
LICENCES, SOURCES = ("CC0-1.0", "CC-BY-4.0", "unknown"), ("shop", "web", "sample")


def drawn_images(count: int, rng: np.random.Generator) -> pa.Table:
    """A table of images without their bytes."""
    ids = pa.array([f"{n:064x}" for n in range(count)])
    source, licence = rng.integers(0, 3, (2, count))
    return pa.table(
        {
            "image_id": ids,
            "source_uri": pa.array([f"{SOURCES[s]}:{n}.jpg" for n, s in enumerate(source.tolist())]),
            "license_code": pa.array(LICENCES).take(pa.array(licence)),
            "attribution": pa.array([""]).take(pa.array(np.zeros(count, np.int64))),
            "shard": pa.array(["2026.01.04-00000.tar"]).take(pa.array(np.zeros(count, np.int64))),
            "offset_bytes": pa.array(np.zeros(count, np.int64)),
            "size_bytes": pa.array(np.zeros(count, np.int32)),
        }
    )


def lists(values: pa.Array, each: int) -> pa.Array:
    """The values as lists of `each`."""
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, each, dtype=np.int32)), values)


def drawn_triplets(count: int, images: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Triplets whose words are as frequent as in a language (Zipf)."""
    words = pa.array([f"word{n:05d}" for n in range(VOCABULARY)])
    chances = 1 / np.arange(1, VOCABULARY + 1)
    picked = rng.choice(VOCABULARY, count * TEXTS * TEXT_WORDS, p=chances / chances.sum())
    import pyarrow.compute as pc

    texts = pc.binary_join(lists(words.take(pa.array(picked)), TEXT_WORDS), " ")
    ends = rng.integers(0, len(images), (2, count))
    ids = images["image_id"].combine_chunks()
    scores = pa.array(rng.uniform(0.8, 1, count * TEXTS).astype(np.float32))
    names = pa.array([f"{n:032x}" for n in range(count)])
    same = {name: pa.array(["x"]).take(pa.array(np.zeros(count, np.int64))) for name in ("captioner", "judge")}
    negatives = lists(ids.take(pa.array(rng.integers(0, len(images), count * 5))), 5)
    return pa.table(
        {
            "triplet_id": names,
            "pair_id": names,
            "batch": pa.array(["2026.01.04"]).take(pa.array(np.zeros(count, np.int64))),
            "query_image_id": ids.take(pa.array(ends[0])),
            "target_image_id": ids.take(pa.array(ends[1])),
            "instructions": lists(texts, TEXTS),
            "styles": lists(pa.array(STYLES * count), TEXTS),
            "judge_target": lists(scores, TEXTS),
            "judge_negative": lists(pa.array(np.zeros(count * 5, np.float32)), 5),
            "negative_image_ids": negatives,
            "mined_by": lists(pa.array(ENCODERS).take(pa.array(rng.integers(0, 3, count))), 1),
            **same,
        }
    )


def drawn_selections(count: int, rng: np.random.Generator) -> list[tuple[Selection, int]]:
    """Searches as people make them, and a page of each; words from the most frequent to the rarest."""
    found = []
    for n in range(count):
        word = f"word{int(VOCABULARY ** rng.uniform(0, 1)) - 1:05d}"
        other = f"word{int(VOCABULARY ** rng.uniform(0, 0.6)) - 1:05d}"
        texts = ("", word, f"{word} {other}", word[:7])
        encoder = ENCODERS[n % 3] if n % 2 else ""
        low = 0.9 if n % 5 == 0 else 0.0
        licence, style = (LICENCES[n % 3] if n % 7 == 0 else ""), (STYLES[n % 4] if n % 3 == 0 else "")
        selection = Selection(text=texts[n % 4], encoder=encoder, style=style, licence=licence, low=low)
        found.append((selection, 1 if n % 4 else 50))
    return found


def p95_ms(requests: Sequence[Callable[[], Any]]) -> float:
    """The 95th percentile of the requests' wall time, ms; the first three are not counted."""
    seconds = []
    for request in requests:
        start = time.perf_counter()
        request()
        seconds.append(time.perf_counter() - start)
    return round(float(np.quantile(seconds[3:] or seconds, 0.95)) * 1000, 1)


def measure_explorer(triplets: int, images: int, requests: int, seed: int = 0) -> dict[str, float]:
    """Build the index and answer requests; {"explorer_p95_ms", "index_s"}."""
    rng = np.random.default_rng(seed)
    table = drawn_images(images, rng)
    rows = drawn_triplets(triplets, table, rng)
    start = time.perf_counter()
    explorer = Explorer(TripletIndex.build(rows, table), table, {})
    index_s = round(time.perf_counter() - start, 1)
    choices = explorer.index.choices()

    def request(wanted: Selection, number: int) -> str:
        page = explorer.page(wanted, number)
        return html("triplets.html.j2", name="2026.01.04", wanted=vars(wanted), choices=choices, page=page)

    calls = [lambda w=w, n=n: request(w, n) for w, n in drawn_selections(requests, rng)]  # type: ignore[misc]
    return {"explorer_p95_ms": p95_ms(calls), "index_s": index_s}


def measure_search(images: int, requests: int, seed: int = 0) -> float:
    """The 95th percentile of composed searches for two models side by side, ms."""
    from PIL import Image

    from tasks.knn.top_k import nearest_rows
    from tasks.knn.unit_rows import unit_rows
    from tasks.models.retrievers.load import load_retriever

    rng = np.random.default_rng(seed)
    galleries = []
    for _ in range(2):
        rows = unit_rows(rng.standard_normal((images, DIMS), dtype=np.float32)).astype(np.float16)
        galleries.append((load_retriever(CHECKPOINT, device="cpu", threads=1), rows.astype(np.float32)))
    text = "the same in blue"
    picture = Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8))
    queries = unit_rows(rng.standard_normal((3, DIMS), dtype=np.float32)).astype(np.float16)

    def one(retriever: Any, rows: np.ndarray) -> None:
        encoder = retriever.content_encoder(lambda key: picture, 1)
        encoder.prepare(["picture"], [text])
        encoder.encode([("picture", text), ("picture", ""), (None, text)], "query")
        nearest_rows(queries, rows, TOP_K)

    with ThreadPoolExecutor(len(galleries)) as pool:
        return p95_ms([lambda: list(pool.map(lambda g: one(*g), galleries)) for _ in range(requests)])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print; the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=int, default=1_000_000, help="that the explorer searches")
    parser.add_argument("--images", type=int, default=100_000, help="that composed search ranks")
    parser.add_argument("--requests", type=int, default=200, help="of each kind")
    args = parse_arguments(parser, argv, {"triplets": 2000, "images": 500, "requests": 12})
    figures: dict[str, Any] = measure_explorer(args.triplets, args.images, args.requests)
    figures |= {"search_p95_ms": measure_search(args.images, args.requests)}
    figures |= {"triplets": args.triplets, "images": args.images, "requests": args.requests, "rss_mib": peak_mib()}
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main()
