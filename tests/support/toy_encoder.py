"""An encoder of two numbers, and batches of plain images for it."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.config import Params, parse_params, read_raw, resolve
from tasks.store import Store
from tasks.store.shards import shard_path

BATCH = "2026.01.04"


class ToyEncoder:
    """Brightness and its complement; a black image has no vector. Texts by their length."""

    kind = "image"
    calls: list[int] = []

    def __init__(self, revision: str = "r1") -> None:
        self.revision = revision

    def encode_images(self, images: Any) -> np.ndarray:
        ToyEncoder.calls.append(len(images))
        light = np.array([np.asarray(i).mean() / 255 for i in images])
        rows = np.stack([light, 1 - light], axis=1)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        rows[light < 0.02] = np.nan
        return rows.astype(np.float32)

    def encode_texts(self, texts: Any) -> np.ndarray:
        angle = np.array([len(t) for t in texts], np.float32)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def fill(store: Store, batch: str, shades: list[int], captions: list[str | None], per_shard: int = 3) -> list[str]:
    """Plain images in shards that are just their bytes, one after another."""
    rows, shards = [], {}
    for n, (shade, caption) in enumerate(zip(shades, captions, strict=True)):
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (shade,) * 3).save(out, "PNG")
        shard = f"{batch}-{n // per_shard:05d}.tar"
        offset = len(shards.setdefault(shard, b""))
        shards[shard] += out.getvalue()
        image_id = hashlib.sha256(f"{batch}{n}".encode()).hexdigest()
        rows.append(
            {
                "image_id": image_id,
                "batch": batch,
                "shard": shard,
                "caption": caption,
                "offset_bytes": offset,
                "size_bytes": len(out.getvalue()),
            }
        )
    for shard, content in shards.items():
        store.write_bytes(shard_path(store.root, shard), content)
    store.write(store.table_path("images", batch), rows, "images")
    return [str(r["image_id"]) for r in rows]


def params_for(batch: str = BATCH) -> Params:
    encoders = {"semantic": {"model": "toy", "kind": "image"}, "caption": {"model": "toy", "kind": "text"}}
    return parse_params(
        resolve(
            read_raw(Path("params.yaml")),
            "test",
            {"open_run": {"batch": batch}, "embed": {"encoders": encoders, "batch_images": 2}},
        )
    )
