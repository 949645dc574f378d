"""InfoNCE over the distinct images of a batch: the other queries' targets, the query images, mined negatives.

A query's softmax runs over every image of the batch once; a copy of the query's own positive is no negative. Source:
MegaPairs, arXiv:2412.14475, appendix B; having the query image among the negatives is essential to it.

Pairs of text and image can be contrasted in both directions (`target_contrast`).

Options: a mask of likely false negatives (Qwen3-VL-Embedding, 2026, equation 1), the judge's scores as soft labels by
the symmetric Kullback-Leibler divergence (UniME-V2, arXiv:2510.13515), hardness-weighted negatives (LLaVE,
arXiv:2503.04812), and the KL divergence from a teacher's similarities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Loss(NamedTuple):
    """The loss and the figures that explain it; scalars.

    Attributes:
        total: what is minimised.
        contrast: mean InfoNCE, of both directions where the batch is symmetric.
        accuracy: share of queries whose positive is ranked first.
        query_margin: mean similarity of the positive minus that of the query image.
        masked: share of the candidates left out as likely false negatives.
        divergence: mean symmetric KL divergence from the judge; 0 without soft labels.
        distillation: mean KL divergence from the teacher; 0 without one.
        drift: mean of 1 minus the cosine between the features and the base model's, of texts plus of images;
            0 where that is not kept.
    """

    total: torch.Tensor
    contrast: torch.Tensor
    accuracy: torch.Tensor
    query_margin: torch.Tensor
    masked: torch.Tensor
    divergence: torch.Tensor
    distillation: torch.Tensor
    drift: torch.Tensor


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
        query_ids: (b,) int64, equal for equal queries. Given, each target is contrasted with the batch's queries too,
            and the loss is the mean of both directions, as CLIP's (arXiv:2103.00020, figure 3). None: queries alone.
    """

    image_ids: torch.Tensor
    positive: torch.Tensor
    query_image: torch.Tensor
    copies: torch.Tensor | None = None
    excluded: torch.Tensor | None = None
    query_ids: torch.Tensor | None = None


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


class TeacherScores(NamedTuple):
    """The teacher's similarities of a batch.

    Attributes:
        similarity: (b, c) cosine of each query with each candidate.
        temperature: of the teacher's softmax.
        weight: of the divergence in the total loss.
    """

    similarity: torch.Tensor
    temperature: float
    weight: float


class LossOptions(NamedTuple):
    """Further options of the loss; the defaults switch them off.

    Attributes:
        hardness_weight: each negative is weighed by exp(this times its similarity).
        teacher: its similarities.
    """

    hardness_weight: float = 0.0
    teacher: TeacherScores | None = None


NO_OPTIONS = LossOptions()


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


def teacher_divergence(logits: torch.Tensor, teacher: TeacherScores, out: torch.Tensor) -> torch.Tensor:
    """Mean over the queries of KL(teacher || model), nats, over the candidates that are not left out.

    Args:
        logits: (b, c) similarity / temperature of the model, nothing masked.
        teacher: its similarities.
        out: (b, c) bool, candidates that do not count.
    """
    lowest = torch.finfo(logits.dtype).min
    model = logits.masked_fill(out, lowest).log_softmax(1)
    wanted = (teacher.similarity / teacher.temperature).masked_fill(out, lowest).log_softmax(1)
    return (wanted.exp() * (wanted - model)).masked_fill(out, 0).sum(1).mean()


def contrastive_logits(
    similarity: torch.Tensor,
    out: torch.Tensor,
    positive: torch.Tensor,
    temperature: float | torch.Tensor,
    hardness_weight: float,
) -> torch.Tensor:
    """(b, c) logits of the softmax: similarity / temperature, plus the hardness of each negative; -inf where left out.

    Args:
        similarity: (b, c) cosine.
        out: (b, c) bool, candidates that do not count.
        positive: (b,) int64, position of the target.
        temperature: of the softmax.
        hardness_weight: alpha of LLaVE's equation 4; 0: none.
    """
    logits = similarity / temperature
    if hardness_weight:
        hardness = hardness_weight * similarity.detach()
        logits = logits + hardness.scatter(1, positive[:, None], 0.0)
    return logits.masked_fill(out, float("-inf"))


def target_contrast(
    similarity: torch.Tensor, positive: torch.Tensor, query_ids: torch.Tensor, temperature: float | torch.Tensor
) -> torch.Tensor:
    """Mean InfoNCE of each query's target over the batch's queries: which query asks for it?

    Args:
        similarity: (b, c) cosine.
        positive: (b,) int64, position of each query's target among the candidates.
        query_ids: (b,) int64, equal for equal queries.
        temperature: of the softmax.
    Returns:
        A scalar. A query with the same target, or equal to the target's own, is no negative.
    """
    logits = similarity[:, positive].T / temperature  # (b, b), a row a target
    same = (positive[:, None] == positive[None]) | (query_ids[:, None] == query_ids[None])
    own = torch.arange(len(positive), device=positive.device)
    out = same.scatter(1, own[:, None], False)
    return F.cross_entropy(logits.masked_fill(out, float("-inf")), own)


def info_nce(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    labels: BatchLabels,
    *,
    temperature: float | torch.Tensor,
    mask_margin: float | None = None,
    soft_labels: SoftLabels | None = None,
    options: LossOptions = NO_OPTIONS,
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
        options: further ones.
    Returns:
        Named parts; `total` is `contrast`, plus the weighted `divergence` and `distillation` where these are on.
    """
    positive, query_image = labels.positive, labels.query_image
    similarity = queries @ candidates.T  # (b, c)
    out = repeated_images(labels.image_ids, positive)
    if labels.excluded is not None:
        out = out | labels.excluded[None]
    no_teaching, masked = out, torch.zeros((), device=queries.device)
    if mask_margin is not None:
        likely_false = likely_false_negatives(similarity.detach(), positive, query_image, mask_margin) & ~out
        masked = likely_false.float().mean()
        out = out | likely_false
    logits = contrastive_logits(similarity, out, positive, temperature, options.hardness_weight)
    if labels.copies is None:
        contrast = F.cross_entropy(logits, positive)
    else:
        contrast = ((logits + labels.copies.log()).logsumexp(1) - logits.gather(1, positive[:, None])[:, 0]).mean()
    if labels.query_ids is not None:
        contrast = (contrast + target_contrast(similarity, positive, labels.query_ids, temperature)) / 2
    total = contrast
    divergence = distillation = torch.zeros((), device=queries.device)
    if soft_labels is not None:
        soft_labels = without_excluded(soft_labels, labels.excluded)
        divergence = judge_divergence(similarity / temperature, soft_labels)
        total = total + soft_labels.weight * divergence
    if options.teacher is not None:
        distillation = teacher_divergence(similarity / temperature, options.teacher, no_teaching)
        total = total + options.teacher.weight * distillation
    of_positive = similarity.gather(1, positive[:, None])[:, 0]
    of_query_image = similarity.gather(1, query_image[:, None])[:, 0]
    accuracy = (logits.argmax(1) == positive).float().mean()
    query_margin = (of_positive - of_query_image).mean().detach()
    no_drift = torch.zeros((), device=queries.device)
    return Loss(total, contrast, accuracy, query_margin, masked, divergence.detach(), distillation.detach(), no_drift)


def without_excluded(labels: SoftLabels, excluded: torch.Tensor | None) -> SoftLabels:
    """The judge's scores without those of candidates that count for no query."""
    if excluded is None:
        return labels
    return labels._replace(scores=labels.scores.masked_fill(excluded[labels.columns], float("nan")))
