"""Judge instructions: an MLLM's P(yes) for target, query image and mined negatives decides what becomes a triplet.

Reads data/captioned, data/pairs, data/images, data/shards, the stored vectors of encoder `semantic`, and the prompt
judge.txt of the set `caption.prompts`. Writes one file for each chunk file of stage caption, under the same number,
data/triplets/<batch>-<chunk>.parquet and data/dropped/judge/; a file is its own marker, existing ones are skipped. So
part i of n needs part i of n of caption and nothing else. At most `judge.chunk_pairs` captioned rows are judged at
once. Sources: MegaPairs, arXiv:2412.14475 (the query image is always a negative); UniME-V2, arXiv:2510.13515 (an MLLM
judges negatives).

The judge is asked whether a candidate image is what an instruction makes of the query image: first about the target
(`judge.calibration` makes its P(yes) comparable over kinds of change, tasks/judge/calibration.py), then, for
instructions that pass `judge.threshold`, about the negatives; about one that an instruction has taken out it is not
asked again (tasks/judge/questions.py, docs/decisions/0187). tasks/judge/verdict.py lists the six steps from these
answers to a verdict; reasons are wrong_instruction, query_fits, partial_fits (instructions), false_negative
(negatives), wrong_target and ambiguous (pairs). A pair whose images make a triplet already is dropped (duplicate). The
scores are stored: training may use them as soft labels. A question that the judge's server or processor refuses leaves
out its instruction or its negative with the server's words (request_refused, bad_image); more such pairs than
`judge.refused_share_max` stop the part.

Before its first chunk a part measures the judge on `judge.labelled` (tasks/judge/labelled.py): one that is not good
enough stops it. In each chunk's triplets shortcuts are detected (tasks/judge/shortcuts.py); those beyond
`judge.shortcut_share_max` are dropped (shortcut).

The first part also applies what people decided about triplets of earlier versions (tasks/judge/reviewed.py), and makes
triplets of the rejected pairs that they judged right (tasks/judge/restored.py); a takedown by hand, which asks no
model, leaves these to the next run.

Pairs of earlier batches that captioning described again are judged again. With `renew.judge` captioned rows of earlier
batches are judged again whose triplet, or whose rejection, another judge or prompt made: the oldest first, at most
`renew.judge.budget` of them (tasks/renewal, docs/decisions/0153). What they were before goes then; a published triplet
that changed or went is counted (renewed).

Reversed pairs that `caption.reverse` wrote are judged like any pair: the query is the pair's target, the negatives are
that query and the pair's mined negatives; each becomes a triplet of its own.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.config import Params
from tasks.fingerprints.takedown import taken_down, withdraw_dropped
from tasks.judge.labelled import measure_judge, require_quality
from tasks.judge.licences import Terms, keep_negatives, licence_columns, read_terms
from tasks.judge.questions import Calibrator, judge_pairs, load_judge, verdict_rules
from tasks.judge.renewal import JudgeRenewal
from tasks.judge.restored import Restorer, rejected_and_right
from tasks.judge.reviewed import RESTORED, apply_verdicts, sentences, withdrawn_ends
from tasks.judge.rows import (
    BatchPairs,
    Ends,
    duplicate_row,
    maker,
    mark_duplicates,
    shortcut_row,
    triplet_row,
    verdict_rows,
)
from tasks.judge.shortcuts import ShortcutDetector, excess_shortcuts, shortcut_figures
from tasks.models.llm.base import Captioner
from tasks.models.llm.refusals import RefusalShare
from tasks.names import batch_name
from tasks.prompts.prompt_set import read_prompt
from tasks.reasons import REVIEWED
from tasks.records import StageReport
from tasks.renewal.makers import note_maker
from tasks.renewal.plan import wanted
from tasks.store import Store
from tasks.store.chunks import Chunk, ChunkSpec, Columns, file_chunks, make_missing_chunks
from tasks.usage import Usage, append_usage, total_usage

log = logging.getLogger(__name__)

Part = tuple[int, int]  # (i, n): the i-th of n parts, from 1
Rows = list[dict[str, Any]]


def run(params: Params, store: Store, part: Part | None = None) -> StageReport:
    """Judge the batch's captioned pairs, or the i-th of n parts of their chunks."""
    config, batch = params.judge, batch_name(params)
    template = read_prompt(params.caption.prompts, "judge")
    is_first_part = part is None or part[0] == 1
    if is_first_part:
        withdraw_triplets(store, taken_down(params, store))
        withdraw_dropped(params, store, "judge", "pair")
    earlier = earlier_triplets(store, batch)
    report = StageReport("judge", reused=len(earlier) if is_first_part else 0)
    # read by all parts, so that none makes a second triplet of such a pair; a takedown by hand asks no model
    right = [] if params.open_run.takedown else rejected_and_right(store, batch)
    by_people = {*withdrawn_ends(store), *((r["query_image_id"], r["target_image_id"]) for r in right)}
    worker = ChunkWorker(params, store, part, template, earlier | dict.fromkeys(by_people, ""))
    pairs, renewal = worker.pairs, worker.renewal
    restored = worker.restore(right) if is_first_part else 0
    reviewed = apply_verdicts(store, batch, is_takedown=bool(params.open_run.takedown)) if is_first_part else {}
    chunks = [*file_chunks(store, "captioned", batch, part), *renewal.plan.chunks(part)]
    judged, dropped = make_missing_chunks(store, report, ChunkSpec("triplets", batch, chunks), worker.judge)
    renewal.remove_old()
    report.figures = figures(report.new, judged, dropped["reason"].count("false_negative"))
    report.figures |= shortcut_figures(judged["found_by"])
    if config.negatives is not None and judged["pair_id"]:
        report.figures["negatives_replaced"] = replaced_per_triplet(pairs, judged, config.negatives)
    report.dropped |= {reason: reviewed[reason] for reason in REVIEWED if reviewed.get(reason)}
    report.notes += [*worker.notes(), *sentences({RESTORED: restored, **reviewed})]
    if restored:
        report.figures["reviewed_right"] = float(restored)
    return report


def earlier_triplets(store: Store, batch: str) -> dict[Ends, str]:
    """(query, target) of every triplet of other batches -> its pair's id."""
    columns = ["batch", "query_image_id", "target_image_id", "pair_id"]
    batches, queries, targets, pair_ids = store.read_table("triplets", columns).to_pydict().values()
    rows = zip(batches, queries, targets, pair_ids, strict=True)
    return {(query, target): pair_id for of_batch, query, target, pair_id in rows if of_batch != batch}


class ChunkWorker:
    """Judges the chunks of one part; loads and measures the judge when the first chunk needs it.

    Attributes:
        usage: what this run's questions took.
        refusals: pairs with a question that the judge's server or processor refused.
    """

    def __init__(
        self,
        params: Params,
        store: Store,
        part: Part | None,
        template: str,
        known: Mapping[Ends, str],
    ) -> None:
        """Nothing is loaded before the first chunk, unless `renew.judge` asks who the judge is.

        Args:
            params: the run's.
            store: of the worktree.
            part: (i, n), or None for the whole.
            template: the prompt, with {instruction}.
            known: (query, target) of earlier triplets -> their pair's id; '' for those that people had withdrawn.
        """
        self.params, self.store, self.part, self.template, self.known = params, store, part, template, known
        self.prompt_sha256 = hashlib.sha256(template.encode()).hexdigest()
        self.calibrator = Calibrator.load(params)
        self.usage = Usage()
        self.refusals = RefusalShare("judge.refused_share_max", params.judge.refused_share_max)
        self._model: Captioner | None = None
        self._metric_notes: list[str] = []
        self._known_terms: Terms | None = None
        self.renewal = JudgeRenewal(params, store, lambda: maker(self._load(), self.prompt_sha256))
        self.pairs = BatchPairs(self.renewal.pairs(store.read_table("pairs", batch=batch_name(params))))
        self.detector = ShortcutDetector(params, store, self.pairs.image_ids())

    def judge(self, chunk: Chunk) -> tuple[Rows, Rows]:
        """(triplets, dropped rows) of a chunk file of stage caption, or of a chunk of the renewal's plan."""
        model = self._load()
        rows = self.pairs.join(self._captioned(chunk))
        known = self.renewal.without_own(self.known, rows) if self.renewal.is_renewed(chunk) else self.known.keys()
        is_duplicate = mark_duplicates(rows, known, self.pairs)
        dropped = [duplicate_row(row) for row, is_known in zip(rows, is_duplicate, strict=True) if is_known]
        rows = [row for row, is_known in zip(rows, is_duplicate, strict=True) if not is_known]
        triplets: Rows = []
        at_once = self.params.judge.chunk_pairs
        for start in range(0, len(rows), at_once):
            self._judge_rows(rows[start : start + at_once], model, triplets, dropped)
        triplets, shortcuts = self._drop_shortcuts(triplets, maker(model, self.prompt_sha256))
        append_usage(self.store.root, "judge", self.part, model.usage)
        self.usage = total_usage([self.usage, model.usage])
        model.usage = Usage()
        return triplets, dropped + shortcuts

    def _captioned(self, chunk: Chunk) -> Rows:
        if self.renewal.plan.is_own(chunk):
            return self.renewal.captioned(chunk)
        path = self.store.table_path("captioned", batch_name(self.params), chunk.number)
        return self.store.read(path, "captioned").to_pylist()  # type: ignore[no-any-return]

    def _judge_rows(self, rows: Rows, model: Captioner, triplets: Rows, dropped: Rows) -> None:
        """Judge rows whose images fit into memory together; adds to `triplets` and `dropped`."""
        config = self.params.judge
        verdicts = judge_pairs(rows, self._images(rows), model, self.template, config, self.calibrator)
        self.refusals.add(len(rows), [v.refusals[0].detail for v in verdicts if v.refusals])
        for row, verdict in zip(rows, verdicts, strict=True):
            dropped += verdict_rows(row, verdict, maker(model, self.prompt_sha256))
            if verdict.reason is None:
                triplet = triplet_row(row, verdict, model, self.prompt_sha256)
                triplets.append({**triplet, **licence_columns(triplet, self._terms())})

    def restore(self, rows: Rows) -> int:
        """Make triplets of rejected pairs that people judged right, rows of `rejected_and_right`; their count."""
        restorer = Restorer(
            self.store,
            batch_name(self.params),
            load=self._load,
            template=self.template,
            prompt_sha256=self.prompt_sha256,
            fits=self.calibrator.probability,
            rules=verdict_rules(self.params.judge),
        )
        count = restorer.restore(rows)
        if self._model is not None:
            append_usage(self.store.root, "judge", self.part, self._model.usage)
            self.usage, self._model.usage = total_usage([self.usage, self._model.usage]), Usage()
        return count

    def notes(self) -> list[str]:
        """Sentences for the report; none where every chunk existed already and nothing is renewed."""
        is_first_part = self.part is None or self.part[0] == 1
        planned = [self.renewal.plan.sentence()] if is_first_part and wanted(self.params, "judge") else []
        return planned + ([*self._metric_notes, self.usage.sentence()] if self._model is not None else [])

    def _load(self) -> Captioner:
        if self._model is None:
            model, config = load_judge(self.params, self.store.root), self.params.judge
            if config.labelled:
                metrics = measure_judge(model, self.template, config, self.store, self.calibrator)
                require_quality(metrics, config, model.name)
                self._metric_notes.append(metrics.sentence())
            self._model = model
            note_maker(self.store, "judge", maker(model, self.prompt_sha256))
        return self._model

    def _terms(self) -> Terms:
        """Licence and attribution of the batch's images, read once."""
        if self._known_terms is None:
            self._known_terms = read_terms(self.store, self.pairs.table)
        return self._known_terms

    def _images(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ids = [(row["query_image_id"], row["target_image_id"], *row["negative_image_ids"]) for row in rows]
        return {i: self.store.read_image(i) for i in dict.fromkeys(i for row_ids in ids for i in row_ids)}

    def _drop_shortcuts(self, triplets: Rows, made_by: Mapping[str, str]) -> tuple[Rows, Rows]:
        """Fill in `found_by`; (triplets that stay, dropped rows of those beyond `judge.shortcut_share_max`)."""
        for triplet, modes in zip(triplets, self.detector.find(triplets), strict=True):
            triplet["found_by"] = modes
        share_max = self.params.judge.shortcut_share_max
        if share_max is None:
            return triplets, []
        excess = set(excess_shortcuts([t["found_by"] for t in triplets], share_max))
        dropped = [shortcut_row(t, made_by) for n, t in enumerate(triplets) if n in excess]
        return [t for n, t in enumerate(triplets) if n not in excess], dropped


def figures(pairs: int, triplets: Columns, false_negatives: int) -> dict[str, float]:
    """Figures of the report; empty without pairs.

    Args:
        pairs: judged pairs, a count.
        triplets: by column.
        false_negatives: negatives taken out of the kept pairs, a count.
    Returns:
        yield: triplets per pair; yes_mean: mean P(yes) of kept instructions; instructions_mean: instructions per
        triplet; negatives_mean: mined negatives per triplet; false_negative_share: of the triplets' mined negatives
        those taken out.
    """
    if not pairs:
        return {}
    scores = [p for row in triplets["judge_target"] for p in row]
    count = len(triplets["judge_target"])
    mined = sum(len(image_ids) - 1 for image_ids in triplets["negative_image_ids"])
    return {
        "yield": count / pairs,
        "yes_mean": sum(scores) / max(1, len(scores)),
        "instructions_mean": len(scores) / max(1, count),
        "negatives_mean": mined / max(1, count),
        "false_negative_share": false_negatives / max(1, mined + false_negatives),
    }


def replaced_per_triplet(pairs: BatchPairs, triplets: Columns, negatives: int) -> float:
    """Negatives per triplet that replace a false negative: those not among their pair's first `negatives`."""
    rows = pairs.join([{"pair_id": pair_id} for pair_id in triplets["pair_id"]])
    first = {row["pair_id"]: set(row["negative_image_ids"][: negatives + 1]) for row in rows}
    ids_of_triplets = zip(triplets["pair_id"], triplets["negative_image_ids"], strict=True)
    replaced = sum(image_id not in first[pair_id] for pair_id, image_ids in ids_of_triplets for image_id in image_ids)
    return replaced / len(triplets["pair_id"])


def withdraw_triplets(store: Store, image_ids: Iterable[str]) -> tuple[int, int]:
    """After a takedown, drop triplets of the images, and the images from the negatives of other triplets.

    A taken-down negative is not replaced: the judge saw no other candidate for its place.

    Returns:
        (triplets dropped, negatives dropped), counts.
    """
    withdrawn = set(image_ids)
    triplets = negatives = 0
    if not withdrawn:
        return 0, 0
    for path in store.table_files("triplets"):
        before = store.read(path, "triplets").to_pylist()
        after = []
        for row in before:
            if withdrawn & {row["query_image_id"], row["target_image_id"]}:
                triplets += 1
                continue
            stays = [n for n, image_id in enumerate(row["negative_image_ids"]) if image_id not in withdrawn]
            negatives += len(row["negative_image_ids"]) - len(stays)
            after.append(keep_negatives(row, stays))
        if after != before:
            store.write(path, after, "triplets")
    log.info("takedown: %d triplets withdrawn, %d negatives withdrawn from others", triplets, negatives)
    return triplets, negatives
