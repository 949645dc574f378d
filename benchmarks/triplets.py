"""Shared by the training benchmarks: training examples and published versions drawn from the sample world."""

from __future__ import annotations

import random
from pathlib import Path

from tasks.store import Store
from tasks.store.shards import shard_path
from tasks.train.batches import Example, training_examples


def examples_of(dataset: Path, negatives: int, seed: int = 0) -> list[Example]:
    """A version's triplets outside the held-out images, those with at least so many mined negatives, as `train` orders
    them.
    """
    from tasks.train.splits import held_out_images

    triplets = Store(dataset).read_table("triplets").sort_by("triplet_id").to_pylist()
    held_out = held_out_images([(t["query_image_id"], t["target_image_id"]) for t in triplets], 0.1)
    return [e for e in training_examples(triplets, held_out) if len(e.negatives) >= negatives]


def drawn_version(folder: Path, families: int, seed: int = 0) -> Path:
    """A version of drawn families of five: each image leads to two others, with the rest as mined negatives. For where
    there is no demo.
    """
    import io

    from PIL import Image

    from tasks.sample.scenes import draw, family

    store, rng = Store(folder), random.Random(seed)
    shard, images, triplets, batch = b"", [], [], "2026.01.05"
    for f in range(families):
        ids = [f"{f:04d}{x}" for x in "abcde"]
        for image_id, scene in zip(ids, family(rng, "corpus", 5), strict=True):
            file = io.BytesIO()
            Image.fromarray(draw(scene)).save(file, "JPEG", quality=95)
            where = {
                "shard": f"{batch}-00000.tar",
                "offset_bytes": len(shard),
                "size_bytes": len(file.getvalue()),
                "width_px": 96,
                "height_px": 96,
            }
            other = {
                "source_sha256": "",
                "license_code": "",
                "attribution": "",
                "fetched_at": "",
                "phash": "",
                "thumbnail": b"",
                "caption": None,
            }
            images.append(
                {"image_id": image_id, "source_uri": image_id, "batch": batch, "caption_source": None, **other, **where}
            )
            shard += file.getvalue()
        for q in range(5):
            for t in ((q + 1) % 5, (q + 2) % 5):
                named = {
                    "triplet_id": f"t{ids[q]}{t}",
                    "pair_id": f"p{ids[q]}{t}",
                    "batch": batch,
                    "query_image_id": ids[q],
                    "target_image_id": ids[t],
                }
                negatives = [ids[q], *(ids[n] for n in range(5) if n not in (q, t))]
                said = {
                    "instructions": [f"make it like {t}", f"the {t} in its place"],
                    "styles": ["short"] * 2,
                    "judge_target": [0.9] * 2,
                }
                rest = dict.fromkeys(
                    ("description", "captioner", "captioner_revision", "prompt_sha256", "judge", "judge_revision"), ""
                )
                triplets.append(
                    {
                        **named,
                        **said,
                        **rest,
                        "negative_image_ids": negatives,
                        "judge_negative": [0.1] * 4,
                        "mined_by": ["x"],
                        "tokens": 0,
                    }
                )
    store.write_bytes(shard_path(store.root, f"{batch}-00000.tar"), shard)
    store.write(store.table_path("images", batch), images, "images")
    store.write(store.table_path("triplets", batch, 0), triplets, "triplets")
    return folder
