"""Caption pairs: an MLLM describes what two images share and what differs, an LLM turns that into instructions.

Reads data/pairs, data/images, the captions (to refuse a text that leaks the target's) and
tasks/prompts/<set>/{describe, write,retry}.txt; writes data/captioned/<batch>-<chunk>.parquet and
data/dropped/caption/. A chunk's file is its own marker. Source: MegaPairs, arXiv:2412.14475, section 3.1 (two steps, at
least three instructions a pair, five demonstrations drawn from fifty).

Before its first chunk a part shows the model canaries (tasks/caption/canaries.py): one that does not see its images
stops it. Every reply is checked (tasks/caption/checks.py); one that cannot be used is asked for once more with its
error, and then left out with its reason. Nothing is ever filled in by default: a pair with too few different
instructions is dropped. Where
`budget_tokens` is spent the part ends politely: what is written stays, what is left is said, and a larger budget goes
on.

A prompt set is a folder: describe.txt ({words} where a length is asked for); write.txt with {style} and {description},
and {language}, {demonstrations} where it wants them; retry.txt with {prompt}, {reply} and {error};
demonstrations.jsonl; and describe.schema.json where the description is asked for as JSON
(tasks/caption/descriptions.py). Their bytes give the prompt hash.

A style `short` states one change: where the description is a form, its writer is shown the first difference alone, and
that of `short 2` the second, where there are two.

With `reverse` a pair that is described also gets instructions that lead from its target back to its query: a captioned
row of its own, under the id that the pair (target, query) has. Where select made that pair itself, it is left to it.
See docs/decisions/0043.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tasks.names import stable_id
from tasks.prompts.prompt_set import SCHEMA, Prompts, read_prompts
from tasks.store import Store

if TYPE_CHECKING:
    pass

import json
from collections.abc import Container, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tasks.caption import canaries, checks
from tasks.caption.generate import Draft, describe, language_of, leave_out_common, write
from tasks.config import CaptionConfig, Params
from tasks.errors import ConfigError
from tasks.fingerprints.takedown import taken_down
from tasks.models.llm.base import Captioner, Writer
from tasks.models.llm.load import load_captioner, load_writer
from tasks.models.llm.request_cache import open_cache
from tasks.names import batch_name
from tasks.prompts.styles import numbered
from tasks.records import StageReport
from tasks.store.chunks import ChunkSpec, TokenBudget, make_missing_chunks
from tasks.usage import Usage, append_usage, total_usage


def require_fit(config: CaptionConfig, prompts: Prompts) -> None:
    """Refuse what the prompt set never asks for.

    Raises:
        ConfigError: other languages than English, and no {language} in write.txt; or a style with a number, and no form
            to count differences in.
    """
    if set(config.languages) != {"en"} and "{language}" not in prompts.write:
        asked = f"caption.languages: {list(config.languages)}, and write.txt of '{config.prompts}' has no field {{language}}"
        raise ConfigError(f"{asked}; take the prompts 'standard' or 'plain', or give it one")
    if prompts.schema is None and (several := [s for s in config.styles if numbered(s)[1] > 1]):
        raise ConfigError(
            f"caption.styles: {several}, and '{config.prompts}' has no {SCHEMA}: differences are counted in descriptions by a form only"
        )


def split_drafts(
    drafts: Sequence[Draft], styles: Sequence[str], instructions_min: int
) -> tuple[list[Draft], list[Draft]]:
    """(with at least `instructions_min` instructions, the others)."""
    kept = [d for d in drafts if d.description and len(d.texts) >= instructions_min]
    names = {d.pair_id for d in kept}
    return kept, [d for d in drafts if d.pair_id not in names]


def captioned_row(
    draft: Draft, batch: str, styles: Sequence[str], model: Captioner, writer: Writer, prompts: Prompts, seed: int = 0
) -> dict[str, Any]:
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
        "differences": [d.sentence() for d in draft.form.differences] if draft.form else [],
        "language": draft.language,
        "requests": draft.requests,
        "engine": model.engine,
        "sampling": model.sampling,
        "seed": seed,
        "shared_concept": checks.cleaned(draft.form.shared) if draft.form else None,
    }


def dropped_row(draft: Draft, batch: str) -> dict[str, Any]:
    """A row of table `dropped`; detail holds what was written, what was wrong with it, and its tokens."""
    detail = {
        "description": draft.description,
        "problems": draft.problems,
        "replies": {k: v[:400] for k, v in draft.last_reply.items()},
        "kept": draft.texts,
        "tokens": draft.prompt_tokens + draft.output_tokens,
        "requests": draft.requests,
    }
    text = json.dumps(detail, ensure_ascii=False, sort_keys=True)
    return {"stage": "caption", "batch": batch, "key": draft.pair_id, "reason": draft.reason(), "detail": text}


def caption_chunk(
    rows: Mapping[str, Sequence[Any]],
    store: Store,
    captions: Mapping[str, str],
    model: Captioner,
    writer: Writer,
    prompts: Prompts,
    config: CaptionConfig,
    seed: int = 0,
    known: Container[str] = (),
) -> list[Draft]:
    """Drafts for a chunk of pairs (columns pair_id, query_image_id, target_image_id), in their order, those of reversed
    pairs after them.

    `known` holds the ids of all pairs: none of them is made by reversing another one.
    """
    images = {i: store.read_image(i) for i in dict.fromkeys([*rows["query_image_id"], *rows["target_image_id"]])}
    ends = list(zip(rows["query_image_id"], rows["target_image_id"], strict=True))
    drafts = [Draft(p, language_of(config.languages, seed, p)) for p in rows["pair_id"]]
    if config.reverse:
        back = [(stable_id(t, q), (t, q), draft) for (q, t), draft in zip(ends, drafts, strict=True)]
        back = [row for row in back if row[0] not in known]
        ends += [e for _, e, _ in back]
        drafts += [Draft(p, language_of(config.languages, seed, p), turns=draft) for p, _, draft in back]
    # A description that says which side shows what is turned round; any other is asked for with the images exchanged.
    asked = [n for n, d in enumerate(drafts) if d.turns is None or prompts.schema is None]
    end_images = [(images[ends[n][0]], images[ends[n][1]]) for n in asked]
    describe(
        [drafts[n] for n in asked],
        end_images,
        model,
        prompts,
        max_chars=4 * config.max_chars,
        words=config.description_words,
        seed=seed,
    )
    for draft in drafts:
        if draft.turns is not None and prompts.schema is not None and draft.turns.form is not None:
            draft.form = draft.turns.form.turned()
            draft.description = checks.cleaned(draft.form.prose)
    if prompts.schema is not None:  # where nothing was described there is nothing to turn round
        kept = [n for n, d in enumerate(drafts) if d.turns is None or d.form is not None]
        drafts, ends = [drafts[n] for n in kept], [ends[n] for n in kept]
    write(drafts, [(captions.get(q), captions.get(t)) for q, t in ends], config, writer, prompts, seed)
    if config.same_text_pairs is not None:
        for _ in range(leave_out_common(drafts, config.same_text_pairs)):
            writer.spent.reject("same_for_many")
    return drafts


def run(params: Params, store: Store, part: tuple[int, int] | None = None) -> StageReport:
    """Caption the batch's pairs, or the i-th of n parts of their chunks."""
    config, batch = params.caption, batch_name(params)
    prompts = read_prompts(config.prompts)
    require_fit(config, prompts)
    pairs = store.read_table("pairs", ["pair_id", "query_image_id", "target_image_id"], batch).sort_by("pair_id")
    report = StageReport("caption", reused=0 if part and part[0] > 1 else len_of_earlier(store, batch))
    if part is None or part[0] == 1:
        withdraw_captioned(store, taken_down(params, store), batch)
    captions = store.captions()
    known = (
        frozenset(store.read_table("pairs", ["pair_id"]).column("pair_id").to_pylist())
        if config.reverse
        else frozenset()
    )
    retries: list[int] = []  # per pair of this try

    seed = params.open_run.seed
    seen: list[str] = []  # what the canaries said, where they were shown

    @cache
    def models() -> tuple[Captioner, Writer]:
        shared: dict[str, Any] = {
            "device": config.device,
            "engine": config.engine,
            "threads": params.open_run.threads,
            "max_new_tokens": config.max_new_tokens,
        }
        shared |= {"in_flight": config.in_flight, "timeout_s": config.timeout_s, "seed": seed}
        shared["cache"] = open_cache(store.root, served=config.engine == "openai")
        model = load_captioner(
            config.model, revision=config.revision, url=config.url, batch=config.batch_pairs, **shared
        )
        if config.canaries:
            shown_first = canaries.read_canaries(Path(config.canaries))
            prompt = prompts.describing(sum(config.description_words) // 2)
            shares = canaries.show(
                model,
                prompt,
                shown_first,
                least=config.canaries_min,
                blank_most=config.blank_max,
                schema=prompts.schema,
            )
            seen.append(
                f"canaries: {shares[0]:.0%} of {len(shown_first)} seen, {shares[1]:.0%} guessed from blank images"
            )
        return model, load_writer(
            config.writer,
            revision=config.writer_revision,
            url=config.writer_url,
            batch=2 * config.batch_pairs,
            **shared,
        )

    def make(rows: slice) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        model, writer = models()
        drafts = caption_chunk(
            pairs.slice(rows.start, rows.stop - rows.start).to_pydict(),
            store,
            captions,
            model,
            writer,
            prompts,
            config,
            seed,
            known,
        )
        kept, dropped = split_drafts(drafts, config.styles, config.instructions_min)
        retries.extend(d.retries for d in drafts)
        paid = total_usage([model.spent, writer.spent])
        append_usage(store.root, "caption", part, paid)
        spent.append(paid)
        model.spent, writer.spent = Usage(), Usage()
        return [captioned_row(d, batch, config.styles, model, writer, prompts, seed) for d in kept], [
            dropped_row(d, batch) for d in dropped
        ]

    spent: list[Usage] = []  # of this try
    budget = None
    if config.budget_tokens is not None:
        budget = TokenBudget(config.budget_tokens // (part[1] if part else 1), tokens_of)
    spec = ChunkSpec("captioned", batch, pairs.num_rows, config.chunk_pairs, part)
    done, left = make_missing_chunks(store, report, spec, make, budget)
    report.tokens = tokens_of(done, left)
    if report.new:
        own = set(pairs.column("pair_id").to_pylist())
        forward = sum(p in own for p in done["pair_id"])
        report.figures["yield"] = forward / report.new
        if config.reverse:
            report.figures["reversed_per_pair"] = (len(done["pair_id"]) - forward) / report.new
        report.figures["instructions_mean"] = sum(map(len, done["instructions"])) / max(1, len(done["pair_id"]))
        report.figures["requests_per_pair"] = requests_of(done, left) / max(1, report.done)
    if report.done < report.new:
        report.notes.append(
            f"caption.budget_tokens: {report.tokens} of {config.budget_tokens} tokens are spent, {report.new - report.done} of {report.new} pairs are left; "
            "to go on, raise it and run the stage again before the version is made"
        )
    if retries:
        report.notes.append(f"{sum(retries)} retries for {len(retries)} pairs")
    report.notes += seen
    if spent:
        report.notes.append(total_usage(spent).sentence())
    return report


def tokens_of(done: Mapping[str, Sequence[Any]], left: Mapping[str, Sequence[Any]]) -> int:
    """Tokens that captioned and dropped rows took, a count; from the tables, so that a crash forgets none."""
    return (
        sum(done["prompt_tokens"]) + sum(done["output_tokens"]) + sum(json.loads(d)["tokens"] for d in left["detail"])
    )


def requests_of(done: Mapping[str, Sequence[Any]], left: Mapping[str, Sequence[Any]]) -> int:
    """Requests that captioned and dropped rows took, retries included, a count."""
    return sum(n or 0 for n in done["requests"]) + sum(json.loads(d).get("requests", 0) for d in left["detail"])


def len_of_earlier(store: Store, batch: str) -> int:
    """Captioned rows of earlier batches, a count."""
    return sum(b != batch for b in store.read_table("captioned", ["batch"]).column("batch").to_pylist())


def withdraw_captioned(store: Store, ids: Iterable[str], batch: str) -> int:
    """Drop what was written for earlier batches' pairs that are gone. Returns the rows withdrawn."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not set(ids):
        return 0
    pairs = store.read_table("pairs", ["pair_id", "query_image_id", "target_image_id"])
    ends = zip(pairs.column("query_image_id").to_pylist(), pairs.column("target_image_id").to_pylist(), strict=True)
    # what caption.reverse writes stands and falls with its pair
    reversed_ids = [stable_id(target, query) for query, target in ends]
    there = pa.array({*pairs.column("pair_id").to_pylist(), *reversed_ids}, pa.string())
    count = 0
    for path in store.table_files("captioned"):
        table = store.read(path, "captioned")
        kept = pc.or_(pc.is_in(table.column("pair_id"), value_set=there), pc.equal(table.column("batch"), batch))
        if not pc.all(kept).as_py():
            count += table.num_rows - store.write(path, table.filter(kept), "captioned")
    return count
