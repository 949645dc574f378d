"""One training step: gradient caching changes no gradient, dropout repeats itself, NaN gradients change nothing."""

import random

import pytest
import torch

from tasks.config import Params
from tasks.errors import DataError
from tasks.models.retrievers.clip import ClipRetriever
from tasks.store import Store
from tasks.train.accelerator import TrainingRuntime
from tasks.train.batches import BatchPlan, WeightedDataset, plan_steps
from tasks.train.grad_cache import EncodedBatch, encode_batch, training_step
from tasks.train.loader import ImageLoader
from tasks.train.trainer import loss_function
from tests.support.training import all_examples, flat_weights

CPU = torch.device("cpu")


def cached_gradients(
    retriever: ClipRetriever, plan: BatchPlan, pixels: torch.Tensor, params: Params, chunk: int | None
) -> dict[str, torch.Tensor]:
    """Gradients of one step's loss, through `encode_batch`."""
    retriever.model.zero_grad(set_to_none=True)
    images = encode_batch(lambda at: retriever.image_features(pixels[list(at)]), len(pixels), chunk, CPU)
    texts = encode_batch(lambda at: retriever.text_features([plan.texts[n] for n in at]), len(plan.texts), chunk, CPU)
    loss_function(params.train, retriever.model, plan, CPU)(images.features, texts.features).total.backward()
    for batch in (images, texts):
        batch.backward(batch.features.grad)
    return {k: p.grad.clone() for k, p in retriever.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_gradient_caching_equals_no_caching(params: Params, store: Store, chunk: int):
    retriever = ClipRetriever(params.train.base_model, device="cpu")
    retriever.model.train()
    plan = next(plan_steps([WeightedDataset(all_examples(store), 1.0)], params.train, random.Random(0)))
    pixels = ImageLoader(store, retriever.preprocess)(plan.images)
    images, texts = retriever.image_features(pixels), retriever.text_features(plan.texts)
    retriever.model.zero_grad(set_to_none=True)
    loss_function(params.train, retriever.model, plan, CPU)(images, texts).total.backward()
    plain = {k: p.grad.clone() for k, p in retriever.model.named_parameters() if p.grad is not None}
    cached = cached_gradients(retriever, plan, pixels, params, chunk)
    assert plain.keys() == cached.keys() and len(plain) > 20
    for name, gradient in plain.items():
        assert torch.allclose(gradient, cached[name], rtol=1e-4, atol=1e-6), name


def test_dropout_is_the_same_in_the_second_pass():
    torch.manual_seed(0)
    tower, outputs = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)), []

    def encode(positions: list[int]) -> torch.Tensor:
        outputs.append(tower(torch.arange(20.0).view(5, 4)[list(positions)]))
        return outputs[-1]

    batch = encode_batch(encode, 5, 2, CPU)
    batch.features.sum().backward()
    batch.backward(batch.features.grad)
    first, second = torch.cat(outputs[:3]), torch.cat(outputs[3:])
    assert len(outputs) == 6 and torch.equal(first, second) and torch.equal(first, batch.features)


def test_a_gradient_that_is_not_finite_changes_no_weight(params: Params):
    retriever = ClipRetriever(params.train.base_model, device="cpu", threads=1)
    runtime = TrainingRuntime(retriever, params.train)
    optimizer = runtime.prepare(torch.optim.AdamW(retriever.model.parameters()))
    before = flat_weights(retriever)
    images, texts = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    plan = BatchPlan([0, 1, 2], [0, 1], [1, 2], ["a", "b"], [1] * 3, [[0, 1], [1, 2]], [[0.0] * 2] * 2)
    projection = retriever.model.visual_projection.weight

    def backward(gradient: torch.Tensor) -> None:
        projection.grad = torch.full_like(projection, float("nan"))

    with pytest.raises(DataError, match="the gradient is nan at step 7"):
        training_step(
            runtime,
            optimizer,
            loss_function(params.train, retriever.model, plan, CPU),
            EncodedBatch(images, backward),
            EncodedBatch(texts, None),
            learning_rate=0.1,
            step=7,
        )
    assert torch.equal(flat_weights(retriever), before)
