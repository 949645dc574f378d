"""Recaption: the MLLM writes a caption for each image that came without one.

Reads data/images and the prompt caption.txt of the set `caption.prompts`. Writes data/captions/<batch>.parquet (the
stage's marker; empty where every image had a caption, and then no model is loaded) and
data/dropped/recaption/<batch>.parquet (reason empty_reply). The model is `caption.model`, with `recaption.batch_images`
images at once and replies of at most `recaption.max_new_tokens` tokens. A source's own caption is never replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tasks.config import Params
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_captioner
from tasks.models.llm.requests import Reply, Request
from tasks.names import batch_name
from tasks.prompts.prompt_set import read_prompt
from tasks.records import StageReport
from tasks.store import Store

CAPTION_CHARS = 2_000  # longest caption, characters
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def run(params: Params, store: Store) -> StageReport:
    """Write a caption for each of this batch's images that has none."""
    batch = batch_name(params)
    image_ids = images_without_caption(store, batch)
    path, dropped_path = store.table_path("captions", batch), store.dropped_path("recaption", batch)
    report = StageReport("recaption", read=len(image_ids), new=len(image_ids), reused=count_earlier(store, batch))
    if not path.exists():
        rows, dropped = caption_images(params, store, image_ids) if image_ids else ([], [])
        store.write(dropped_path, dropped, "dropped")
        report.written = store.write(path, rows, "captions")  # last: the marker
    # Counts come from the tables: a run that was killed after writing them spent the tokens all the same.
    captions, dropped_rows = store.read(path, "captions").to_pydict(), store.read(dropped_path, "dropped").to_pydict()
    for reason in dropped_rows["reason"]:
        report.drop(reason)
    written = sum(captions["prompt_tokens"]) + sum(captions["output_tokens"])
    report.tokens = written + sum(json.loads(detail)["tokens"] for detail in dropped_rows["detail"])
    report.done = len(image_ids)
    return report


def images_without_caption(store: Store, batch: str) -> list[str]:
    """Ids of the batch's images that came without a caption, in the table's order."""
    images = store.read_table("images", ["image_id", "caption", "batch"]).to_pydict()
    rows = zip(images["image_id"], images["caption"], images["batch"], strict=True)
    return [image_id for image_id, caption, of_batch in rows if of_batch == batch and not caption]


def caption_images(
    params: Params, store: Store, image_ids: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of table `captions`, rows of table `dropped`) for images, in their order."""
    config = params.caption
    prompt = read_prompt(config.prompts, "caption")
    model = load_captioner(
        LlmConfig(
            model=config.model,
            revision=config.revision,
            engine=config.engine,
            url=config.url,
            device=config.device,
            threads=params.open_run.threads,
            max_new_tokens=params.recaption.max_new_tokens,
            batch=params.recaption.batch_images,
        )
    )
    rows, dropped = [], []
    for start in range(0, len(image_ids), params.recaption.batch_images):
        chunk = image_ids[start : start + params.recaption.batch_images]
        replies = model.chat([Request((store.read_image(i),), prompt) for i in chunk])
        for image_id, reply in zip(chunk, replies, strict=True):
            if caption := clean_caption(reply.text):
                rows.append(caption_row(image_id, caption, reply, f"{config.model}@{model.revision}"))
            else:
                dropped.append(dropped_row(image_id, reply, batch_name(params)))
    return rows, dropped


def caption_row(image_id: str, caption: str, reply: Reply, source: str) -> dict[str, Any]:
    """A row of table `captions`; `source` is the model and its revision."""
    tokens = {"prompt_tokens": reply.prompt_tokens, "output_tokens": reply.output_tokens}
    return {"image_id": image_id, "caption": caption, "caption_source": source, **tokens}


def dropped_row(image_id: str, reply: Reply, batch: str) -> dict[str, Any]:
    """A row of table `dropped` for an empty reply; `detail` (JSON) has its tokens."""
    detail = json.dumps({"tokens": reply.prompt_tokens + reply.output_tokens})
    return {"stage": "recaption", "batch": batch, "key": image_id, "reason": "empty_reply", "detail": detail}


def clean_caption(text: str) -> str:
    """A reply as a caption: one line of at most CAPTION_CHARS, no control characters, no quotes around it."""
    text = " ".join(_CONTROL_CHARACTERS.sub(" ", text).split())
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1].strip()
    return text[:CAPTION_CHARS]


def count_earlier(store: Store, batch: str) -> int:
    """Captions written for other batches, a count."""
    files = [f for f in store.table_files("captions") if f.stem != batch]
    return sum(store.read(f, "captions", ["image_id"]).num_rows for f in files)
