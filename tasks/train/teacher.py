"""Distillation: another retriever's similarities of the same batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from tasks.train.accelerator import RetrieverModule
from tasks.train.batches import BatchPlan
from tasks.train.encode_plan import PlanEncoder
from tasks.train.loader import LoadedImages
from tasks.train.objective import queries_and_candidates


class Teacher:
    """A retriever that is not trained; it sees each batch as the model in training does, by its own preparation."""

    def __init__(self, retriever: Any, load_images: Callable[[list[str]], Any], chunk: int | None) -> None:
        """Nothing is encoded yet.

        Args:
            retriever: the teacher, on its device.
            load_images: image ids -> images as the teacher takes them; a blank where one cannot be read.
            chunk: images or texts in one pass; all at once where None.
        """
        retriever.model.eval().requires_grad_(False)
        self._is_joint, self._load_images = retriever.is_joint, load_images
        module, device = RetrieverModule(retriever), torch.device(retriever.device)
        self._encoder = PlanEncoder(module, device, is_joint=retriever.is_joint, is_sharded=False, chunk=chunk)

    def similarity(self, plan: BatchPlan, device: torch.device) -> torch.Tensor:
        """(b, c) cosine of each query with each candidate; each process encodes its share."""
        own = self._encoder.own_images(plan)
        images = LoadedImages(self._load_images([plan.images[n] for n in own]), own)
        with torch.no_grad():
            parts = self._encoder.encode(plan, images)
            queries, candidates = queries_and_candidates(plan, *(p.features for p in parts), is_joint=self._is_joint)
            return (F.normalize(queries, dim=-1) @ F.normalize(candidates, dim=-1).T).to(device)
