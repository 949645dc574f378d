"""Caption pairs: an MLLM describes what two images share and what differs, an LLM turns that into instructions.

Reads data/pairs, data/images, data/shards, the captions (only to reject texts that leak them) and the prompt set
tasks/prompts/<caption.prompts> (tasks/prompts/prompt_set.py lists its files). Writes one file a chunk of pairs,
data/captioned/<batch>-<chunk>.parquet and data/dropped/caption/; a chunk's file is its own marker, existing chunks are
skipped. Source: MegaPairs, arXiv:2412.14475, section 3.1 (two steps, at least three instructions a pair, five
demonstrations drawn from fifty).

For one chunk, in this order:

1. the captioner describes each pair, in prose or as JSON (tasks/caption/descriptions.py);
2. the writer turns each description into one instruction per style of `caption.styles`;
3. every reply is checked (tasks/caption/checks.py); a rejected one is requested once more with its reason, one that
   was cut off at the longest length with more room (tasks/caption/retry.py), then left out; a pair whose description
   is the reply `too different`, or lists more differences than `caption.differences_max`, is dropped at once, since no
   text could state them all (too_different);
4. texts that more than `caption.same_text_pairs` pairs of the chunk have in common are dropped (same_for_many);
5. a request that the model's server or processor refuses (a 400, an image of a shape that it cannot take) is left out
   with its words (request_refused, bad_image); more such pairs than `caption.refused_share_max` stop the part;
6. a pair with fewer than `caption.instructions_min` different instructions is dropped, with its description's reason or
   the most frequent one among its styles (too_few_instructions where there is none). Nothing is filled in by default.

Before its first chunk a part checks the captioner on canaries (tasks/caption/canaries.py): one that does not see its
images stops the part. Once `caption.budget_tokens` is spent, no further chunk is begun: what is written stays, the
report says what is left, and a later run with a larger budget continues.

A partial style such as `short` states one change: where descriptions are structured, its writer is shown the first
difference alone, for `short 2` the second, if there is one.

With `caption.reverse` a described pair also gets instructions that lead from its target back to its query: a captioned
row of its own, under the id that the pair (target, query) has, unless select made that pair itself. See
docs/decisions/0043.

With `renew.caption` pairs of earlier batches that another captioner, writer or prompt set described are described
again, in files of this batch, the oldest first and at most `renew.caption.budget` of them; then their old rows go
(tasks/renewal, docs/decisions/0153). `caption.budget_tokens` counts them, too, after the new pairs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any

from tasks.caption.chunk import CaptionSetup, caption_chunk
from tasks.caption.models import load_caption_setup
from tasks.caption.renewal import plan_captions, remove_renewed, renewed_pairs
from tasks.caption.rows import captioned_row, count_requests, count_tokens, dropped_row, maker, split_drafts
from tasks.config import CaptionConfig, Params
from tasks.errors import ConfigError
from tasks.fingerprints.takedown import taken_down, withdraw_dropped
from tasks.models.llm.refusals import RefusalShare
from tasks.names import batch_name, stable_id
from tasks.prompts.prompt_set import SCHEMA, PromptSet, read_prompt_set
from tasks.prompts.styles import split_style
from tasks.records import StageReport
from tasks.renewal.makers import note_maker
from tasks.renewal.plan import Plan, wanted
from tasks.store import Store
from tasks.store.chunks import Chunk, ChunkSpec, Columns, TokenBudget, iter_chunks, make_missing_chunks
from tasks.usage import Usage, append_usage, total_usage

if TYPE_CHECKING:
    import pyarrow as pa

Part = tuple[int, int]  # (i, n): the i-th of n parts, from 1


def run(params: Params, store: Store, part: Part | None = None) -> StageReport:
    """Caption the batch's pairs, or the i-th of n parts of their chunks."""
    config, batch = params.caption, batch_name(params)
    prompts = read_prompt_set(config.prompts, config.check_differences)
    require_supported(config, prompts)
    pairs = store.read_table("pairs", ["pair_id", "query_image_id", "target_image_id"], batch).sort_by("pair_id")
    is_first_part = part is None or part[0] == 1
    report = StageReport("caption", reused=count_earlier(store, batch) if is_first_part else 0)
    if is_first_part:
        withdraw_captioned(store, taken_down(params, store), batch)
        withdraw_dropped(params, store, "caption", "pair")
    worker = ChunkWorker(params, store, part, prompts, pairs)
    plan = worker.plan_renewal()
    chunks = [*iter_chunks(pairs.num_rows, config.chunk_pairs, part), *plan.chunks(part)]
    spec = ChunkSpec("captioned", batch, chunks)
    captioned, dropped = make_missing_chunks(store, report, spec, worker.caption, token_budget(config, part))
    remove_renewed(params, store, plan, worker.renewed)
    report.tokens = count_tokens(captioned, dropped)
    if report.new:
        pair_ids = {*pairs.column("pair_id").to_pylist(), *plan.units}
        report.figures |= figures(captioned, dropped, report, pair_ids, is_reversed=config.reverse)
    report.notes += [*budget_notes(config, report), *worker.notes()]
    return report


def require_supported(config: CaptionConfig, prompts: PromptSet) -> None:
    """Refuse parameters that the prompt set has no request for.

    Raises:
        ConfigError: other languages than English, and no {language} in write.txt; or a style with a number, and
            descriptions that are not structured, so that there are no differences to count.
    """
    if set(config.languages) != {"en"} and "{language}" not in prompts.write:
        raise ConfigError(
            f"caption.languages: {list(config.languages)}, and write.txt of '{config.prompts}' has no field "
            "{language}; take the prompts 'standard' or 'plain', or add the field"
        )
    numbered = [style for style in config.styles if split_style(style)[1] > 1]
    if config.check_differences and (prompts.schema is None or prompts.check is None or prompts.missing is None):
        raise ConfigError(
            f"caption.check_differences: true, and '{config.prompts}' lacks {SCHEMA}, check.txt or missing.txt; take "
            "the prompts 'standard', add the files, or set it to false"
        )
    if prompts.schema is None and numbered:
        raise ConfigError(
            f"caption.styles: {numbered}, and '{config.prompts}' has no {SCHEMA}: only structured descriptions count "
            "their differences; take the prompts 'standard', or styles without a number"
        )


class ChunkWorker:
    """Captions the chunks of one part; loads the models when the first chunk needs them.

    Attributes:
        retries: requests sent again, per pair of this run.
        usage: what this run's requests took.
        refusals: pairs with a request that the model's server or processor refused.
    """

    def __init__(self, params: Params, store: Store, part: Part | None, prompts: PromptSet, pairs: pa.Table) -> None:
        """`pairs`: the batch's pairs, by pair id."""
        self.params, self.store, self.part, self.prompts, self.pairs = params, store, part, prompts, pairs
        self.captions = store.captions()
        self.pair_ids: Container[str] = ()
        if params.caption.reverse:
            self.pair_ids = frozenset(store.read_table("pairs", ["pair_id"]).column("pair_id").to_pylist())
        self.retries: list[int] = []
        self.usage = Usage()
        self.refusals = RefusalShare("caption.refused_share_max", params.caption.refused_share_max)
        self.plan, self.renewed = Plan("caption"), pairs.slice(0, 0)
        self._setup: CaptionSetup | None = None
        self._canary_notes: list[str] = []

    def plan_renewal(self) -> Plan:
        """Which pairs of earlier batches are described again (tasks/caption/renewal.py)."""
        self.plan = plan_captions(self.params, self.store, self._load)
        if self.plan.units:
            self.renewed = renewed_pairs(self.store, self.plan)
        return self.plan

    def caption(self, piece: Chunk) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(captioned rows, dropped rows) of a chunk."""
        setup = self._load()
        pairs = self.renewed if self.plan.is_own(piece) else self.pairs
        chunk = pairs.slice(piece.rows.start, piece.rows.stop - piece.rows.start).to_pydict()
        image_ids = dict.fromkeys([*chunk["query_image_id"], *chunk["target_image_id"]])
        images = {image_id: self.store.read_image(image_id) for image_id in image_ids}
        drafts = caption_chunk(chunk, images, self.captions, setup, self.pair_ids)
        self.retries += [draft.retries for draft in drafts]
        self._record_usage(setup)
        self.refusals.add(len(drafts), [draft.refusals[-1] for draft in drafts if draft.refusals])
        batch = batch_name(self.params)
        accepted, dropped = split_drafts(drafts, setup.config.instructions_min)
        made_by = maker(setup)
        return [captioned_row(d, batch, setup) for d in accepted], [dropped_row(d, batch, made_by) for d in dropped]

    def notes(self) -> list[str]:
        """Sentences for the report; none where every chunk existed already and nothing is renewed."""
        is_first_part = self.part is None or self.part[0] == 1
        planned = [self.plan.sentence()] if is_first_part and wanted(self.params, "caption") else []
        if self._setup is None:
            return planned
        retries = f"{sum(self.retries)} retries for {len(self.retries)} pairs"
        return [*planned, *([retries] if self.retries else []), *self._canary_notes, self.usage.sentence()]

    def _load(self) -> CaptionSetup:
        if self._setup is None:
            self._setup, self._canary_notes = load_caption_setup(self.params, self.store.root, self.prompts)
            note_maker(self.store, "caption", maker(self._setup))
        return self._setup

    def _record_usage(self, setup: CaptionSetup) -> None:
        chunk = total_usage([setup.captioner.usage, setup.writer.usage])
        append_usage(self.store.root, "caption", self.part, chunk)
        self.usage = total_usage([self.usage, chunk])
        setup.captioner.usage, setup.writer.usage = Usage(), Usage()


def token_budget(config: CaptionConfig, part: Part | None) -> TokenBudget | None:
    """A part's share of `caption.budget_tokens`; None without a limit."""
    if config.budget_tokens is None:
        return None
    return TokenBudget(config.budget_tokens // (part[1] if part else 1), count_tokens)


def figures(
    captioned: Columns, dropped: Columns, report: StageReport, pair_ids: set[str], *, is_reversed: bool
) -> dict[str, float]:
    """Figures of the report.

    Args:
        captioned, dropped: the part's rows by column.
        report: with its counts `new` and `done`.
        pair_ids: of the batch's pairs; other rows are of reversed pairs.
        is_reversed: whether `caption.reverse` is on.
    Returns:
        yield: captioned pairs per pair; reversed_per_pair: captioned reversed pairs per pair, only with
        `caption.reverse`; instructions_mean: instructions per captioned row; requests_per_pair: requests per pair that
        is done.
    """
    rows = len(captioned["pair_id"])
    forward = sum(pair_id in pair_ids for pair_id in captioned["pair_id"])
    return {
        "yield": forward / report.new,
        **({"reversed_per_pair": (rows - forward) / report.new} if is_reversed else {}),
        "instructions_mean": sum(map(len, captioned["instructions"])) / max(1, rows),
        "requests_per_pair": count_requests(captioned, dropped) / max(1, report.done),
    }


def budget_notes(config: CaptionConfig, report: StageReport) -> list[str]:
    """A sentence where the budget ended the part before all pairs were done."""
    if report.done == report.new:
        return []
    return [
        f"caption.budget_tokens: {report.tokens} of {config.budget_tokens} tokens are spent, "
        f"{report.new - report.done} of {report.new} pairs are left; to go on, raise it and run the stage again before "
        "the version is made"
    ]


def count_earlier(store: Store, batch: str) -> int:
    """Captioned rows of other batches, a count."""
    return sum(other != batch for other in store.read_table("captioned", ["batch"]).column("batch").to_pylist())


def withdraw_captioned(store: Store, image_ids: Iterable[str], batch: str) -> int:
    """After a takedown, drop captioned rows of other batches whose pair is gone.

    Args:
        store: of the worktree.
        image_ids: images taken down; without any, nothing is read.
        batch: this run's, which is left alone.
    Returns:
        Rows dropped, a count.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not set(image_ids):
        return 0
    pairs = store.read_table("pairs", ["pair_id", "query_image_id", "target_image_id"])
    ends = zip(pairs.column("query_image_id").to_pylist(), pairs.column("target_image_id").to_pylist(), strict=True)
    reversed_ids = [stable_id(target, query) for query, target in ends]  # of rows that caption.reverse wrote
    known = pa.array({*pairs.column("pair_id").to_pylist(), *reversed_ids}, pa.string())
    count = 0
    for path in store.table_files("captioned"):
        table = store.read(path, "captioned")
        stays = pc.or_(pc.is_in(table.column("pair_id"), value_set=known), pc.equal(table.column("batch"), batch))
        if not pc.all(stays).as_py():
            count += table.num_rows - store.write(path, table.filter(stays), "captioned")
    return count
