"""Judge instructions: an MLLM's P(yes) for the target, the query itself and every mined negative decides what is kept.

Reads data/captioned, data/pairs, data/images and tasks/prompts/<caption.prompts>/judge.txt; writes
data/triplets/<batch>-<chunk>.parquet and data/dropped/judge/. A chunk's file is its own marker. Sources: MegaPairs,
arXiv:2412.14475 (the query image always a negative); UniME-V2, arXiv:2510.13515 (an MLLM judges negatives).

In this order, for one pair:

1. an instruction whose P(yes) for the target is below `threshold` goes (wrong_instruction);
2. one that the query image itself meets goes (query_fits);
3. a mined negative that meets an instruction which states the whole change is a false negative and goes
(false_negative); 4. an instruction of a style that states one change of several goes where a negative that is left
meets it (partial_fits); 5. a pair with fewer than `instructions_min` instructions left goes: wrong_target where step 1
took them, else ambiguous; 6. of the mined negatives that are left the first `negatives` stay: candidates behind them
stand in for false ones.

A candidate meets an instruction when its P(yes) reaches `negative_threshold`, or comes within `negative_margin` of the
target's. The scores are stored: training may use them as soft labels.

What `caption.reverse` wrote is judged like any pair: its query is the pair's target, its negatives are that query and
the pair's mined ones, and it becomes a triplet of its own.

Before its first chunk a part judges the judge (tasks/judge/labelled.py): one below its floors stops it. Each chunk's
triplets are looked at for shortcuts (tasks/judge/shortcuts.py): beyond `shortcut_share_max` they go (shortcut).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tasks.config import JudgeConfig, Params
from tasks.errors import ConfigError, DataError
from tasks.fingerprints.takedown import taken_down
from tasks.judge import labelled, shortcuts
from tasks.judge.questions import Question, load_judge, yes_probabilities
from tasks.judge.shortcuts import Finder
from tasks.judge.verdict import Verdict, decide
from tasks.models.llm.base import Captioner
from tasks.names import batch_name, stable_id
from tasks.prompts.styles import PARTIAL_STYLES, numbered
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.chunks import ChunkSpec, make_missing_chunks
from tasks.usage import Usage, append_usage, total_usage

PROMPTS = Path(__file__).parents[1] / "prompts"


def read_prompt(name: str) -> str:
    """The text of tasks/prompts/<name>/judge.txt.

    Raises:
        ConfigError: no such file, or no {instruction} in it.
    """
    path = PROMPTS / name / "judge.txt"
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such prompt; 'caption.prompts' names a folder of tasks/prompts: {sorted(p.name for p in PROMPTS.iterdir())}"
        )
    text = path.read_text(encoding="utf-8").rstrip("\n")
    if "{instruction}" not in text:
        raise ConfigError(f"{path}: expected the field {{instruction}}")
    return text


def judge_rows(
    rows: Sequence[Mapping[str, Any]], images: Mapping[str, Any], model: Captioner, template: str, config: JudgeConfig
) -> list[Verdict]:
    """A verdict per row (instructions, styles, query_image_id, target_image_id, negative_image_ids).

    The targets are asked about first; negatives only for instructions that passed.
    """
    first = [(r, n) for r, row in enumerate(rows) for n in range(len(row["instructions"]))]
    scores = yes_probabilities(
        model, [_question(rows[r], images, n, rows[r]["target_image_id"]) for r, n in first], template
    )
    target_yes: list[list[float]] = [[] for _ in rows]
    for (r, _), yes in zip(first, scores, strict=True):
        target_yes[r].append(yes)
    passed = [(r, n) for r, n in first if target_yes[r][n] >= config.threshold]
    second = [(r, n, k) for r, n in passed for k in range(len(rows[r]["negative_image_ids"]))]
    scores = yes_probabilities(
        model, [_question(rows[r], images, n, rows[r]["negative_image_ids"][k]) for r, n, k in second], template
    )
    negative_yes: list[dict[int, list[float]]] = [{} for _ in rows]
    for (r, n, _), yes in zip(second, scores, strict=True):
        negative_yes[r].setdefault(n, []).append(yes)
    return [
        decide(
            target_yes[r],
            negative_yes[r],
            is_partial=[numbered(s)[0] in PARTIAL_STYLES for s in row["styles"]],
            threshold=config.threshold,
            negative_threshold=config.negative_threshold,
            instructions_min=config.instructions_min,
            negative_margin=config.negative_margin,
            negatives_max=config.negatives,
        )
        for r, row in enumerate(rows)
    ]


def _question(row: Mapping[str, Any], images: Mapping[str, Any], instruction: int, candidate_id: str) -> Question:
    return Question(images[row["query_image_id"]], images[candidate_id], row["instructions"][instruction])


def triplet_row(row: Mapping[str, Any], verdict: Verdict, judge: Captioner, prompt_sha256: str = "") -> dict[str, Any]:
    """A row of table `triplets` of a kept pair."""
    instructions = [row["instructions"][n] for n in verdict.instructions]
    return {
        "triplet_id": stable_id(row["pair_id"], *instructions),
        "pair_id": row["pair_id"],
        "batch": row["batch"],
        "query_image_id": row["query_image_id"],
        "target_image_id": row["target_image_id"],
        "instructions": instructions,
        "styles": [row["styles"][n] for n in verdict.instructions],
        "negative_image_ids": [row["negative_image_ids"][k] for k in verdict.negatives],
        "judge_target": verdict.judge_target,
        "judge_negative": verdict.judge_negative,
        "mined_by": row["mined_by"],
        "description": row["description"],
        "captioner": row["captioner"],
        "captioner_revision": row["captioner_revision"],
        "prompt_sha256": row["prompt_sha256"],
        "judge": judge.name,
        "judge_revision": judge.revision,
        "tokens": row["prompt_tokens"] + row["output_tokens"],
        **{name: row.get(name) for name in ("language", "engine", "sampling", "seed")},
        "judge_prompt_sha256": prompt_sha256,
        "judge_engine": judge.engine,
        "found_by": None,
    }


def dropped_rows(row: Mapping[str, Any], verdict: Verdict) -> list[dict[str, Any]]:
    """Rows of table `dropped` of one pair: the pair if it goes (alone), else its instructions and false negatives."""
    texts = [
        {"instruction": row["instructions"][n], "style": row["styles"][n], "reason": reason, "p_yes": round(yes, 4)}
        for n, (reason, yes) in sorted(verdict.dropped.items())
    ]
    if verdict.reason is not None:
        return [_dropped(row, row["pair_id"], verdict.reason, {"instructions": texts})]
    out = [_dropped(row, f"{row['pair_id']}:{t['style']}", str(t["reason"]), t) for t in texts]
    for k, yes in sorted(verdict.false_negatives.items()):
        image_id = row["negative_image_ids"][k]
        out.append(
            _dropped(
                row, f"{row['pair_id']}:{image_id}", "false_negative", {"image_id": image_id, "p_yes": round(yes, 4)}
            )
        )
    return out


def _dropped(row: Mapping[str, Any], key: str, reason: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps(detail, ensure_ascii=False, sort_keys=True)
    return {"stage": "judge", "batch": row["batch"], "key": key, "reason": reason, "detail": text}


def joined(captioned: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Captioned rows with their pair's images, by pair id; rows of reversed pairs with the pair's images exchanged.

    Raises:
        DataError: a captioned row has no pair.
    """
    by_id = {p["pair_id"]: p for p in pairs}
    if any(c["pair_id"] not in by_id for c in captioned):
        by_id = {r["pair_id"]: r for r in map(reversed_pair, pairs)} | by_id
    if missing := [c["pair_id"] for c in captioned if c["pair_id"] not in by_id]:
        raise DataError(
            f"captioned: {len(missing)} rows have no pair of the same batch, the first {missing[0]}; run select and caption again for this batch"
        )
    return sorted(({**by_id[c["pair_id"]], **c} for c in captioned), key=lambda row: str(row["pair_id"]))


def reversed_pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The pair that leads from a pair's target to its query: its own id, its query image as negative 0, the same mined
    negatives after it.
    """
    query, target = pair["target_image_id"], pair["query_image_id"]
    ends = {"pair_id": stable_id(query, target), "query_image_id": query, "target_image_id": target}
    return {**pair, **ends, "negative_image_ids": [query, *pair["negative_image_ids"][1:]]}


def run(params: Params, store: Store, part: tuple[int, int] | None = None) -> StageReport:
    """Judge the batch's captioned pairs, or the i-th of n parts of their chunks."""
    config, batch = params.judge, batch_name(params)
    template = read_prompt(params.caption.prompts)
    if part is None or part[0] == 1:
        withdraw_triplets(store, taken_down(params, store))
    rows = joined(
        store.read_table("captioned", batch=batch).to_pylist(), store.read_table("pairs", batch=batch).to_pylist()
    )
    earlier = store.read_table("triplets", ["batch", "query_image_id", "target_image_id"]).to_pylist()
    seen = {(t["query_image_id"], t["target_image_id"]) for t in earlier if t["batch"] != batch}
    is_again = [_is_seen(row, seen) for row in rows]
    report = StageReport("judge", reused=0 if part and part[0] > 1 else sum(t["batch"] != batch for t in earlier))

    looked: list[str] = []  # how the judge stood, where it was looked at
    spent: list[Usage] = []  # of this try
    prompt_sha256 = hashlib.sha256(template.encode()).hexdigest()

    @cache
    def model() -> Captioner:
        judge = load_judge(params, store.root)
        if config.labelled:
            found = labelled.measured(judge, template, config, Path(config.labelled), store)
            labelled.require(found, config, judge.name)
            looked.append(
                f"judge: right on {found.accuracy:.1%} of {found.questions} labelled questions, false yes {found.false_yes:.1%}, AUC {found.auc:.3f}"
            )
        return judge

    find = Finder(params, store, [i for row in rows for i in (row["query_image_id"], row["target_image_id"])])

    def make(cut: slice) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        fresh = [row for row, again in zip(rows[cut], is_again[cut], strict=True) if not again]
        copies = [row for row, again in zip(rows[cut], is_again[cut], strict=True) if again]
        wanted = dict.fromkeys(
            i for row in fresh for i in (row["query_image_id"], row["target_image_id"], *row["negative_image_ids"])
        )
        verdicts = judge_rows(fresh, {i: store.read_image(i) for i in wanted}, model(), template, config)
        left = [
            _dropped(
                row, row["pair_id"], "duplicate", {"query": row["query_image_id"], "target": row["target_image_id"]}
            )
            for row in copies
        ]
        for row, verdict in zip(fresh, verdicts, strict=True):
            left += dropped_rows(row, verdict)
        kept = [
            triplet_row(row, verdict, model(), prompt_sha256)
            for row, verdict in zip(fresh, verdicts, strict=True)
            if verdict.reason is None
        ]
        for triplet, found in zip(kept, find(kept), strict=True):
            triplet["found_by"] = found
        if config.shortcut_share_max is not None:
            beyond = set(shortcuts.beyond_share([t["found_by"] for t in kept], config.shortcut_share_max))
            left += [
                _dropped(t, t["pair_id"], "shortcut", {"found_by": t["found_by"], "texts": t["instructions"]})
                for n, t in enumerate(kept)
                if n in beyond
            ]
            kept = [t for n, t in enumerate(kept) if n not in beyond]
        append_usage(store.root, "judge", part, model().spent)
        spent.append(model().spent)
        model().spent = Usage()
        return kept, left

    spec = ChunkSpec("triplets", batch, len(rows), config.chunk_pairs, part)
    done, left = make_missing_chunks(store, report, spec, make)
    report.figures = figures(
        report.new, done["judge_target"], done["negative_image_ids"], left["reason"].count("false_negative")
    )
    report.figures |= shortcuts.figures(done["found_by"])
    if config.negatives is not None and done["pair_id"]:
        first = {row["pair_id"]: set(row["negative_image_ids"][: config.negatives + 1]) for row in rows}
        stood_in = sum(
            i not in first[p] for p, ids in zip(done["pair_id"], done["negative_image_ids"], strict=True) for i in ids
        )
        report.figures["negatives_replaced"] = stood_in / len(done["pair_id"])
    report.notes += looked
    if spent:
        report.notes.append(total_usage(spent).sentence())
    return report


def _is_seen(row: Mapping[str, Any], seen: set[tuple[str, str]]) -> bool:
    """Whether the row's (query, target) is among the earlier ones; from now on it is."""
    key = (row["query_image_id"], row["target_image_id"])
    if key in seen:
        return True
    seen.add(key)
    return False


def figures(
    pairs: int, judge_target: Sequence[Sequence[float]], negatives: Sequence[Sequence[str]], false_negatives: int
) -> dict[str, float]:
    """yield: triplets a pair; yes_mean: mean P(yes) of kept instructions; negatives_mean: mined negatives a triplet;
    false_negative_share: of the kept triplets' mined negatives, those taken out. Empty without pairs."""
    if not pairs:
        return {}
    scores = [p for row in judge_target for p in row]
    mined = sum(len(n) - 1 for n in negatives)
    return {
        "yield": len(judge_target) / pairs,
        "yes_mean": sum(scores) / max(1, len(scores)),
        "instructions_mean": len(scores) / max(1, len(judge_target)),
        "negatives_mean": mined / max(1, len(judge_target)),
        "false_negative_share": false_negatives / max(1, mined + false_negatives),
    }


log = logging.getLogger(__name__)


def withdraw_triplets(store: Store, ids: Iterable[str]) -> tuple[int, int]:
    """Drop triplets of the ids, and the ids' places as negative in others: a negative that no judge saw does not take
    them.

    Returns:
        triplets withdrawn, and places.
    """
    gone = set(ids)
    rows = places = 0
    if not gone:
        return 0, 0
    for path in store.table_files("triplets"):
        before = store.read(path, "triplets").to_pylist()
        after = []
        for row in before:
            if gone & {row["query_image_id"], row["target_image_id"]}:
                rows += 1
                continue
            kept = [n for n, i in enumerate(row["negative_image_ids"]) if i not in gone]
            places += len(row["negative_image_ids"]) - len(kept)
            after.append({**row, **{c: [row[c][n] for n in kept] for c in ("negative_image_ids", "judge_negative")}})
        if after != before:
            store.write(path, after, "triplets")
    log.info("takedown: %d triplets withdrawn, %d places as negative in others", rows, places)
    return rows, places
