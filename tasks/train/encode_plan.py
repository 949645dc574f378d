"""How a step's plan is encoded: what each process loads, and what each tower is called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tasks.errors import ConfigError
from tasks.train.batches import BatchPlan, Example
from tasks.train.grad_cache import EncodedBatch, encode_batch, gather_rows, own_positions, united
from tasks.train.loader import LoadedImages

IMAGES_PER_PASS = 128  # of the frozen image tower


class PlanEncoder:
    """Encodes plans with a module that is prepared for training, each process its own share."""

    def __init__(
        self, module: Any, device: torch.device, *, is_joint: bool, is_sharded: bool, chunk: int | None
    ) -> None:
        """Nothing is encoded yet.

        Args:
            module: of a retriever (`RetrieverModule`).
            device: of its weights.
            is_joint: image and text are encoded together.
            is_sharded: the weights are spread over the processes.
            chunk: images or texts in one pass; all at once where None.
        """
        self.module, self.device, self.is_joint, self.is_sharded = module, device, is_joint, is_sharded
        self.chunk = chunk

    def own_images(self, plan: BatchPlan) -> list[int]:
        """Positions of the images that this process encodes, and so loads, in order."""
        share = partial(own_positions, is_sharded=self.is_sharded)
        if not self.is_joint:
            return list(dict.fromkeys(share(len(plan.images))[0]))
        parts = plan.candidate_parts
        own = {parts[n][0] for n in share(len(parts))[0]} | {plan.query_image[n] for n in share(len(plan.texts))[0]}
        return sorted(own - {-1})

    def encode(self, plan: BatchPlan, images: LoadedImages) -> tuple[EncodedBatch, EncodedBatch]:
        """Features as the loss takes them: of images (of candidates where `is_joint`), and of texts (of queries).

        Raises:
            ConfigError: sharded weights, and contents that only an MLLM's language part sees.
        """
        module = self.module
        if self.is_joint and self.is_sharded and plan.candidates is not None:
            # a process without an image would leave the others waiting for the image tower's shards
            raise ConfigError(
                "'train.shard_weights' does not go with 'train.datasets' whose queries or candidates are texts alone, "
                "for a multimodal language model; take them out, or train adapters (`lora`)"
            )
        if self.is_joint:
            candidates = partial(encode_candidates, module, images, plan)
            return self._batch(candidates, len(plan.candidate_parts)), self._batch(
                partial(encode_queries, module, images, plan), len(plan.texts)
            )
        encoded = self.encode_images(plan, images) if plan.images else None
        texts = self.encode_texts([*plan.texts, *plan.candidate_texts, *plan.held_texts])
        return encoded or EncodedBatch(texts.features.new_zeros(0, texts.features.shape[1]), None), texts

    def encode_images(self, plan: BatchPlan, images: LoadedImages) -> EncodedBatch:
        """Features of a plan's images, at least one, by a model with two towers."""
        module = self.module
        return self._batch(lambda own: module(pixels=images.take(own)), len(plan.images))

    def encode_texts(self, texts: Sequence[str]) -> EncodedBatch:
        """Features of texts alone."""
        module = self.module
        return self._batch(lambda own: module(texts=[texts[n] for n in own]), len(texts))

    def _batch(self, encode: Callable[[Sequence[int]], torch.Tensor], count: int) -> EncodedBatch:
        return encode_batch(encode, count, self.chunk, self.device, is_sharded=self.is_sharded)

    def encode_examples(
        self, examples: Sequence[Example], image_ids: Sequence[str], load_images: Callable[[list[str]], Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit rows of queries, each with its first instruction, and of images as candidates; without gradient.

        Args:
            examples: n, each with a query image of `image_ids`.
            image_ids: m, distinct.
            load_images: image ids -> preprocessed images.
        Returns:
            (n, d) and (m, d).
        """
        texts = [e.instructions[0] for e in examples]
        images = self.frozen_features(image_ids, load_images)
        with torch.no_grad():
            if self.is_joint:
                queries = self._frozen_queries(examples, texts, load_images)
            else:
                row = {image_id: n for n, image_id in enumerate(image_ids)}
                starts = range(0, len(texts), IMAGES_PER_PASS)
                parts = [self.encode_texts(texts[n : n + IMAGES_PER_PASS]).features for n in starts]
                queries = torch.cat(parts) + images[[row[str(e.query)] for e in examples]]
        return F.normalize(queries, dim=-1), F.normalize(images, dim=-1)

    def _frozen_queries(
        self, examples: Sequence[Example], texts: Sequence[str], load_images: Callable[[list[str]], Any]
    ) -> torch.Tensor:
        """(n, d) of queries whose image and text are encoded together; each process encodes its share."""
        positions, weights = own_positions(len(examples), is_sharded=self.is_sharded)
        size = self.chunk or IMAGES_PER_PASS
        rows = []
        for start in range(0, len(positions), size):
            part = positions[start : start + size]
            images = load_images([str(examples[n].query) for n in part])
            rows.append(self.module(pixels=images, texts=[texts[n] for n in part]))
        return gather_rows(torch.cat(rows)[: sum(weights)], len(examples))

    def frozen_features(self, image_ids: Sequence[str], load_images: Callable[[list[str]], Any]) -> torch.Tensor:
        """(n, d) raw features of images, without gradient; each process encodes its share."""
        positions, weights = own_positions(len(image_ids), is_sharded=self.is_sharded)
        own = [image_ids[n] for n in positions]
        starts = range(0, len(own), IMAGES_PER_PASS)
        with torch.no_grad():
            rows = torch.cat([self.module(pixels=load_images(own[n : n + IMAGES_PER_PASS])) for n in starts])
        return gather_rows(rows[: sum(weights)], len(image_ids))


def without_broken(plan: BatchPlan, images: LoadedImages, device: torch.device) -> BatchPlan:
    """The plan that leaves out what any process could not read. Called by all processes."""
    flags = united([n in images.broken for n in range(len(plan.images))], device)
    broken = frozenset(n for n, is_broken in enumerate(flags) if is_broken)
    return replace(plan, broken=broken) if broken else plan


def encode_candidates(
    module: Callable[..., torch.Tensor], images: LoadedImages, plan: BatchPlan, positions: Sequence[int]
) -> torch.Tensor:
    """(n, d) float32 raw features of the candidates at these positions, image and text encoded together."""
    if plan.candidates is None:
        return module(pixels=images.take(positions))
    parts = [plan.candidates[n] for n in positions]
    texts = ["" if text < 0 else plan.candidate_texts[text] for _, text in parts]
    return module(pixels=take_or_none(images, [image for image, _ in parts]), texts=texts, role="candidate")


def encode_queries(
    module: Callable[..., torch.Tensor], images: LoadedImages, plan: BatchPlan, positions: Sequence[int]
) -> torch.Tensor:
    """(n, d) float32 raw features of the queries at these positions of the batch, image and text encoded together."""
    shown = take_or_none(images, [plan.query_image[n] for n in positions])
    return module(pixels=shown, texts=[plan.texts[n] for n in positions], task=plan.task)


def take_or_none(images: LoadedImages, positions: Sequence[int]) -> list[Any]:
    """The input of each image; None where a position is -1."""
    rows = iter(images.take([n for n in positions if n >= 0]))
    return [next(rows) if n >= 0 else None for n in positions]
