"""Candidates of text, and of image and text; queries of text alone; and what each of several processes loads."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tasks.config import Params
from tasks.models.retrievers.load import load_retriever
from tasks.store import Store
from tasks.train import grad_cache
from tasks.train.batches import BatchPlan, Candidate, Example, WeightedDataset, plan_steps
from tasks.train.encode_plan import PlanEncoder
from tasks.train.loader import ImageLoader, LoadedImages
from tasks.train.objective import loss_function, queries_and_candidates
from tasks.train.trainer import Trainer, TrainingData
from tests.support.tiny_mllm import save_tiny
from tests.support.training import all_examples, flat_weights, with_train

CPU = torch.device("cpu")
SAID = "Represent the given image."
MIXED = [
    Example("00a", Candidate("00b", SAID), (Candidate("00c", SAID),), ("make it red",)),
    Example("01a", Candidate(None, "a star"), (Candidate(None, "a circle"),), ("what is it?",)),
    Example(None, "02b", ("02c",), ("a square",)),
    Example(None, Candidate(None, "yes"), (), ("is it?",)),
]


def mixed_plan(params: Params) -> BatchPlan:
    """The four kinds in one batch."""
    return next(plan_steps([WeightedDataset(MIXED, 1.0)], params.train, random.Random(0)))


def test_the_query_image_is_a_negative_of_the_targets_own_kind(params: Params):
    plan = mixed_plan(params)
    assert plan.candidates is not None and len(plan.candidates) == 8
    by_text = {text: n for n, text in enumerate(plan.texts)}
    composed = by_text["make it red"]
    image, text = plan.candidates[plan.query_candidate[composed]]
    assert (plan.images[image], plan.candidate_texts[text]) == ("00a", SAID)
    assert plan.query_candidate[by_text["what is it?"]] == -1, "beside texts alone an image is no negative"
    assert plan.images[plan.query_image[by_text["what is it?"]]] == "01a"
    assert plan.query_image[by_text["a square"]] == plan.query_image[by_text["is it?"]] == -1
    assert {"00a", "00b", "00c", "01a", "02b", "02c"} == set(plan.images)


def test_the_loss_of_a_clip_is_that_of_the_sums(params: Params, store: Store):
    retriever = load_retriever(params.train.base_model, device="cpu")
    plan = mixed_plan(params)
    pixels = ImageLoader(store, retriever.preprocess)(plan.images)
    images = retriever.features(pixels=pixels)
    texts = retriever.features(texts=[*plan.texts, *plan.candidate_texts])
    loss = loss_function(params.train, retriever.model, plan, CPU)(images, texts).total
    image, text = (
        dict(zip(plan.images, images, strict=True)),
        dict(zip([*plan.texts, *plan.candidate_texts], texts, strict=True)),
    )

    def vector(part: object) -> torch.Tensor:
        if isinstance(part, str):
            return image[part]
        return text[part.text] + (image[part.image] if part.image else 0)

    negatives = {0: Candidate("00a", SAID)}
    everything = [e.target for e in MIXED] + list(negatives.values()) + [n for e in MIXED for n in e.negatives]
    candidates = F.normalize(torch.stack([vector(c) for c in everything]), dim=-1)
    queries = F.normalize(
        torch.stack([text[e.instructions[0]] + (image[e.query] if e.query else 0) for e in MIXED]), dim=-1
    )
    expected = F.cross_entropy(queries @ candidates.T / params.train.temperature, torch.arange(4))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_an_mllm_encodes_a_candidate_as_a_whole(params: Params, store: Store, tmp_path: Path):
    retriever = load_retriever(str(save_tiny("qwen2_vl", tmp_path / "tiny")), device="cpu")
    plan = mixed_plan(params)
    images = LoadedImages(ImageLoader(store, retriever.preprocess)(plan.images), range(len(plan.images)))
    encoder = PlanEncoder(retriever.features, CPU, is_joint=True, is_sharded=False, chunk=None)
    with torch.no_grad():
        found, queries = encoder.encode(plan, images)
    content = [
        (None if i < 0 else store.read_image(plan.images[i]), "" if t < 0 else plan.candidate_texts[t])
        for i, t in plan.candidate_parts
    ]
    for n, (image, text) in enumerate(content):
        shown = None if image is None else retriever.preprocess([image])[0]
        alone = retriever.prompt_features([(shown, text)], "candidate")[0]
        assert torch.allclose(found.features[n], alone, atol=1e-4)
    assert queries.features.shape == (4, retriever.dimension)
    by_hand = [
        (None if n < 0 else images.take([n])[0], text) for n, text in zip(plan.query_image, plan.texts, strict=True)
    ]
    with torch.no_grad():
        told = encoder.encode(replace(plan, task="Find the image:"), images)[1]
        expected = retriever.prompt_features(by_hand, "query", "Find the image:")
    assert torch.allclose(told.features, expected, atol=1e-4)
    assert not torch.allclose(told.features, queries.features, atol=1e-2), "None is the model's own instruction"


def test_a_plan_has_its_datasets_task_instruction(params: Params):
    told = [replace(e, task="Find it:") for e in MIXED]
    assert next(plan_steps([WeightedDataset(told, 1.0)], params.train, random.Random(0))).task == "Find it:"
    assert mixed_plan(params).task is None


def test_training_on_every_kind_changes_both_towers(params: Params, store: Store):
    config = with_train(params, locked_steps=0, steps=3).train
    retriever = load_retriever(config.base_model, device="cpu", threads=1)
    before, loader = flat_weights(retriever).clone(), ImageLoader(store, retriever.preprocess)
    data = TrainingData([WeightedDataset(all_examples(store), 1.0), WeightedDataset(MIXED, 9.0)], loader)
    curve = Trainer(retriever, config, seed=0).fit(data)
    assert curve[-1]["loss"] > 0 and not torch.equal(flat_weights(retriever), before)
    texts = WeightedDataset([MIXED[3]], 1.0)  # no image at all
    assert Trainer(retriever, config, seed=0).fit(TrainingData([texts], loader))[-1]["images"] == 0


@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize("processes", [1, 2, 3, 20])
def test_each_process_loads_what_it_encodes(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, is_joint: bool, processes: int
):
    plan = next(plan_steps([WeightedDataset(all_examples(store), 1.0)], params.train, random.Random(0)))
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(grad_cache, "rank_and_processes", lambda rank=rank: (rank, processes))
        shares.append(PlanEncoder(None, CPU, is_joint=is_joint, is_sharded=False, chunk=None).own_images(plan))
    assert set().union(*shares) == set(range(len(plan.images)))
    if processes <= len(plan.images) and not is_joint:
        assert sum(map(len, shares)) == len(plan.images), "no image is decoded twice"
    assert all(shares), "a process without a row of its own runs the towers on the first one"
    assert max(map(len, shares)) < len(plan.images) or processes == 1


def test_a_row_without_weight_gives_no_gradient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grad_cache, "rank_and_processes", lambda: (2, 3))
    monkeypatch.setattr(grad_cache, "gather_rows", lambda rows, count: torch.ones(count, 4))
    tower = torch.nn.Linear(3, 4)
    batch = grad_cache.encode_batch(lambda at: tower(torch.ones(len(at), 3)), 2, None, CPU)
    batch.features.sum().backward()
    batch.backward(batch.features.grad)
    assert tower.weight.grad is not None and not tower.weight.grad.any(), "there, so that all processes sum as many"


def test_what_cannot_be_read_counts_for_nothing(params: Params, store: Store):
    """The loss of a batch with a broken image is that of the batch without the queries that name it."""
    retriever = load_retriever(params.train.base_model, device="cpu")
    examples = all_examples(store)[:4]
    plan = next(plan_steps([WeightedDataset(examples, 1.0)], params.train, random.Random(0)))
    pixels = ImageLoader(store, retriever.preprocess)(plan.images)
    broken = frozenset({plan.images.index("01b"), plan.images.index("02c")})  # a target and a mined negative
    with torch.no_grad():
        images, texts = retriever.features(pixels=pixels), retriever.features(texts=plan.texts)
        found = loss_function(params.train, retriever.model, replace(plan, broken=broken), CPU)(images, texts)
        queries, candidates = queries_and_candidates(plan, images, texts, is_joint=False)
        kept = [n for n, target in enumerate(plan.positive) if plan.images[target] != "01b"]
        columns = [n for n in range(len(plan.images)) if n not in broken]
        similarity = F.normalize(queries[kept], dim=-1) @ F.normalize(candidates[columns], dim=-1).T
        expected = F.cross_entropy(
            similarity / params.train.temperature, torch.tensor([columns.index(plan.positive[n]) for n in kept])
        )
    assert float(found.total) == pytest.approx(float(expected), rel=1e-5) and len(kept) == 3


def test_a_palette_with_transparency_is_resized_before_it_is_rgb(tmp_path: Path):
    """As the released code: `Image.open(path).resize((512, 512)).convert("RGB")`."""
    image = Image.effect_noise((90, 60), 80).convert("RGB").quantize(16)
    image.save(tmp_path / "p.png")
    Image.effect_noise((90, 60), 80).convert("RGBA").save(tmp_path / "a.png")
    files = {f"d:{n}": tmp_path / f"{n}.png" for n in "pa"}
    seen = []
    ImageLoader(Store(tmp_path), lambda images: seen.extend(images) or torch.zeros(len(images), 1), files=files)(
        list(files)
    )
    assert [i.mode for i in seen] == ["P", "RGBA"], "the model's preparation converts, after resizing"
