"""InfoNCE against a loop over the distinct pictures of the batch: the loop is the specification."""

import math

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.loss import excluded, info_nce


def naive(queries, candidates, ids, positive, temperature) -> float:
    total = 0.0
    for n, row in enumerate(queries.tolist()):
        shown: dict[int, int] = {}
        for k, picture in enumerate(ids):
            shown.setdefault(picture, k)  # of equal pictures the first counts
        shown[ids[positive[n]]] = positive[n]  # but the positive is the positive
        score = {picture: sum(a * b for a, b in zip(row, candidates[k].tolist(), strict=True)) / temperature for picture, k in shown.items()}
        total += math.log(sum(math.exp(s) for s in score.values())) - score[ids[positive[n]]]
    return total / len(queries)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 10**6))
def test_it_is_the_loop(b: int, c: int, seed: int):
    torch.manual_seed(seed)
    ids = torch.randint(0, 4, (c,))
    positive, query = torch.randint(0, c, (b,)), torch.randint(0, c, (b,))
    queries, candidates = F.normalize(torch.randn(b, 6), dim=-1), F.normalize(torch.randn(c, 6), dim=-1)
    loss = info_nce(queries, candidates, picture_ids=ids, positive=positive, query_picture=query, temperature=0.1)
    assert math.isclose(float(loss.total), naive(queries, candidates, ids.tolist(), positive.tolist(), 0.1), rel_tol=1e-4, abs_tol=1e-5)


def test_a_copy_of_the_positive_is_no_negative_and_copies_count_once():
    ids = torch.tensor([7, 8, 7, 8, 9])
    out = excluded(ids, torch.tensor([2, 1]))
    assert out.tolist() == [[True, False, False, True, False], [False, False, True, True, False]]


def test_the_query_picture_counts_even_where_others_are_not_allowed():
    queries = torch.tensor([[1.0, 0.0]])
    candidates = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    keywords = {"picture_ids": torch.arange(3), "positive": torch.tensor([0]), "query_picture": torch.tensor([1]), "temperature": 1.0}
    loss = info_nce(queries, candidates, allowed=torch.zeros(1, 3, dtype=torch.bool), **keywords)
    assert math.isclose(float(loss.total), math.log(1 + math.e), rel_tol=1e-5)
    assert float(loss.query_margin) == -1.0 and float(loss.accuracy) == 0.0
