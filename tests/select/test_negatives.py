"""Hard negatives: the retrieved images nearest to the target, without copies, by the rules."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.select.candidates import Candidates, MinedRows
from tasks.select.negatives import NegativeRules, RetrievedRows, Vectors, hard_negatives
from tests.support.candidates import Ranks, on_circle, table_of


def negatives_of(
    ranks: Ranks,
    retrieved: dict[str, dict[str, list[str]]],
    tables: dict[str, tuple[list[str], np.ndarray]],
    limits: tuple[float, float, float],
    **more: Any,
) -> tuple[list[tuple[str, float]], list[str]]:
    """`hard_negatives` of the one pair of the first two ids: (id, similarity) by preference, and the ids left out as
    copies.
    """
    ids = next(iter(tables.values()))[0]
    names = pa.array(
        sorted({*ids, *(i for of in retrieved.values() for q, ts in of.items() for i in (q, *ts))}), pa.string()
    )
    number = {name: n for n, name in enumerate(names.to_pylist())}
    c = table_of([(ids[0], ids[1], ranks)])
    c = Candidates(names, *(np.array([number[i]], np.int32) for i in ids[:2]), c.ranks, c.reverse_ranks)
    looked_up = {}
    for encoder, of in retrieved.items():
        queries, targets = (
            np.array(x, np.int32)
            for x in zip(*((number[q], number[t]) for q, ts in of.items() for t in ts), strict=True)
        )
        looked_up[encoder] = RetrievedRows(
            MinedRows(queries, targets, np.zeros(len(queries), np.float32), np.zeros(len(queries), np.int32)),
            len(names),
        )
    vectors = Vectors(names, {e: (pa.array(of, pa.string()), rows) for e, (of, rows) in tables.items()})
    _, found = hard_negatives(c, looked_up, vectors, NegativeRules(np.array([*limits, np.inf]), **more))
    assert not found.pairs.any() and not found.copy_pairs.any()
    names_of = names.to_pylist()
    return [(names_of[i], s) for i, s in zip(found.images.tolist(), found.similarities.tolist(), strict=True)], [
        names_of[i] for i in found.copies.tolist()
    ]


def test_negatives_are_the_retrieved_nearest_to_the_target_but_no_copy_of_it():
    ids = ["query", "target", "copy", "near", "far", "further"]
    retrieved = {
        "semantic": {"query": ["target", "copy", "far"], "target": ["query", "near", "further", "copy"]},
        "caption": {"query": ["unasked"]},
    }
    tables = {"semantic": (ids, on_circle(0, 40, 41, 60, 80, 110))}
    negatives, copies = negatives_of({"semantic": 1}, retrieved, tables, (0.99, 0.99, 0.99), count=2)
    assert copies == ["copy"]
    assert [i for i, _ in negatives] == ["near", "far"]
    assert [s for _, s in negatives] == pytest.approx([np.cos(np.deg2rad(20)), np.cos(np.deg2rad(40))], abs=2e-3)


def test_the_margin_is_a_multiple_of_the_distance_of_query_and_target_and_copies_of_the_query_are_left_out():
    ids = ["query", "target", "twin", "near", "far"]
    tables = {"semantic": (ids, on_circle(0, 40, 1, 60, 85)), "pattern": (ids, on_circle(0, 40, 80, 60, 85))}

    def mined(**settings: object) -> tuple[list[str], list[str]]:
        negatives, copies = negatives_of(
            {"semantic": 0},
            {"semantic": {"query": ["twin", "near", "far"]}},
            tables,
            (0.99, 0.99, 0.99),
            count=5,
            **settings,
        )
        return [i for i, _ in negatives], copies

    assert mined() == (["near", "twin", "far"], [])
    assert mined(allow_query_copies=False) == (["near", "far"], ["twin"])
    # 1 - cos 20 is a quarter of 1 - cos 40, 1 - cos 39 nearly the whole
    assert mined(margin=0.5) == (["twin", "far"], ["near"])
    assert mined(margin=1.0) == (["far"], ["near", "twin"])
    assert mined(margin=0.2) == mined()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.floats(0, 1.5))
def test_the_margin_holds_for_every_negative(seed: int, margin: float):
    rng = np.random.default_rng(seed)
    ids = [f"{i:02d}" for i in range(20)]
    tables = {e: (ids, on_circle(*rng.uniform(0, 180, 20))) for e in ("semantic", "pattern")}
    retrieved, limits = {"semantic": {"00": ids[2:12]}, "pattern": {"01": ids[8:]}}, (0.99, 0.98, 1.0)
    negatives, copies = negatives_of(
        {"semantic": 0, "pattern": 1}, retrieved, tables, limits, count=30, margin=margin, allow_query_copies=False
    )
    assert {i for i, _ in negatives} | set(copies) == set(ids[2:]) and not {i for i, _ in negatives} & set(copies)

    def cosine(encoder: str, a: str, b: str) -> float:
        rows = tables[encoder][1].astype(np.float64)
        return float(rows[ids.index(a)] @ rows[ids.index(b)])

    for i, similarity in negatives:
        encoder = "semantic" if i in ids[2:12] else "pattern"
        assert (
            similarity == pytest.approx(cosine(encoder, i, "01"), abs=1e-9)
            and 1 - similarity >= margin * (1 - cosine(encoder, "00", "01")) - 1e-9
        )
        for limit, e in zip(limits, ("semantic", "pattern"), strict=False):
            assert max(cosine(e, i, "00"), cosine(e, i, "01")) < limit


def test_encoders_alternate_and_an_image_belongs_to_the_first_that_proposes_it():
    ids = ["query", "target", "a", "b", "c"]
    tables = {"semantic": (ids, on_circle(0, 40, 60, 80, 100)), "pattern": (ids, on_circle(0, 40, 90, 45, 50))}
    retrieved = {"semantic": {"query": ["a", "b"]}, "pattern": {"target": ["b", "c"]}}
    negatives, _ = negatives_of({"semantic": 0, "pattern": 0}, retrieved, tables, (2, 2, 2), count=None)
    assert [i for i, _ in negatives] == ["a", "c", "b"]  # a and b are the semantic's, c the pattern's; b was its second
    assert dict(negatives)["b"] == pytest.approx(np.cos(np.deg2rad(40)), abs=2e-3)
