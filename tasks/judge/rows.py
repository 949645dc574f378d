"""Rows that judging reads (captioned rows joined with their pairs) and writes (tables `triplets` and `dropped`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from tasks.config.public import public_name
from tasks.errors import DataError
from tasks.judge.verdict import Verdict
from tasks.models.llm.base import Captioner
from tasks.names import stable_id

if TYPE_CHECKING:
    import pyarrow as pa


Ends = tuple[str, str]  # ids of the query image and of the target image


class BatchPairs:
    """The pairs of a batch, and the reversed pairs that `caption.reverse` made of them."""

    def __init__(self, table: pa.Table) -> None:
        """`table`: rows of table `pairs`; it stays in Arrow's memory, only joined rows become Python objects."""
        self.table = table
        self._reversed: dict[str, int] | None = None  # id of the reversed pair -> the pair's row
        self._ends: set[Ends] | None = None

    def image_ids(self) -> list[str]:
        """Ids of all query and target images, each once."""
        ids = [self.table.column(name).to_pylist() for name in ("query_image_id", "target_image_id")]
        return list(dict.fromkeys([*ids[0], *ids[1]]))

    def join(self, captioned: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Captioned rows with the images of their pair, by pair id; rows of reversed pairs with the images exchanged.

        Raises:
            DataError: a captioned row has no pair.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array({row["pair_id"] for row in captioned}, pa.string())
        found = self.table.filter(pc.is_in(self.table.column("pair_id"), value_set=wanted)).to_pylist()
        by_id = {pair["pair_id"]: pair for pair in found}
        if others := {row["pair_id"] for row in captioned} - set(by_id):
            places = self._reversed_rows()
            rows = sorted(places[pair_id] for pair_id in others if pair_id in places)
            by_id |= {pair["pair_id"]: pair for pair in map(reverse_pair, self.table.take(rows).to_pylist())}
        if missing := [row["pair_id"] for row in captioned if row["pair_id"] not in by_id]:
            raise DataError(
                f"captioned: {len(missing)} rows have no pair of the same batch, the first {missing[0]}; run select "
                "and caption again for this batch"
            )
        return sorted(({**by_id[row["pair_id"]], **row} for row in captioned), key=lambda row: str(row["pair_id"]))

    def has_forward(self, row: Mapping[str, Any]) -> bool:
        """Whether a joined row is of a reversed pair whose direction select made as a pair of its own."""
        pair_id, ends = str(row["pair_id"]), (row["query_image_id"], row["target_image_id"])
        if self._reversed is None or pair_id not in self._reversed:
            return False
        if self._ends is None:
            self._ends = set(self._all_ends())
        return ends in self._ends

    def _reversed_rows(self) -> dict[str, int]:
        if self._reversed is None:
            own = set(self.table.column("pair_id").to_pylist())
            ids = {stable_id(target, query): n for n, (query, target) in enumerate(self._all_ends())}
            self._reversed = {pair_id: n for pair_id, n in ids.items() if pair_id not in own}
        return self._reversed

    def _all_ends(self) -> list[Ends]:
        columns = [self.table.column(name).to_pylist() for name in ("query_image_id", "target_image_id")]
        return list(zip(*columns, strict=True))


def reverse_pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The pair that leads from a pair's target to its query.

    It has an id of its own, its query image as negative 0, and the same mined negatives after it.
    """
    query, target = pair["target_image_id"], pair["query_image_id"]
    ends = {"pair_id": stable_id(query, target), "query_image_id": query, "target_image_id": target}
    return {**pair, **ends, "negative_image_ids": [query, *pair["negative_image_ids"][1:]]}


def mark_duplicates(rows: Sequence[Mapping[str, Any]], known: Set[Ends], pairs: BatchPairs) -> list[bool]:
    """Per row whether its (query, target) is among `known`, or is a pair of its own where the row is a reversed one.

    A batch has no two pairs with the same ends, so that no row has to be compared with those of other chunks.
    """
    ends = [(row["query_image_id"], row["target_image_id"]) for row in rows]
    return [pair in known or pairs.has_forward(row) for pair, row in zip(ends, rows, strict=True)]


def maker(judge: Captioner, prompt_sha256: str) -> dict[str, str]:
    """Who judges: model, revision and prompt, by column of table `triplets`."""
    name, revision = public_name(judge.name), judge.revision
    return {"judge": name, "judge_revision": revision, "judge_prompt_sha256": prompt_sha256}


def triplet_row(row: Mapping[str, Any], verdict: Verdict, judge: Captioner, prompt_sha256: str = "") -> dict[str, Any]:
    """A row of table `triplets` for a kept pair; `found_by` is filled in later."""
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
        "tokens": row["prompt_tokens"] + row["output_tokens"],
        **{name: row.get(name) for name in ("language", "engine", "sampling", "seed")},
        **maker(judge, prompt_sha256),
        "judge_engine": judge.engine,
        "found_by": None,
    }


def verdict_rows(row: Mapping[str, Any], verdict: Verdict, made_by: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of table `dropped` for one judged pair: the pair alone where it is dropped, with the judge that dropped it
    (`made_by`, by column), else its instructions and false negatives.
    """
    texts: list[dict[str, Any]] = [
        {"instruction": row["instructions"][n], "style": row["styles"][n], "reason": reason, "p_yes": round(yes, 4)}
        for n, (reason, yes) in sorted(verdict.dropped.items())
    ]
    for n, refusal in sorted(verdict.refused_instructions.items()):
        text = {"instruction": row["instructions"][n], "style": row["styles"][n]}
        texts.append({**text, "reason": refusal.reason, "words": refusal.detail})
    if verdict.reason is not None:
        return [dropped_row(row, row["pair_id"], verdict.reason, {"instructions": texts, "maker": dict(made_by)})]
    dropped = [dropped_row(row, f"{row['pair_id']}:{t['style']}", str(t["reason"]), t) for t in texts]
    for k, refusal in sorted(verdict.refused_negatives.items()):
        image_id = row["negative_image_ids"][k]
        detail = {"image_id": image_id, "words": refusal.detail}
        dropped.append(dropped_row(row, f"{row['pair_id']}:{image_id}", refusal.reason, detail))
    for k, yes in sorted(verdict.false_negatives.items()):
        image_id = row["negative_image_ids"][k]
        detail = {"image_id": image_id, "p_yes": round(yes, 4)}
        dropped.append(dropped_row(row, f"{row['pair_id']}:{image_id}", "false_negative", detail))
    return dropped


def duplicate_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of table `dropped` for a pair whose images make a triplet already."""
    detail = {"query": row["query_image_id"], "target": row["target_image_id"]}
    return dropped_row(row, row["pair_id"], "duplicate", detail)


def shortcut_row(triplet: Mapping[str, Any], made_by: Mapping[str, str]) -> dict[str, Any]:
    """A row of table `dropped` for a triplet that one modality is enough for."""
    detail = {"found_by": triplet["found_by"], "texts": triplet["instructions"], "maker": dict(made_by)}
    return dropped_row(triplet, triplet["pair_id"], "shortcut", detail)


def dropped_row(row: Mapping[str, Any], key: str, reason: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    """A row of table `dropped`; `detail` is stored as JSON."""
    text = json.dumps(detail, ensure_ascii=False, sort_keys=True)
    return {"stage": "judge", "batch": row["batch"], "key": key, "reason": reason, "detail": text}
