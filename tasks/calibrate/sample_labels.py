"""The sample world's labelled questions: what its judge's calibration and thresholds are learnt from.

    python -m tasks.calibrate.sample_labels             writes tasks/sample/labelled/written.parquet again
    python -m tasks.calibrate.sample_labels negatives   writes tasks/sample/labelled/negatives.parquet (not shipped)

Both files show scenes of the split 'benchmark', which no checkpoint was trained on and no demo shows. The captioner and
the writer of params.yaml write the texts, mistakes included, as stage caption does; the truth answers. To be run again,
and `python -m tasks judge_calibrate` after it, whenever the describer, the writer or the judge changes; the second file
also when what selects the negatives does.

`written.parquet` asks about pairs' targets: in FAMILY_SHARE of the cases two members of a family, else related scenes
with any mix of changes (tasks/sample/related.py). Every text is a question.

`negatives.parquet` asks about mined negatives: a world of that split goes through the stages from ingest to caption, so
pairs and negatives are those that a run would judge. Every text that fits the target is asked about each negative, as
the judge does with the texts that it accepts.
"""

from __future__ import annotations

import io
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.calibrate.folder import embed_folder, params_for_folder
from tasks.caption import stage as caption
from tasks.caption.chunk import CaptionSetup, caption_chunk
from tasks.caption.models import load_caption_setup
from tasks.config import Params, load_params, read_raw
from tasks.mine import stage as mine
from tasks.names import batch_name
from tasks.prompts.prompt_set import read_prompt_set
from tasks.sample.common import held_out_pairs
from tasks.sample.quality import read_scenes
from tasks.sample.related import SAID_EDITS, related_pair
from tasks.sample.scenes import Scene, draw_image
from tasks.sample.truth import is_true
from tasks.sample.world import make_world
from tasks.select import stage as select
from tasks.store import Store

FOLDER = Path("tasks/sample/labelled")
OUT, NEGATIVES = FOLDER / "written.parquet", FOLDER / "negatives.parquet"
SPLIT = "benchmark"
PAIRS, FAMILY_SHARE = 260, 0.6
RELATED_EDITS = {1: 0.2, 2: 0.3, 3: 0.3, SAID_EDITS + 1: 0.2}  # edits of a related pair -> how often
WORLD_IMAGES = 2200  # files of the world that negatives are mined in, as many as the demo's first week
MINED_PAIRS = 1000  # pairs whose negatives are asked about


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
    """The questions about targets: every text about its pair's target."""
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


def captioned_world(params: Params, folder: Path, *, images: int, seed: int) -> tuple[Store, dict[str, Scene]]:
    """Run a drawn world through ingest, recaption, embed, mine, select and caption.

    Args:
        params: with `folder`/world as their one source (`params_for_folder`).
        folder: gets the world, its truth and the stages' tables.
        images: files of the world, a count.
        seed: of the world.
    Returns:
        The store, and image id -> scene.
    """
    truth, store = folder / "truth.jsonl", Store(folder / "run")
    make_world(folder / "world", seed=seed, images=images, truth=truth, split=SPLIT)
    embed_folder(params, store, images)
    for encoder in params.embed.encoders:
        mine.run(params, store, encoder)
    select.run(params, store)
    caption.run(params, store)
    scenes, rows = read_scenes(truth), store.read_table("images", ["image_id", "source_uri"]).to_pylist()
    paths = {row["image_id"]: row["source_uri"].partition(":")[2] for row in rows}
    return store, {image_id: scenes[path] for image_id, path in paths.items() if path in scenes}


def negative_rows(
    pairs: Iterable[Mapping[str, Any]], scenes: Mapping[str, Scene], count: int
) -> Iterator[dict[str, Any]]:
    """The questions about mined negatives, of the first `count` pairs with a text that fits the target.

    Args:
        pairs: pair_id, query_image_id, target_image_id, negative_image_ids (the query first), instructions.
        scenes: image id -> scene; what has none is left out.
        count: most pairs.
    """
    asked = 0
    for pair in sorted(pairs, key=lambda row: str(row["pair_id"])):
        ends = [pair["query_image_id"], pair["target_image_id"]]
        if asked == count or not all(end in scenes for end in ends):
            continue
        query, target = (scenes[end] for end in ends)
        texts = [text for text in pair["instructions"] if is_true(text, query, target)]
        if not texts:
            continue
        asked += 1
        for image_id in pair["negative_image_ids"][1:]:
            if image_id not in scenes:
                continue
            shown = {"query": png(query, 1), "candidate": png(scenes[image_id], 1), "role": "negative"}
            for text in texts:
                fits = is_true(text, query, scenes[image_id])
                yield {**shown, "instruction": text, "fits": "yes" if fits else "no"}


def write_rows(rows: Sequence[Mapping[str, Any]], out: Path) -> int:
    """Write a labelled file; the number of questions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = [(name, pa.string()) for name in ("instruction", "fits", "role") if name in rows[0]]
    table = pa.Table.from_pylist(list(rows), pa.schema([("query", image), ("candidate", image), *texts]))
    pq.write_table(table, out, compression="zstd", dictionary_pagesize_limit=8 << 20)
    return len(rows)


def write_labelled(params: Params, out: Path, count: int = PAIRS, seed: int = 17) -> int:
    """Write the questions about targets; how many they are."""
    setup, _ = load_caption_setup(params, out.parent, read_prompt_set(params.caption.prompts))
    return write_rows(list(labelled_rows(draw_pairs(count, seed), setup)), out)


def write_negatives(params: Params, out: Path, *, count: int = MINED_PAIRS, images: int = WORLD_IMAGES) -> int:
    """Write the questions about mined negatives, of a world in a temporary folder; how many they are.

    Args:
        params: of a run over `world`; see `captioned_world`.
        out: the file.
        count: pairs asked about.
        images: files of the world.
    """
    with tempfile.TemporaryDirectory(prefix="negatives-") as name:
        folder = Path(name)
        (folder / "world").mkdir()
        params = params_for_folder(read_raw(Path("params.yaml")), params.profile, folder / "world", "sample")
        store, scenes = captioned_world(params, folder, images=images, seed=17)
        texts = store.read_table("captioned", ["pair_id", "instructions"]).to_pylist()
        instructions = {row["pair_id"]: row["instructions"] for row in texts}
        pairs = store.read_table("pairs", batch=batch_name(params)).to_pylist()
        written = [{**p, "instructions": instructions[p["pair_id"]]} for p in pairs if p["pair_id"] in instructions]
        return write_rows(list(negative_rows(written, scenes, count)), out)


def main(names: Sequence[str]) -> None:
    """Write the questions about negatives where they are named, else those about targets."""
    params = load_params()
    write, out = (write_negatives, NEGATIVES) if "negatives" in names else (write_labelled, OUT)
    print(f"{out}: {write(params, out)} questions")


if __name__ == "__main__":
    main(sys.argv[1:])
