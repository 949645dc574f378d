"""Hard negatives mined anew with the model in training. Pure.

Source: ANCE, arXiv:2007.00808; images that are nearly as similar as the target are left out as likely false negatives
(NV-Retriever, arXiv:2407.15831: TopK-PercPos).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tasks.config.train_options import RefreshConfig
from tasks.train.batches import Example

QUERIES_PER_BLOCK = 1024


def mined_negatives(
    examples: Sequence[Example],
    image_ids: Sequence[str],
    queries: torch.Tensor,
    images: torch.Tensor,
    config: RefreshConfig,
) -> list[list[str]]:
    """The nearest images of each query that are not its own, its target, or a target of the same query image.

    Args:
        examples: n.
        image_ids: m.
        queries: (n, d) unit rows.
        images: (m, d) unit rows.
        config: how many, and how similar at most.
    Returns:
        Per example image ids, the most similar first; those that it had where none is left.
    """
    row = {image_id: n for n, image_id in enumerate(image_ids)}
    right: dict[str, set[int]] = {}
    for e in examples:
        right.setdefault(str(e.query), set()).update((row[str(e.query)], row[str(e.target)]))
    found = []
    for start in range(0, len(examples), QUERIES_PER_BLOCK):
        block = examples[start : start + QUERIES_PER_BLOCK]
        similarity = queries[start : start + QUERIES_PER_BLOCK] @ images.T
        for e, line in zip(block, similarity, strict=True):
            of_target = float(line[row[str(e.target)]])
            limit = of_target - (1 - config.positive_share_max) * abs(of_target)
            line = line.masked_fill(line > limit, -torch.inf)
            line[list(right[str(e.query)])] = -torch.inf
            top = line.topk(min(config.negatives, len(line)))
            ids = [image_ids[n] for n, s in zip(top.indices.tolist(), top.values.tolist(), strict=True) if s > -1e9]
            found.append(ids or [str(n) for n in e.negatives])
    return found


def with_negatives(examples: Sequence[Example], negatives: Sequence[Sequence[str]]) -> list[Example]:
    """The examples with other negatives."""
    return [replace(e, negatives=tuple(n)) for e, n in zip(examples, negatives, strict=True)]
