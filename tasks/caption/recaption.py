"""Recaption: the MLLM writes a caption for each image that came without one.

Reads data/images, data/shards and the prompt caption.txt of the set `caption.prompts`. Writes one file a chunk of
images, data/captions/<batch>-<chunk>.parquet and data/dropped/recaption/; a chunk's file is its own marker, existing
chunks are skipped (a batch without such images has one empty file, and no model is loaded). The model is
`caption.model`, as stage caption uses it: with its servers, its request cache and its canaries,
`recaption.batch_images` images at once and replies of at most `recaption.max_new_tokens` tokens. A source's own caption
is never replaced.

A reply is cleaned to one line and checked like a description (tasks/caption/checks.py): an order to a model, a file
name or a refusal is no caption. A rejected reply is requested once more with its reason, then its image is dropped with
that reason. Once `recaption.budget_tokens` is spent, no further chunk is begun; a later run with a larger budget
continues. Takedown: captions of withdrawn images are removed.

With `renew.recaption` images of earlier batches get another caption where another model or prompt wrote theirs, the
oldest first and at most `renew.recaption.budget` of them; then the old caption goes (tasks/renewal). Stage embed
encodes these captions again; what was mined by the old ones stays.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.caption.checks import ReplyRules, rejection_reason
from tasks.caption.models import canary_note, captioner_config
from tasks.caption.retry import CUT_OFF, MORE_ROOM, Rejection, send_with_retry
from tasks.config import Params, RecaptionConfig
from tasks.config.public import public_name
from tasks.fingerprints.takedown import withdraw_dropped, withdraw_rows, withdrawn_ids
from tasks.models.llm.base import Captioner
from tasks.models.llm.load import load_captioner
from tasks.models.llm.refusals import RefusalShare
from tasks.models.llm.request_cache import open_cache
from tasks.models.llm.requests import Refusal, Reply, Request
from tasks.names import batch_name
from tasks.prompts.prompt_set import read_prompt, read_prompt_set
from tasks.records import StageReport
from tasks.renewal.makers import note_maker
from tasks.renewal.plan import Plan, Wish, lost_limit, make_plan, read_plan, wanted
from tasks.renewal.supersede import supersede
from tasks.renewal.units import renewable_units, rows_of_file
from tasks.store import Store
from tasks.store.chunks import Chunk, ChunkSpec, Columns, TokenBudget, iter_chunks, make_missing_chunks
from tasks.usage import Usage, append_usage, total_usage

CAPTION_CHARS = 2_000  # longest caption, characters
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

Part = tuple[int, int]  # (i, n): the i-th of n parts, from 1
Rows = list[dict[str, Any]]


def run(params: Params, store: Store, part: Part | None = None) -> StageReport:
    """Write a caption for each of this batch's images that has none, or for the i-th of n parts of their chunks."""
    config, batch = params.recaption, batch_name(params)
    image_ids = images_without_caption(store, batch)
    is_first_part = part is None or part[0] == 1
    report = StageReport("recaption", reused=count_earlier(store, batch) if is_first_part else 0)
    chunks = list(iter_chunks(len(image_ids), config.chunk_images, part))
    if is_first_part and not image_ids:
        chunks = [Chunk(0, slice(0, 0))]  # an empty batch has one empty file
    if is_first_part:
        withdraw_rows(store, store.table_files("captions"), "captions", withdrawn_ids(store, batch))
        withdraw_dropped(params, store, "recaption")
    worker = ChunkWorker(params, store, part, image_ids)
    plan = worker.plan_renewal()
    spec = ChunkSpec("captions", batch, [*chunks, *plan.chunks(part)])
    captions, dropped = make_missing_chunks(store, report, spec, worker.caption, token_budget(config, part))
    done = (c for c in plan.chunks() if store.table_path("captions", batch, c.number).exists())
    supersede(store, "recaption", batch, set(plan.units_of(done)), lost_limit(params, "recaption"))
    # Counts come from the tables: a run that was killed after writing them spent the tokens all the same.
    report.tokens = count_tokens(captions, dropped)
    if report.done < report.new:
        report.notes.append(
            f"recaption.budget_tokens: {report.tokens} of {config.budget_tokens} tokens are spent, "
            f"{report.new - report.done} of {report.new} images are left without a caption; to go on, raise it and run "
            "the stage again before embed"
        )
    report.notes += worker.notes()
    return report


def token_budget(config: RecaptionConfig, part: Part | None) -> TokenBudget | None:
    """A part's share of `recaption.budget_tokens`; None without a limit."""
    if config.budget_tokens is None:
        return None
    return TokenBudget(config.budget_tokens // (part[1] if part else 1), count_tokens)


def count_tokens(captions: Columns, dropped: Columns) -> int:
    """Tokens that captions and dropped rows took, a count."""
    written = sum(captions["prompt_tokens"]) + sum(captions["output_tokens"])
    return int(written + sum(json.loads(detail)["tokens"] for detail in dropped["detail"]))


def images_without_caption(store: Store, batch: str) -> list[str]:
    """Ids of the batch's images that came without a caption, in the table's order.

    Those that an earlier release has dealt with in this very batch, in one file <batch>.parquet, are left out.
    """
    images = store.read_table("images", ["image_id", "caption", "batch"]).to_pydict()
    rows = zip(images["image_id"], images["caption"], images["batch"], strict=True)
    done: set[str] = set()
    path, dropped_path = store.table_path("captions", batch), store.dropped_path("recaption", batch)
    if path.exists():
        done |= set(store.read(path, "captions", ["image_id"]).column("image_id").to_pylist())
        dropped = store.read([dropped_path] if dropped_path.exists() else [], "dropped", ["key"])
        done |= set(dropped.column("key").to_pylist())
    return [i for i, caption, of_batch in rows if of_batch == batch and not caption and i not in done]


class ChunkWorker:
    """Captions the chunks of one part; loads the model when the first chunk needs it.

    Attributes:
        usage: what this run's requests took.
    """

    def __init__(self, params: Params, store: Store, part: Part | None, image_ids: Sequence[str]) -> None:
        """`image_ids`: the batch's images without a caption."""
        self.params, self.store, self.part, self.image_ids = params, store, part, image_ids
        self.usage, self.retries = Usage(), 0
        self.refusals = RefusalShare("recaption.refused_share_max", params.recaption.refused_share_max)
        self.plan = Plan("recaption")
        self._model: Captioner | None = None
        self._prompt = self._retry = ""
        self._canary_notes: list[str] = []

    def plan_renewal(self) -> Plan:
        """Which images of earlier batches get another caption; without `renew.recaption` none."""
        rows, batch = wanted(self.params, "recaption"), batch_name(self.params)
        if rows is not None:
            self.plan = read_plan(self.store, "recaption") or make_plan(
                self.store,
                Wish.of(rows, "recaption", self._maker(self._load())),
                "recaption",
                batch,
                renewable_units(self.store, "recaption", batch),
                rows_of_file(self.params, "recaption"),
            )
        return self.plan

    def _maker(self, model: Captioner) -> dict[str, str]:
        source = f"{public_name(self.params.caption.model)}@{model.revision}"
        return {"caption_source": source, "prompt_sha256": hashlib.sha256(self._prompt.encode()).hexdigest()}

    def caption(self, chunk: Chunk) -> tuple[Rows, Rows]:
        """(rows of table `captions`, rows of table `dropped`) of a chunk, in the order of its images."""
        image_ids = list((self.plan.units if self.plan.is_own(chunk) else self.image_ids)[chunk.rows])
        if not image_ids:
            return [], []
        model, size = self._load(), self.params.recaption.batch_images
        # A server takes requests one by one; in process a batch is one call, whose last bits depend on what is in it.
        step = len(image_ids) if self.params.caption.engine == "openai" else size
        drafts = [CaptionDraft(image_id) for image_id in image_ids]
        for start in range(0, len(drafts), step):
            self._caption_drafts(drafts[start : start + step], model)
        append_usage(self.store.root, "recaption", self.part, model.usage)
        self.usage = total_usage([self.usage, model.usage])
        model.usage = Usage()
        self.refusals.add(len(drafts), [draft.rejected for draft in drafts if draft.is_refused])
        made_by, batch = self._maker(model), batch_name(self.params)
        captions = [draft.row(made_by) for draft in drafts if not draft.reason]
        return captions, [draft.dropped_row(batch, made_by) for draft in drafts if draft.reason]

    def _caption_drafts(self, drafts: Sequence[CaptionDraft], model: Captioner) -> None:
        """Fill in the captions of images that fit into memory together."""
        conversation = _Captions(drafts, [self.store.read_image(d.image_id) for d in drafts], model, self._prompt)
        prompts = dict.fromkeys(range(len(drafts)), self._prompt)
        self.retries += len(send_with_retry(prompts, conversation, self._retry, model.usage))

    def notes(self) -> list[str]:
        """Sentences for the report; none where no model was needed and nothing is renewed."""
        is_first_part = self.part is None or self.part[0] == 1
        planned = [self.plan.sentence()] if is_first_part and wanted(self.params, "recaption") else []
        if self._model is None:
            return planned
        return [*planned, f"{self.retries} retries", *self._canary_notes, self.usage.sentence()]

    def _load(self) -> Captioner:
        if self._model is None:
            config = self.params.caption
            prompts = read_prompt_set(config.prompts)
            self._prompt, self._retry = read_prompt(config.prompts, "caption"), prompts.retry
            cache = open_cache(self.store.root, served=config.engine == "openai")
            limits = self.params.recaption
            described = captioner_config(self.params, self.store.root, cache)
            wanted = replace(described, max_new_tokens=limits.max_new_tokens, batch=limits.batch_images)
            model = load_captioner(wanted)
            if config.canaries:
                self._canary_notes = [canary_note(self.params, model, prompts)]
            self._model = model
            note_maker(self.store, "recaption", self._maker(model))
        return self._model


@dataclass
class CaptionDraft:
    """The caption of one image while it is written.

    Attributes:
        image_id: of the image.
        caption: accepted caption; empty where there is none.
        reason: why the last reply was rejected; empty where one was accepted.
        rejected: that reply.
        prompt_tokens, output_tokens, requests: what the replies took, counts.
        is_refused: whether the model's server or processor refused the image; `rejected` has its words.
    """

    image_id: str
    caption: str = ""
    reason: str = ""
    rejected: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    is_refused: bool = False

    def row(self, made_by: Mapping[str, str]) -> dict[str, Any]:
        """A row of table `captions`; `made_by`: model and prompt, by column."""
        tokens = {"prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens}
        return {"image_id": self.image_id, "caption": self.caption, **tokens, **made_by}

    def dropped_row(self, batch: str, made_by: Mapping[str, str]) -> dict[str, Any]:
        """A row of table `dropped`; `detail` (JSON) has the last reply, what all of them took, and who wrote them."""
        tokens = self.prompt_tokens + self.output_tokens
        detail = {"reply": self.rejected[:CAPTION_CHARS], "requests": self.requests, "tokens": tokens}
        detail = {**detail, "maker": dict(made_by)}
        text = json.dumps(detail, ensure_ascii=False, sort_keys=True)
        return {"stage": "recaption", "batch": batch, "key": self.image_id, "reason": self.reason, "detail": text}


@dataclass(frozen=True)
class _Captions:
    """Requests for captions; a key is the draft's position."""

    drafts: Sequence[CaptionDraft]
    images: Sequence[Any]
    model: Captioner
    prompt: str

    def send(self, keys: Sequence[int], prompts: Sequence[str], *, has_more_room: bool = False) -> list[Reply]:
        limit = MORE_ROOM * self.model.max_new_tokens if has_more_room else None
        requests = [Request((self.images[n],), text, None, limit) for n, text in zip(keys, prompts, strict=True)]
        return self.model.chat(requests)

    def refuse(self, key: int, refusal: Refusal) -> None:
        draft = self.drafts[key]
        draft.requests += 1
        draft.reason, draft.rejected, draft.is_refused = refusal.reason, refusal.detail, True

    def check(self, key: int, reply: Reply, prompt: str) -> Rejection | None:
        draft, text = self.drafts[key], clean_caption(reply.text)
        draft.requests += 1
        draft.prompt_tokens += reply.prompt_tokens
        draft.output_tokens += reply.output_tokens
        draft.reason = CUT_OFF if reply.is_cut else rejection_reason(text, ReplyRules(CAPTION_CHARS, prompt)) or ""
        draft.caption, draft.rejected = ("", text) if draft.reason else (text, "")
        return Rejection(draft.reason, text) if draft.reason else None


def clean_caption(text: str) -> str:
    """A reply as a caption: one line of at most CAPTION_CHARS, no control characters, no quotes around it."""
    text = " ".join(_CONTROL_CHARACTERS.sub(" ", text).split())
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1].strip()
    return text[:CAPTION_CHARS]


def count_earlier(store: Store, batch: str) -> int:
    """Captions that were written before: for other batches, or by an earlier release in one file for this one."""
    own = {f.stem for f in store.batch_files("captions", batch)} - {batch}
    files = [f for f in store.table_files("captions") if f.stem not in own]
    return sum(store.read(f, "captions", ["image_id"]).num_rows for f in files)
