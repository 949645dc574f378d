"""What the base model makes of captions, which a training may hold on to.

A model that is fine-tuned on instructions forgets what captions mean. `keep_base` of a dataset adds to the loss how far
the features of its captions have moved from the base model's: learning without forgetting (arXiv:1606.09282), on
features in the place of class scores.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from tasks.models.retrievers.base import Retriever

TEXTS_PER_PASS = 256
TEXTS_KEPT = 50_000  # whose features are kept, so that a pass over a small dataset is encoded once


class KeptBase:
    """A copy of the model as it was when this was made."""

    def __init__(self, retriever: Retriever) -> None:
        """Copy the model.

        Args:
            retriever: of the CLIP type, not trained yet.
        """
        self._retriever = copy.copy(retriever)
        self._retriever.model = copy.deepcopy(retriever.model).eval().requires_grad_(False)
        self._known: dict[str, torch.Tensor] = {}

    def features(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, d) float32 unit rows of texts, on the model's device."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        rows: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for start in range(0, len(missing), TEXTS_PER_PASS):
                part = missing[start : start + TEXTS_PER_PASS]
                rows |= zip(part, F.normalize(self._retriever.features(texts=part).float(), dim=-1), strict=True)
        found = torch.stack([rows[text] if text in rows else self._known[text] for text in texts])
        self._known |= dict(list(rows.items())[: TEXTS_KEPT - len(self._known)])
        return found
