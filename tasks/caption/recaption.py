"""Recaption: images that came without a caption get one from the MLLM.

Reads data/images and tasks/prompts/<caption.prompts>/caption.txt; writes data/captions/<batch>.parquet (the marker;
empty when there was nothing to do, and then no model is loaded) and data/dropped/recaption/<batch>.parquet (reason
empty_reply). The model is the one that describes pairs (`caption.model`). What is written here never replaces a
source's own caption.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from tasks.config import Params
from tasks.errors import ConfigError
from tasks.models.llm.captioner import Request
from tasks.models.llm.load import load_captioner
from tasks.names import batch_name
from tasks.records import StageReport
from tasks.store import Store

log = logging.getLogger(__name__)
PROMPTS = Path(__file__).parents[1] / "prompts"


def read_prompt(name: str) -> str:
    """The text of tasks/prompts/<name>/caption.txt.

    Raises:
        ConfigError: no such file.
    """
    path = PROMPTS / name / "caption.txt"
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such prompt; 'caption.prompts' names a folder of tasks/prompts: {sorted(p.name for p in PROMPTS.iterdir())}"
        )
    return path.read_text(encoding="utf-8").rstrip("\n")


def one_line(text: str, max_chars: int = 2_000) -> str:
    """A reply as a caption: one line, no control characters, no quotes around it."""
    text = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", " ", text).split())
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1].strip()
    return text[:max_chars]


def run(params: Params, store: Store) -> StageReport:
    """Write a caption for each of this batch's images that has none."""
    batch, config = batch_name(params), params.recaption
    images = store.read_table("images", ["image_id", "caption", "batch"]).to_pydict()
    wanted = [
        i
        for i, c, b in zip(images["image_id"], images["caption"], images["batch"], strict=True)
        if b == batch and not c
    ]
    path, dropped_path = store.table_path("captions", batch), store.dropped_path("recaption", batch)
    report = StageReport("recaption", read=len(wanted), new=len(wanted), reused=_earlier(store, batch))
    if not path.exists():
        rows, dropped = [], []
        if wanted:
            prompt = read_prompt(params.caption.prompts)
            model = load_captioner(
                params.caption.model,
                revision=params.caption.revision,
                device=params.caption.device,
                engine=params.caption.engine,
                url=params.caption.url,
                threads=params.open_run.threads,
                max_new_tokens=config.max_new_tokens,
                batch=config.batch_images,
            )
            for start in range(0, len(wanted), config.batch_images):
                block = wanted[start : start + config.batch_images]
                replies = model.chat([Request(images=(store.read_image(i),), text=prompt) for i in block])
                for image_id, reply in zip(block, replies, strict=True):
                    text = one_line(reply.text)
                    if text:
                        tokens = {"prompt_tokens": reply.prompt_tokens, "output_tokens": reply.output_tokens}
                        rows.append(
                            {
                                "image_id": image_id,
                                "caption": text,
                                "caption_source": f"{params.caption.model}@{model.revision}",
                                **tokens,
                            }
                        )
                    else:
                        detail = json.dumps({"tokens": reply.prompt_tokens + reply.output_tokens})
                        dropped.append(
                            {
                                "stage": "recaption",
                                "batch": batch,
                                "key": image_id,
                                "reason": "empty_reply",
                                "detail": detail,
                            }
                        )
        store.write(dropped_path, dropped, "dropped")
        report.written = store.write(path, rows, "captions")  # last: the marker
    left, made = store.read(dropped_path, "dropped").to_pydict(), store.read(path, "captions").to_pydict()
    for reason in left["reason"]:
        report.drop(reason)
    # From the tables: a run that was killed after writing them spent the tokens all the same.
    report.tokens = (
        sum(made["prompt_tokens"]) + sum(made["output_tokens"]) + sum(json.loads(d)["tokens"] for d in left["detail"])
    )
    report.done = len(wanted)
    return report


def _earlier(store: Store, batch: str) -> int:
    """Captions written for earlier batches, a count."""
    return sum(
        store.read(f, "captions", ["image_id"]).num_rows for f in store.table_files("captions") if f.stem != batch
    )
