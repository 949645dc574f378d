"""Rows of the tables `captioned` and `dropped` that captioning writes, and the counts that are read back from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.caption.checks import clean_reply
from tasks.caption.chunk import CaptionSetup
from tasks.caption.draft import Draft
from tasks.config.public import public_name

REPLY_CHARS = 400  # of a rejected reply, what its dropped row keeps


def split_drafts(drafts: Sequence[Draft], instructions_min: int) -> tuple[list[Draft], list[Draft]]:
    """(drafts with a description and at least `instructions_min` instructions, the others), in their order."""
    complete = [bool(d.description) and len(d.instructions) >= instructions_min for d in drafts]
    accepted = [d for d, is_complete in zip(drafts, complete, strict=True) if is_complete]
    return accepted, [d for d, is_complete in zip(drafts, complete, strict=True) if not is_complete]


def maker(setup: CaptionSetup) -> dict[str, str]:
    """Who makes the rows: models, revisions and prompts, by column."""
    captioner, writer = setup.captioner, setup.writer
    return {
        "captioner": public_name(captioner.name),
        "captioner_revision": captioner.revision,
        "writer": public_name(writer.name),
        "writer_revision": writer.revision,
        "prompt_sha256": setup.prompts.sha256,
    }


def captioned_row(draft: Draft, batch: str, setup: CaptionSetup) -> dict[str, Any]:
    """A row of table `captioned`."""
    captioner = setup.captioner
    styles = [style for style in setup.config.styles if style in draft.instructions]
    return {
        "pair_id": draft.pair_id,
        "batch": batch,
        "description": draft.description,
        "instructions": [draft.instructions[style] for style in styles],
        "styles": styles,
        **maker(setup),
        "prompt_tokens": draft.prompt_tokens,
        "output_tokens": draft.output_tokens,
        "differences": [d.as_text() for d in draft.structured.differences] if draft.structured else [],
        "language": draft.language,
        "requests": draft.requests,
        "engine": captioner.engine,
        "sampling": captioner.sampling,
        "seed": setup.seed,
        "shared_concept": clean_reply(draft.structured.shared) if draft.structured else None,
    }


def dropped_row(draft: Draft, batch: str, made_by: Mapping[str, str]) -> dict[str, Any]:
    """A row of table `dropped`; `detail` (JSON) has what was written by whom, why it was rejected, what it took."""
    detail = {
        "description": draft.description,
        "problems": draft.rejections,
        "replies": {key: text[:REPLY_CHARS] for key, text in draft.rejected_replies.items()},
        "kept": draft.instructions,
        "tokens": draft.prompt_tokens + draft.output_tokens,
        "requests": draft.requests,
        "maker": dict(made_by),
    }
    text = json.dumps(detail, ensure_ascii=False, sort_keys=True)
    return {"stage": "caption", "batch": batch, "key": draft.pair_id, "reason": draft.drop_reason(), "detail": text}


def count_tokens(captioned: Mapping[str, Sequence[Any]], dropped: Mapping[str, Sequence[Any]]) -> int:
    """Tokens that captioned and dropped rows took, a count; from the tables, so that a crash loses none."""
    written = sum(captioned["prompt_tokens"]) + sum(captioned["output_tokens"])
    return written + sum(json.loads(detail)["tokens"] for detail in dropped["detail"])


def count_requests(captioned: Mapping[str, Sequence[Any]], dropped: Mapping[str, Sequence[Any]]) -> int:
    """Requests that captioned and dropped rows took, retries included, a count."""
    written = sum(count or 0 for count in captioned["requests"])
    return written + sum(json.loads(detail).get("requests", 0) for detail in dropped["detail"])
