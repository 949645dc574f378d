"""InfoNCE against a loop over the distinct images of the batch: the loop is the specification."""

import math

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.train.loss import (
    BatchLabels,
    SoftLabels,
    info_nce,
    judge_divergence,
    likely_false_negatives,
    repeated_images,
    target_contrast,
)


def naive(queries, candidates, ids, positive, temperature) -> float:
    total = 0.0
    for n, row in enumerate(queries.tolist()):
        shown: dict[int, int] = {}
        for k, image in enumerate(ids):
            shown.setdefault(image, k)  # of equal images the first counts
        shown[ids[positive[n]]] = positive[n]  # but the positive is the positive
        score = {
            image: sum(a * b for a, b in zip(row, candidates[k].tolist(), strict=True)) / temperature
            for image, k in shown.items()
        }
        total += math.log(sum(math.exp(s) for s in score.values())) - score[ids[positive[n]]]
    return total / len(queries)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 10**6))
def test_equals_the_loop(b: int, c: int, seed: int):
    torch.manual_seed(seed)
    ids = torch.randint(0, 4, (c,))
    positive, query = torch.randint(0, c, (b,)), torch.randint(0, c, (b,))
    queries, candidates = F.normalize(torch.randn(b, 6), dim=-1), F.normalize(torch.randn(c, 6), dim=-1)
    loss = info_nce(queries, candidates, BatchLabels(ids, positive, query), temperature=0.1)
    assert math.isclose(
        float(loss.total), naive(queries, candidates, ids.tolist(), positive.tolist(), 0.1), rel_tol=1e-4, abs_tol=1e-5
    )


def test_a_copy_of_the_positive_is_no_negative_and_copies_count_once():
    ids = torch.tensor([7, 8, 7, 8, 9])
    out = repeated_images(ids, torch.tensor([2, 1]))
    assert out.tolist() == [[True, False, False, True, False], [False, False, True, True, False]]


def test_the_query_image_is_a_negative():
    queries, candidates = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    labels = BatchLabels(torch.arange(2), torch.tensor([0]), query_image=torch.tensor([1]))
    loss = info_nce(queries, candidates, labels, temperature=1.0)
    assert math.isclose(float(loss.total), math.log(1 + math.e), rel_tol=1e-5)
    assert float(loss.query_margin) == -1.0 and float(loss.accuracy) == 0.0


def test_candidates_above_the_positive_by_the_margin_are_masked_except_the_query_image():
    similarity = torch.tensor([[0.5, 0.59, 0.61, 0.9], [0.2, 0.3, 0.0, 0.35]])
    out = likely_false_negatives(similarity, torch.tensor([0, 2]), torch.tensor([3, 1]), 0.1)
    assert out.tolist() == [[False, False, True, False], [True, False, False, True]]


def test_masked_candidates_are_not_in_the_softmax():
    queries = torch.tensor([[1.0, 0.0]])
    candidates = F.normalize(torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), dim=-1)
    labels = BatchLabels(torch.arange(4), torch.tensor([0]), query_image=torch.tensor([3]))
    loss = info_nce(queries, candidates, labels, temperature=0.5, mask_margin=0.1)
    expected = math.log(sum(math.exp(s / 0.5) for s in (0.8, 0.6, 0.0))) - 0.8 / 0.5
    assert math.isclose(float(loss.total), expected, rel_tol=1e-5) and float(loss.masked) == 0.25
    assert float(info_nce(queries, candidates, labels, temperature=0.5).masked) == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_with_copies_the_loss_is_the_plain_softmax_over_all_columns(b: int, negatives: int, seed: int):
    """MultipleNegativesRankingLoss: every column of every row is a candidate, however often an image came."""
    torch.manual_seed(seed)
    images, queries = F.normalize(torch.randn(5, 6), dim=-1), F.normalize(torch.randn(b, 6), dim=-1)
    columns = torch.randint(0, 5, (b, 1 + negatives))
    naive_total = 0.0
    for n in range(b):
        scores = [float(queries[n] @ images[k]) / 0.1 for row in columns.tolist() for k in row]
        naive_total += math.log(sum(map(math.exp, scores))) - float(queries[n] @ images[columns[n, 0]]) / 0.1
    distinct, position, copies = columns.flatten().unique(return_inverse=True, return_counts=True)
    positive = position.view_as(columns)[:, 0]
    labels = BatchLabels(torch.arange(len(distinct)), positive, query_image=positive, copies=copies)
    loss = info_nce(queries, images[distinct], labels, temperature=0.1)
    assert math.isclose(float(loss.total), naive_total / b, rel_tol=1e-4, abs_tol=1e-5)


def test_the_divergence_from_the_judge_is_the_symmetric_one_and_zero_where_both_agree():
    logits = torch.tensor([[1.0, 2.0, 0.5, 9.0], [1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    scores = torch.tensor([[0.9, 0.1, float("nan")], [0.5, float("nan"), float("nan")]])
    judged = SoftLabels(torch.tensor([[0, 2, 0], [1, 0, 0]]), scores, 0.5, 1.0)
    ours, theirs = (torch.softmax(torch.tensor(x), 0).tolist() for x in ([1.0, 0.5], [1.8, 0.2]))
    expected = sum((p - q) * (math.log(p) - math.log(q)) for p, q in zip(ours, theirs, strict=True)) / 2
    found = judge_divergence(logits, judged)
    found.backward()
    assert math.isclose(float(found.detach()), expected, rel_tol=1e-5), (
        "the second query has one score: nothing to compare"
    )
    assert (
        logits.grad is not None
        and logits.grad.isfinite().all()
        and (logits.grad[1] == 0).all()
        and logits.grad[0, 3] == 0
    )
    agreeing = SoftLabels(judged.columns[:1], torch.tensor([[0.9, 0.65, float("nan")]]), 0.5, 1.0)
    assert math.isclose(float(judge_divergence(logits[:1], agreeing)), 0.0, abs_tol=1e-6)
    none = SoftLabels(judged.columns, torch.full((2, 3), float("nan")), 0.5, 1.0)
    assert float(judge_divergence(logits, none)) == 0


def test_in_both_directions_the_loss_is_clips():
    torch.manual_seed(0)
    texts, images = F.normalize(torch.randn(4, 6), dim=-1), F.normalize(torch.randn(4, 6), dim=-1)
    positive = torch.arange(4)
    labels = BatchLabels(positive, positive, query_image=positive, query_ids=positive)
    logits = texts @ images.T / 0.1
    clip = (F.cross_entropy(logits, positive) + F.cross_entropy(logits.T, positive)) / 2
    assert torch.allclose(info_nce(texts, images, labels, temperature=0.1).total, clip)


def test_another_caption_of_the_same_image_and_an_equal_caption_of_another_are_no_negatives():
    similarity = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.3, 0.7]])
    positive, query_ids = torch.tensor([0, 0, 1, 1]), torch.tensor([5, 6, 7, 5])
    # the target of the first query is that of the second, and the fourth query says the same as the first
    first = math.log(1 + math.exp((0.3 - 0.9) / 0.1))
    second = math.log(1 + 2 * math.exp((0.3 - 0.8) / 0.1))
    third = math.log(1 + math.exp((0.1 - 0.7) / 0.1) + math.exp((0.2 - 0.7) / 0.1))
    fourth = math.log(1 + math.exp((0.2 - 0.7) / 0.1))
    assert math.isclose(
        float(target_contrast(similarity, positive, query_ids, 0.1)),
        (first + second + third + fourth) / 4,
        rel_tol=1e-5,
    )
