"""InfoNCE over the distinct images of a batch: positives of the others, the query images, mined negatives.

The softmax of a query runs over every image of the batch once; an image that is the query's own positive again is no
negative. Source: MegaPairs, arXiv:2412.14475, appendix B; the query image among the negatives is what makes it work.
Options: a mask of likely false negatives (Qwen3-VL-Embedding, 2026, equation 1) and the judge's scores as soft labels,
by the symmetric Kullback-Leibler divergence (UniME-V2, arXiv:2510.13515).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Loss(NamedTuple):
    """The loss and what explains it; scalars.

    Attributes:
        total: what is minimised.
        contrast: mean InfoNCE.
        accuracy: share of queries whose positive comes first.
        query_margin: mean similarity of the positive less that of the query image.
        masked: share of the candidates left out as likely false negatives.
        divergence: mean symmetric KL divergence from the judge; 0 without soft labels.
    """

    total: torch.Tensor
    contrast: torch.Tensor
    accuracy: torch.Tensor
    query_margin: torch.Tensor
    masked: torch.Tensor
    divergence: torch.Tensor


class Judged(NamedTuple):
    """The judge's soft labels of a batch.

    Attributes:
        columns: (b, k) int64, positions of the judged candidates of each query; any position where `scores` is NaN.
        scores: (b, k) P(yes), 0..1; NaN where there is none. Rows with fewer than two scores do not count.
        temperature: of the judge's softmax over the scores.
        weight: of the divergence in the total.
    """

    columns: torch.Tensor
    scores: torch.Tensor
    temperature: float
    weight: float


def excluded(image_ids: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Candidates that must not count for a query, (b, c) bool.

    Args:
        image_ids: (c,) int64, equal for equal images.
        positive: (b,) int64, position of each query's positive among the candidates.
    Returns:
        True where the candidate shows the same image as the positive without being it, or as an earlier candidate.
    """
    same = image_ids[:, None] == image_ids[None]  # (c, c)
    is_repeat = (same & torch.ones_like(same).tril(-1)).any(1)  # (c,)
    out = is_repeat[None] | same[positive]  # (b, c)
    return out.scatter(1, positive[:, None], False)


def likely_false(
    similarity: torch.Tensor, positive: torch.Tensor, query_image: torch.Tensor, margin: float
) -> torch.Tensor:
    """Candidates that score higher than the positive by more than the margin, (b, c) bool; never the positive or the
    query's own image.

    The query image is exempt: an untrained model finds it nearest of all, and it is the one negative that is known to
    be wrong.

    Args:
        similarity: (b, c) cosine.
        positive: (b,) int64, position of the target.
        query_image: (b,) int64, position of the query's own image.
        margin: cosine.
    """
    out = similarity > similarity.gather(1, positive[:, None]) + margin
    return out.scatter(1, torch.stack([positive, query_image], 1), False)


def divergence(logits: torch.Tensor, judged: Judged) -> torch.Tensor:
    """Mean over the judged queries of (KL(judge || model) + KL(model || judge)) / 2, nats; 0 where no query is judged.

    Args:
        logits: (b, c) similarity / temperature, nothing masked.
        judged: soft labels; both distributions run over a query's judged candidates alone.
    """
    known = ~judged.scores.isnan()
    lowest = torch.finfo(logits.dtype).min
    ours = logits.gather(1, judged.columns).masked_fill(~known, lowest).log_softmax(1)  # (b, k)
    theirs = (judged.scores.nan_to_num() / judged.temperature).masked_fill(~known, lowest).log_softmax(1)
    each = (((theirs.exp() - ours.exp()) * (theirs - ours)).masked_fill(~known, 0)).sum(1) / 2
    counts = known.sum(1) > 1
    return (each * counts).sum() / counts.sum().clamp(min=1)


def info_nce(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    *,
    image_ids: torch.Tensor,
    positive: torch.Tensor,
    query_image: torch.Tensor,
    temperature: float | torch.Tensor,
    allowed: torch.Tensor | None = None,
    mask_margin: float | None = None,
    copies: torch.Tensor | None = None,
    judged: Judged | None = None,
) -> Loss:
    """Contrast each query with every distinct image of the batch.

    Args:
        queries: (b, d) unit rows, of image and text.
        candidates: (c, d) unit rows, of images.
        image_ids: (c,) int64, equal for equal images.
        positive: (b,) int64, position of the target.
        query_image: (b,) int64, position of the query's own image; it is always a negative.
        temperature: of the softmax; a scalar tensor where it is learnt.
        allowed: (b, c) bool, candidates that may be negatives of a query; all where None. Positive and query image
            count anyway.
        mask_margin: candidates that score higher than the positive by more than this are left out (`likely_false`);
            none where None.
        copies: (c,) how often each candidate stands in the batch. Given, an image weighs as often as it was named, the
            positive's
            copies count as negatives, and the loss is that of sentence-transformers' MultipleNegativesRankingLoss over
            all columns.
        judged: soft labels of the judge.
    Returns:
        Named parts; `total` is `contrast`, plus the weighted `divergence` where there are soft labels.
    """
    similarity = queries @ candidates.T  # (b, c)
    out = excluded(image_ids, positive)
    if allowed is not None:
        rows = torch.arange(len(queries), device=queries.device)
        allowed = allowed.clone()
        allowed[rows, positive] = True
        allowed[rows, query_image] = True
        out = out | ~allowed
    masked = torch.zeros((), device=queries.device)
    if mask_margin is not None:
        found = likely_false(similarity.detach(), positive, query_image, mask_margin) & ~out
        masked = found.float().mean()
        out = out | found
    logits = (similarity / temperature).masked_fill(out, float("-inf"))
    if copies is None:
        contrast = F.cross_entropy(logits, positive)
    else:
        contrast = ((logits + copies.log()).logsumexp(1) - logits.gather(1, positive[:, None])[:, 0]).mean()
    total, apart = contrast, torch.zeros((), device=queries.device)
    if judged is not None:
        apart = divergence(similarity / temperature, judged)
        total = contrast + judged.weight * apart
    of_positive = similarity.gather(1, positive[:, None])[:, 0]
    of_query = similarity.gather(1, query_image[:, None])[:, 0]
    accuracy = (logits.argmax(1) == positive).float().mean()
    return Loss(total, contrast, accuracy, (of_positive - of_query).mean().detach(), masked, apart.detach())
