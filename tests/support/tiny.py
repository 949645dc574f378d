"""Models small enough for a step in milliseconds, and a version to train them on."""

import io
import random
from pathlib import Path
from typing import Any

from PIL import Image

from tasks.sample.scenes import Scene, draw, family
from tasks.store import Store
from tasks.store.shards import shard_path

BATCH = "2026.01.05"


def drawn_families(count: int, batch: str) -> tuple[list[list[Scene]], bytes, list[dict[str, Any]]]:
    """Families of three images each, named <family>a to <family>c: their scenes, their shard, and rows of `images`."""
    rng = random.Random(5)
    families = [family(rng, "corpus", 3) for _ in range(count)]
    shard, images = b"", []
    for f, scenes in enumerate(families):
        for m, scene in enumerate(scenes):
            file = io.BytesIO()
            Image.fromarray(draw(scene)).save(file, "PNG")
            content = file.getvalue()
            empty = dict.fromkeys(("source_sha256", "license_code", "attribution", "fetched_at", "phash"), "")
            row = {
                **empty,
                "image_id": f"{f:02d}{'abc'[m]}",
                "source_uri": f"world:{f}/{m}.png",
                "batch": batch,
                "thumbnail": b"",
                "caption": None,
                "caption_source": None,
                "shard": f"{batch}-00000.tar",
                "offset_bytes": len(shard),
                "size_bytes": len(content),
                "width_px": 96,
                "height_px": 96,
            }
            images.append(row)
            shard += content
    return families, shard, images


def save_version(folder: Path) -> Store:
    """Images and judged triplets of eight families of three images: query, target, one mined negative."""
    store, triplets = Store(folder), []
    families, shard, images = drawn_families(8, BATCH)
    for f in range(len(families)):
        a, b, c = (f"{f:02d}{x}" for x in "abc")
        names = {
            "triplet_id": f"t{f}",
            "pair_id": f"p{f}",
            "batch": BATCH,
            "query_image_id": a,
            "target_image_id": b,
            "negative_image_ids": [a, c],
        }
        texts = {
            "instructions": [f"make it {f}", f"{f} times"],
            "styles": ["short", "short"],
            "judge_target": [0.9, 0.8],
            "judge_negative": [0.1, 0.3],
        }
        rest = dict.fromkeys(
            ("description", "captioner", "captioner_revision", "prompt_sha256", "judge", "judge_revision"), ""
        )
        triplets.append({**names, **texts, **rest, "mined_by": ["semantic"], "tokens": 0})
    store.write_bytes(shard_path(store.root, f"{BATCH}-00000.tar"), shard)
    store.write(store.table_path("images", BATCH), images, "images")
    store.write(store.table_path("triplets", BATCH, 0), triplets, "triplets")
    return store


def save_narrow_clip(folder: Path) -> Path:
    """A CLIP of one narrow layer a tower, random, with the sample world's processor."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from tasks.sample import train_clip

    torch.manual_seed(3)
    _, processor = train_clip.build()
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 32,
    }
    ends = {k: getattr(processor.tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 77},
        vision_config={**tower, "image_size": 96, "patch_size": 32},
        projection_dim=32,
    )
    CLIPModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
