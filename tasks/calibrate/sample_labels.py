"""The sample world's labelled questions about texts that the product itself wrote: what its judge is calibrated on.

    python -m tasks.calibrate.sample_labels        writes tasks/sample/labelled/written.parquet again

Pairs of scenes of the split 'benchmark', which no checkpoint was trained on and no demo shows: in FAMILY_SHARE of the
cases two members of a family, else related scenes with any mix of changes (tasks/sample/related.py). The captioner and
the writer of params.yaml write their texts, mistakes included, as stage caption does; the truth answers whether each
fits the pair's target. To be run again, and `python -m tasks judge_calibrate` after it, whenever
the describer, the writer or the judge changes.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.caption.chunk import CaptionSetup, caption_chunk
from tasks.caption.models import load_caption_setup
from tasks.config import Params, load_params
from tasks.prompts.prompt_set import read_prompt_set
from tasks.sample.common import held_out_pairs
from tasks.sample.related import SAID_EDITS, related_pair
from tasks.sample.scenes import Scene, draw_image
from tasks.sample.truth import is_true

OUT = Path("tasks/sample/labelled/written.parquet")
SPLIT = "benchmark"
PAIRS, FAMILY_SHARE = 260, 0.6
RELATED_EDITS = {1: 0.2, 2: 0.3, 3: 0.3, SAID_EDITS + 1: 0.2}  # edits of a related pair -> how often


def draw_pairs(count: int, seed: int) -> list[tuple[Scene, Scene]]:
    """Ordered pairs of scenes, in an order drawn by the seed."""
    rng = random.Random(seed)
    families = round(FAMILY_SHARE * count)
    pairs = held_out_pairs(families, seed, SPLIT)
    for _ in range(count - families):
        edits = rng.choices(list(RELATED_EDITS), list(RELATED_EDITS.values()))[0]
        pairs.append(related_pair(rng, SPLIT, edits))
    return rng.sample(pairs, len(pairs))


def png(scene: Scene, rendering: int) -> dict[str, Any]:
    """An image as `datasets` stores it inside a row."""
    file = io.BytesIO()
    draw_image(scene, rendering=rendering).save(file, "PNG", optimize=True)
    return {"bytes": file.getvalue(), "path": None}


def labelled_rows(pairs: Sequence[tuple[Scene, Scene]], setup: CaptionSetup) -> Iterator[dict[str, Any]]:
    """The questions: every text about its pair's target."""
    ends = [(f"{n}q", f"{n}t") for n in range(len(pairs))]
    columns = {
        "pair_id": [str(n) for n in range(len(pairs))],
        "query_image_id": [query for query, _ in ends],
        "target_image_id": [target for _, target in ends],
    }
    scenes = {f"{n}{end}": scene for n, pair in enumerate(pairs) for end, scene in zip("qt", pair, strict=True)}
    images = {name: draw_image(scene, rendering=1) for name, scene in scenes.items()}
    drafts = caption_chunk(columns, images, {}, setup)
    for draft, (query, target) in zip(drafts, pairs, strict=True):
        shown = {"query": png(query, 1), "candidate": png(target, 1)}
        for text in draft.instructions.values():
            yield {**shown, "instruction": text, "fits": "yes" if is_true(text, query, target) else "no"}


def write_labelled(params: Params, out: Path, count: int = PAIRS, seed: int = 17) -> int:
    """Write the file; the number of questions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    setup, _ = load_caption_setup(params, out.parent, read_prompt_set(params.caption.prompts))
    rows = list(labelled_rows(draw_pairs(count, seed), setup))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = [(name, pa.string()) for name in ("instruction", "fits")]
    table = pa.Table.from_pylist(rows, pa.schema([("query", image), ("candidate", image), *texts]))
    pq.write_table(table, out, compression="zstd", dictionary_pagesize_limit=8 << 20)
    return len(rows)


if __name__ == "__main__":
    print(f"{OUT}: {write_labelled(load_params(), OUT)} questions")
