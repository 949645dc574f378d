"""InfoNCE over the distinct images of a batch: the other queries' targets, the query images, mined negatives.

A query's softmax runs over every image of the batch once; a copy of the query's own positive is no negative. Source:
MegaPairs, arXiv:2412.14475, appendix B; having the query image among the negatives is essential to it.

Options: a mask of likely false negatives (Qwen3-VL-Embedding, 2026, equation 1), and the judge's scores as soft labels
by the symmetric Kullback-Leibler divergence (UniME-V2, arXiv:2510.13515).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Loss(NamedTuple):
    """The loss and the figures that explain it; scalars.

    Attributes:
        total: what is minimised.
        contrast: mean InfoNCE.
        accuracy: share of queries whose positive is ranked first.
        query_margin: mean similarity of the positive minus that of the query image.
        masked: share of the candidates left out as likely false negatives.
        divergence: mean symmetric KL divergence from the judge; 0 without soft labels.
    """

    total: torch.Tensor
    contrast: torch.Tensor
    accuracy: torch.Tensor
    query_margin: torch.Tensor
    masked: torch.Tensor
    divergence: torch.Tensor


class BatchLabels(NamedTuple):
    """Which candidate is what to which query.

    Attributes:
        image_ids: (c,) int64, equal for equal images.
        positive: (b,) int64, position of each query's target among the candidates.
        query_image: (b,) int64, position of each query's own image; it is always a negative.
        copies: (c,) how often each candidate occurs in the batch. Given, an image weighs as often as the batch names
            it, the positive's copies count as negatives, and the loss is that of sentence-transformers'
            MultipleNegativesRankingLoss over all columns. None: every image once.
        excluded: (c,) bool, candidates that count for no query: their image could not be read. None: none.
    """

    image_ids: torch.Tensor
    positive: torch.Tensor
    query_image: torch.Tensor
    copies: torch.Tensor | None = None
    excluded: torch.Tensor | None = None


class SoftLabels(NamedTuple):
    """The judge's scores of a batch.

    Attributes:
        columns: (b, k) int64, positions of the judged candidates of each query; any position where `scores` is NaN.
        scores: (b, k) P(yes), 0..1; NaN where there is none. Rows with fewer than two scores do not count.
        temperature: of the judge's softmax over the scores.
        weight: of the divergence in the total loss.
    """

    columns: torch.Tensor
    scores: torch.Tensor
    temperature: float
    weight: float


def repeated_images(image_ids: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Candidates to leave out because their image counts already, (b, c) bool.

    Args:
        image_ids: (c,) int64, equal for equal images.
        positive: (b,) int64, position of each query's positive among the candidates.
    Returns:
        True where the candidate shows the image of the positive without being it, or that of an earlier candidate.
    """
    same = image_ids[:, None] == image_ids[None]  # (c, c)
    is_repeat = (same & torch.ones_like(same).tril(-1)).any(1)  # (c,)
    out = is_repeat[None] | same[positive]  # (b, c)
    return out.scatter(1, positive[:, None], False)


def likely_false_negatives(
    similarity: torch.Tensor, positive: torch.Tensor, query_image: torch.Tensor, margin: float
) -> torch.Tensor:
    """Candidates that score higher than the positive by more than the margin, (b, c) bool.

    Never the positive or the query's own image: an untrained model finds the query image nearest of all, and it is the
    one negative that is known to be wrong.

    Args:
        similarity: (b, c) cosine.
        positive: (b,) int64, position of the target.
        query_image: (b,) int64, position of the query's own image.
        margin: cosine.
    """
    out = similarity > similarity.gather(1, positive[:, None]) + margin
    return out.scatter(1, torch.stack([positive, query_image], 1), False)


def judge_divergence(logits: torch.Tensor, labels: SoftLabels) -> torch.Tensor:
    """Mean over the judged queries of (KL(judge || model) + KL(model || judge)) / 2, nats; 0 where none is judged.

    Args:
        logits: (b, c) similarity / temperature, nothing masked.
        labels: both distributions run over a query's judged candidates alone.
    """
    is_judged = ~labels.scores.isnan()
    lowest = torch.finfo(logits.dtype).min
    model = logits.gather(1, labels.columns).masked_fill(~is_judged, lowest).log_softmax(1)  # (b, k)
    judge = (labels.scores.nan_to_num() / labels.temperature).masked_fill(~is_judged, lowest).log_softmax(1)
    each = (((judge.exp() - model.exp()) * (judge - model)).masked_fill(~is_judged, 0)).sum(1) / 2
    counts = is_judged.sum(1) > 1
    return (each * counts).sum() / counts.sum().clamp(min=1)


def info_nce(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    labels: BatchLabels,
    *,
    temperature: float | torch.Tensor,
    mask_margin: float | None = None,
    soft_labels: SoftLabels | None = None,
) -> Loss:
    """Contrast each query with every distinct image of the batch.

    Args:
        queries: (b, d) unit rows, of image and text.
        candidates: (c, d) unit rows, of images.
        labels: which candidate is what to which query.
        temperature: of the softmax; a scalar tensor where it is learnt.
        mask_margin: candidates that score higher than the positive by more than this are left out
            (`likely_false_negatives`); none where None.
        soft_labels: the judge's scores.
    Returns:
        Named parts; `total` is `contrast`, plus the weighted `divergence` where there are soft labels.
    """
    positive, query_image = labels.positive, labels.query_image
    similarity = queries @ candidates.T  # (b, c)
    out = repeated_images(labels.image_ids, positive)
    if labels.excluded is not None:
        out = out | labels.excluded[None]
    masked = torch.zeros((), device=queries.device)
    if mask_margin is not None:
        likely_false = likely_false_negatives(similarity.detach(), positive, query_image, mask_margin) & ~out
        masked = likely_false.float().mean()
        out = out | likely_false
    logits = (similarity / temperature).masked_fill(out, float("-inf"))
    if labels.copies is None:
        contrast = F.cross_entropy(logits, positive)
    else:
        contrast = ((logits + labels.copies.log()).logsumexp(1) - logits.gather(1, positive[:, None])[:, 0]).mean()
    total, divergence = contrast, torch.zeros((), device=queries.device)
    if soft_labels is not None:
        if labels.excluded is not None:
            scores = soft_labels.scores.masked_fill(labels.excluded[soft_labels.columns], float("nan"))
            soft_labels = soft_labels._replace(scores=scores)
        divergence = judge_divergence(similarity / temperature, soft_labels)
        total = contrast + soft_labels.weight * divergence
    of_positive = similarity.gather(1, positive[:, None])[:, 0]
    of_query_image = similarity.gather(1, query_image[:, None])[:, 0]
    accuracy = (logits.argmax(1) == positive).float().mean()
    query_margin = (of_positive - of_query_image).mean().detach()
    return Loss(total, contrast, accuracy, query_margin, masked, divergence.detach())
