"""InfoNCE over the distinct pictures of a batch: positives of the others, the query pictures, mined negatives.

The softmax of a query runs over every picture of the batch once; a picture that is the query's own positive again is no
negative. Source: MegaPairs, arXiv:2412.14475, appendix B; the query picture among the negatives is what makes it work.
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
        query_margin: mean similarity of the positive less that of the query picture.
    """

    total: torch.Tensor
    contrast: torch.Tensor
    accuracy: torch.Tensor
    query_margin: torch.Tensor


def excluded(picture_ids: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Candidates that must not count for a query, (b, c) bool.

    Args:
        picture_ids: (c,) int64, equal for equal pictures.
        positive: (b,) int64, position of each query's positive among the candidates.
    Returns:
        True where the candidate shows the same picture as the positive without being it, or as an earlier candidate.
    """
    same = picture_ids[:, None] == picture_ids[None]  # (c, c)
    is_repeat = (same & torch.ones_like(same).tril(-1)).any(1)  # (c,)
    out = is_repeat[None] | same[positive]  # (b, c)
    return out.scatter(1, positive[:, None], False)


def info_nce(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    *,
    picture_ids: torch.Tensor,
    positive: torch.Tensor,
    query_picture: torch.Tensor,
    temperature: float,
    allowed: torch.Tensor | None = None,
) -> Loss:
    """Contrast each query with every distinct picture of the batch.

    Args:
        queries: (b, d) unit rows, of image and text.
        candidates: (c, d) unit rows, of images.
        picture_ids: (c,) int64, equal for equal pictures.
        positive: (b,) int64, position of the target.
        query_picture: (b,) int64, position of the query's own picture; it is always a negative.
        temperature: of the softmax.
        allowed: (b, c) bool, candidates that may be negatives of a query; all where None. Positive and query picture count anyway.
    Returns:
        Named parts; `total` equals `contrast`.
    """
    similarity = queries @ candidates.T  # (b, c)
    out = excluded(picture_ids, positive)
    if allowed is not None:
        rows = torch.arange(len(queries), device=queries.device)
        allowed = allowed.clone()
        allowed[rows, positive] = True
        allowed[rows, query_picture] = True
        out = out | ~allowed
    logits = (similarity / temperature).masked_fill(out, float("-inf"))
    contrast = F.cross_entropy(logits, positive)
    of_positive = similarity.gather(1, positive[:, None])[:, 0]
    of_query = similarity.gather(1, query_picture[:, None])[:, 0]
    accuracy = (logits.argmax(1) == positive).float().mean()
    return Loss(contrast, contrast, accuracy, (of_positive - of_query).mean().detach())
