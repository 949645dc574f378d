"""Who would make rows now, as far as the parameters tell without loading a model: names, pinned revisions, prompts.

What they leave open is left out: the commit behind a hub name without a pinned revision.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.config.public import public_name
from tasks.models.hub import model_revision
from tasks.prompts.prompt_set import read_prompt, read_prompt_set
from tasks.renewal.encoders import count_next
from tasks.renewal.makers import MADE, batches_of, count_stale, made_groups, noted_maker
from tasks.store import Store

_COMMIT = re.compile(r"[0-9a-f]{40}")


def known_revision(model: str, revision: str | None, engine: str) -> str | None:
    """The revision that rows of a model bear; None where only loading it tells."""
    if engine == "openai":
        return revision or "served"
    if Path(model).is_dir():
        return model_revision(model)
    return revision if revision and _COMMIT.fullmatch(revision) else None


def configured_maker(params: Params, stage: str) -> dict[str, str]:
    """The maker's columns of a stage's rows, those that are known."""
    caption, judge = params.caption, params.judge
    revision = known_revision(caption.model, caption.revision, caption.engine)
    if stage == "recaption":
        prompt = read_prompt(caption.prompts, "caption")
        source = f"{public_name(caption.model)}@{revision}" if revision else None
        maker = {"caption_source": source, "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest()}
    elif stage == "caption":
        maker = {
            "captioner": public_name(caption.model),
            "captioner_revision": revision,
            "writer": public_name(caption.writer),
            "writer_revision": known_revision(caption.writer, caption.writer_revision, caption.engine),
            "prompt_sha256": read_prompt_set(caption.prompts, caption.check_differences).sha256,
        }
    else:
        prompt = read_prompt(caption.prompts, "judge")
        maker = {
            "judge": public_name(judge.model),
            "judge_revision": known_revision(judge.model, judge.revision, judge.engine),
            "judge_prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
        }
    return {column: value for column, value in maker.items() if value is not None}


def stale_counts(params: Params, store: Store) -> dict[str, dict[str, Any]]:
    """stage -> what is stale of all its rows, as `count_stale` says it; stages without rows are left out.

    The maker of now is the one that this run's stage noted when it loaded its models, else what the parameters tell.
    """
    counts = {}
    for stage in MADE:
        maker = noted_maker(store, stage) or configured_maker(params, stage)
        rows = (row for batch in batches_of(store, stage) for row in made_groups(store, stage, batch))
        counts[stage] = count_stale(rows, maker)
    counts |= {f"embed {role}": count_next(store, role) for role in params.embed.next or {}}
    return {stage: count for stage, count in counts.items() if count["rows"]}
