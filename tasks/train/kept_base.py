"""What the base model makes of captions and images, which a training may hold on to.

A model that is fine-tuned on instructions forgets what captions mean. `keep_base` of a dataset adds to the loss how far
the features of its captions, and those of their images where the image tower is trained, have moved from the base
model's: learning without forgetting (arXiv:1606.09282), on features in the place of class scores.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from tasks.train.accelerator import RetrieverModule
from tasks.train.encode_plan import PlanEncoder
from tasks.train.loader import LoadedImages

if TYPE_CHECKING:
    from tasks.models.retrievers.base import Retriever
    from tasks.train.batches import BatchPlan

TEXTS_PER_PASS = 256


class BaseFeatures(NamedTuple):
    """What the base model makes of a plan.

    Attributes:
        texts: (h, d) unit rows of the held texts, or (b, d) of the queries, which are texts alone.
        images: (m, d) unit rows of the images; None where they are not held, or the image tower is not trained.
    """

    texts: torch.Tensor
    images: torch.Tensor | None


class KeptBase:
    """A copy of the model as it was when this was made."""

    def __init__(self, retriever: Retriever, chunk: int | None = None) -> None:
        """Copy the model.

        Args:
            retriever: of the CLIP type, not trained yet.
            chunk: images in one pass; all at once where None.
        """
        base = copy.copy(retriever)
        base.model = copy.deepcopy(retriever.model).eval().requires_grad_(False)
        self._retriever = base
        module, device = RetrieverModule(base), torch.device(retriever.device)
        self._encoder = PlanEncoder(module, device, is_joint=False, is_sharded=False, chunk=chunk)

    def features(self, plan: BatchPlan, images: LoadedImages | None) -> BaseFeatures:
        """Rows of a plan by the base.

        Args:
            plan: with held texts, or of queries that are texts alone and candidates that are images.
            images: of the plan, those of this process; None where the image tower is not trained.
        """
        if plan.held_texts:
            return BaseFeatures(self.of_texts(plan.held_texts), None)
        return BaseFeatures(self.of_texts(plan.texts), None if images is None else self._of_images(plan, images))

    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, d) float32 unit rows of texts, on the model's device.

        Nothing is kept for later steps: the last digits of a row depend on the texts that it is encoded with, and a
        training that is resumed must make what an undisturbed one makes.
        """
        starts = range(0, len(texts), TEXTS_PER_PASS)
        with torch.no_grad():
            parts = [self._retriever.features(texts=texts[start : start + TEXTS_PER_PASS]).float() for start in starts]
        return F.normalize(torch.cat(parts), dim=-1)

    def _of_images(self, plan: BatchPlan, images: LoadedImages) -> torch.Tensor:
        """(m, d) float32 unit rows; each process encodes its share."""
        with torch.no_grad():
            return F.normalize(self._encoder.encode_images(plan, images).features, dim=-1)
