"""Caption pairs: an MLLM describes what two pictures share and what differs, an LLM turns that into instructions.

Reads data/pairs, data/images, the captions (to refuse a text that leaks the target's) and tasks/prompts/<set>/{describe,
write,retry}.txt; writes data/captioned/<batch>-<chunk>.parquet and data/dropped/caption/. A chunk's file is its own
marker. Source: MegaPairs, arXiv:2412.14475, section 3.1 (two steps, at least three instructions a pair).

Every reply is checked; one that cannot be used is asked for once more with its error, and then left out with its reason.
Nothing is ever filled in by default: a pair with too few different instructions is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tasks import checks
from tasks.batch import batch_of
from tasks.chunks import finish_chunks
from tasks.config import CaptionConfig, Params
from tasks.errors import ConfigError
from tasks.models.captioner import Captioner, Reply, Request, load_captioner
from tasks.models.writer import Writer, load_writer
from tasks.records import StageReport
from tasks.store import Store
from tasks.takedown import taken_down, withdraw_captioned

PROMPTS = Path(__file__).parent / "prompts"
DEFAULT_RETRY = "{prompt}\n{error}"


@dataclass(frozen=True)
class Prompts:
    """The texts of a prompt set and the hash that tells them from others."""

    describe: str
    write: str
    retry: str
    sha256: str


def read_prompts(name: str) -> Prompts:
    """The prompt set tasks/prompts/<name>.

    Raises:
        ConfigError: a file is missing, or write.txt lacks a field.
    """
    texts: dict[str, str] = {}
    for part in ("describe", "write", "retry"):
        path = PROMPTS / name / f"{part}.txt"
        if path.is_file():
            texts[part] = path.read_text(encoding="utf-8").rstrip("\n")
        elif part != "retry":
            raise ConfigError(f"{path}: no such prompt; 'caption.prompts' names a folder of tasks/prompts: {sorted(p.name for p in PROMPTS.iterdir())}")
    if missing := [f for f in ("{style}", "{description}") if f not in texts["write"]]:
        raise ConfigError(f"{PROMPTS / name / 'write.txt'}: expected the fields {missing}")
    digest = hashlib.sha256("\x1f".join(f"{k}\x1e{v}" for k, v in sorted(texts.items())).encode()).hexdigest()
    return Prompts(texts["describe"], texts["write"], texts.get("retry", DEFAULT_RETRY), digest)


def filled(template: str, **fields: str) -> str:
    """The template with {name} replaced; braces in the values stay as they are."""
    parts = template.split("{")
    out = parts[0]
    for part in parts[1:]:
        name, closed, rest = part.partition("}")
        out += fields[name] + rest if closed and name in fields else "{" + part
    return out


@dataclass
class Draft:
    """What is written about one pair so far."""

    pair_id: str
    description: str = ""
    texts: dict[str, str] = field(default_factory=dict)  # style -> instruction
    problems: dict[str, str] = field(default_factory=dict)  # what ('description' or a style) -> reason of its last reply
    last_reply: dict[str, str] = field(default_factory=dict)
    prompt_tokens: int = 0
    output_tokens: int = 0
    retries: int = 0

    def count(self, reply: Reply) -> None:
        self.prompt_tokens += reply.prompt_tokens
        self.output_tokens += reply.output_tokens

    def reason(self) -> str:
        """Why the pair is left out: its description's reason, else the most frequent one among its styles."""
        found = Counter(self.problems.values())
        return self.problems.get("description") or min(found, key=lambda r: (-found[r], r), default="too_few_instructions")


def describe(drafts: Sequence[Draft], images: Sequence[tuple[Any, Any]], model: Captioner, prompts: Prompts, max_chars: int) -> None:
    """Fill in the drafts' descriptions; one retry for a reply that fails its check."""
    asked = [prompts.describe] * len(drafts)
    todo = list(range(len(drafts)))
    for is_retry in (False, True):
        replies = model.chat([Request(images[n], asked[n]) for n in todo])
        failed = []
        for n, reply in zip(todo, replies, strict=True):
            draft, text = drafts[n], checks.cleaned(reply.text)
            draft.count(reply)
            found = checks.problem(text, max_chars=max_chars, prompt=prompts.describe)
            if found is None:
                draft.description = text
                draft.problems.pop("description", None)
                continue
            draft.problems["description"] = found
            draft.last_reply["description"] = text
            asked[n] = filled(prompts.retry, prompt=prompts.describe, reply=text, error=checks.EXPLAINED[found])
            failed.append(n)
        todo = failed
        if not todo:
            return
        if not is_retry:
            for n in todo:
                drafts[n].retries += 1


def write(drafts: Sequence[Draft], captions: Sequence[str | None], styles: Sequence[str], model: Writer, prompts: Prompts, max_chars: int) -> None:
    """Fill in the drafts' instructions, one per style and all different; one retry for a reply that fails its check."""
    plain_asked = {(n, s): filled(prompts.write, style=s, description=d.description) for n, d in enumerate(drafts) if d.description for s in styles}
    asked = dict(plain_asked)
    todo = list(asked)
    for is_retry in (False, True):
        replies = model.write([asked[key] for key in todo])
        failed = []
        for (n, style), reply in zip(todo, replies, strict=True):
            draft, text = drafts[n], checks.cleaned(reply.text)
            draft.count(reply)
            found = checks.problem(text, max_chars=max_chars, prompt=plain_asked[n, style], others=list(draft.texts.values()), target_caption=captions[n])
            if found is None:
                draft.texts[style] = text
                draft.problems.pop(style, None)
                continue
            draft.problems[style] = found
            draft.last_reply[style] = text
            asked[n, style] = filled(prompts.retry, prompt=plain_asked[n, style], reply=text, error=checks.EXPLAINED[found])
            failed.append((n, style))
        todo = failed
        if not todo:
            return
        if not is_retry:
            for n, _ in todo:
                drafts[n].retries += 1


def split_drafts(drafts: Sequence[Draft], styles: Sequence[str], instructions_min: int) -> tuple[list[Draft], list[Draft]]:
    """(with at least `instructions_min` instructions, the others)."""
    kept = [d for d in drafts if d.description and len(d.texts) >= instructions_min]
    names = {d.pair_id for d in kept}
    return kept, [d for d in drafts if d.pair_id not in names]


def captioned_row(draft: Draft, batch: str, styles: Sequence[str], model: Captioner, writer: Writer, prompts: Prompts) -> dict[str, Any]:
    """A row of table `captioned`."""
    used = [s for s in styles if s in draft.texts]
    return {
        "pair_id": draft.pair_id,
        "batch": batch,
        "description": draft.description,
        "instructions": [draft.texts[s] for s in used],
        "styles": used,
        "captioner": model.name,
        "captioner_revision": model.revision,
        "writer": writer.name,
        "writer_revision": writer.revision,
        "prompt_sha256": prompts.sha256,
        "prompt_tokens": draft.prompt_tokens,
        "output_tokens": draft.output_tokens,
    }


def dropped_row(draft: Draft, batch: str) -> dict[str, Any]:
    """A row of table `dropped`; detail holds what was written, what was wrong with it, and its tokens."""
    detail = {
        "description": draft.description,
        "problems": draft.problems,
        "replies": {k: v[:400] for k, v in draft.last_reply.items()},
        "kept": draft.texts,
        "tokens": draft.prompt_tokens + draft.output_tokens,
    }
    text = json.dumps(detail, ensure_ascii=False, sort_keys=True)
    return {"stage": "caption", "batch": batch, "key": draft.pair_id, "reason": draft.reason(), "detail": text}


def caption_chunk(
    rows: Mapping[str, Sequence[Any]], store: Store, captions: Mapping[str, str], model: Captioner, writer: Writer, prompts: Prompts, config: CaptionConfig
) -> list[Draft]:
    """Drafts for a chunk of pairs (columns pair_id, query_image_id, target_image_id), in their order."""
    pictures = {i: store.read_image(i) for i in dict.fromkeys([*rows["query_image_id"], *rows["target_image_id"]])}
    drafts = [Draft(p) for p in rows["pair_id"]]
    images = [(pictures[q], pictures[t]) for q, t in zip(rows["query_image_id"], rows["target_image_id"], strict=True)]
    describe(drafts, images, model, prompts, max_chars=4 * config.max_chars)
    write(drafts, [captions.get(t) for t in rows["target_image_id"]], config.styles, writer, prompts, config.max_chars)
    return drafts


def run(params: Params, store: Store, part: tuple[int, int] | None = None) -> StageReport:
    """Caption the batch's pairs, or the i-th of n parts of their chunks."""
    config, batch = params.caption, batch_of(params)
    prompts = read_prompts(config.prompts)
    pairs = store.read_table("pairs", ["pair_id", "query_image_id", "target_image_id"], batch).sort_by("pair_id")
    report = StageReport("caption", reused=0 if part and part[0] > 1 else len_of_earlier(store, batch))
    if part is None or part[0] == 1:
        withdraw_captioned(store, taken_down(params, store), batch)
    captions = store.captions()
    retries: list[int] = []  # per pair of this try

    @cache
    def models() -> tuple[Captioner, Writer]:
        shared: dict[str, Any] = {"device": config.device, "engine": config.engine, "threads": params.open_run.threads, "max_new_tokens": config.max_new_tokens}
        return (
            load_captioner(config.model, revision=config.revision, url=config.url, batch=config.batch_pairs, **shared),
            load_writer(config.writer, revision=config.writer_revision, url=config.writer_url, batch=2 * config.batch_pairs, **shared),
        )

    def make(rows: slice) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        model, writer = models()
        drafts = caption_chunk(pairs.slice(rows.start, rows.stop - rows.start).to_pydict(), store, captions, model, writer, prompts, config)
        kept, dropped = split_drafts(drafts, config.styles, config.instructions_min)
        retries.extend(d.retries for d in drafts)
        return [captioned_row(d, batch, config.styles, model, writer, prompts) for d in kept], [dropped_row(d, batch) for d in dropped]

    done, left = finish_chunks(store, report, table="captioned", batch=batch, count=pairs.num_rows, chunk_rows=config.chunk_pairs, part=part, make=make)
    report.tokens = sum(done["prompt_tokens"]) + sum(done["output_tokens"]) + sum(json.loads(d)["tokens"] for d in left["detail"])
    if report.new:
        report.figures["yield"] = len(done["pair_id"]) / report.new
        report.figures["instructions_mean"] = sum(map(len, done["instructions"])) / max(1, len(done["pair_id"]))
    if retries:
        report.notes.append(f"{sum(retries)} retries for {len(retries)} pairs")
    return report


def len_of_earlier(store: Store, batch: str) -> int:
    """Captioned rows of earlier batches, a count."""
    return sum(b != batch for b in store.read_table("captioned", ["batch"]).column("batch").to_pylist())
