"""Negative controls of the promotion rule: models that only look trained are refused.

They are trained on shuffled instructions, on text without the image, and on the benchmark's own images. All start from
the sample world's CLIP checkpoint and train its text tower as the recipe's locked phase does; a model that was trained
on true triplets is promoted by the same rule on the same benchmark.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from benchmarks.data_efficiency import FitSettings, Images, Sample, fit_texts
from tasks.config import load_params
from tasks.evaluate.benchmarks import read_benchmark
from tasks.evaluate.contamination import FingerprintRecorder, contamination_report
from tasks.evaluate.protocols import Benchmark
from tasks.evaluate.retrieval import encode_images
from tasks.evaluate.scores import score_retriever
from tasks.models.retrievers.clip import ClipRetriever
from tasks.promote.decision import Decision, PromotionRule, decide
from tasks.sample.benchmark import make_benchmark
from tasks.sample.phrases import instruction
from tasks.sample.scenes import Scene, difference, family, shared
from tasks.store import Store

pytestmark = pytest.mark.slow

Scores = dict[str, dict[str, float]]


class Bench(NamedTuple):
    """What the controls share."""

    benchmark: Benchmark
    base: Scores
    honest: Scores
    samples: list[Sample]
    tuned: Callable[[list[Sample]], Scores]
    seen: Callable[[list[str]], float]  # training images -> share of the benchmark's


def true_samples(families: list[list[Scene]], names: dict[Scene, str]) -> list[Sample]:
    """Two members of each family in each direction as query and target, the other members as negatives."""
    samples = []
    for members in families:
        for query, target in (
            (members[0], members[1]),
            (members[1], members[2]),
            (members[2], members[0]),
            (members[3], members[1]),
        ):
            texts = tuple(
                instruction(difference(query, target), shared(query, target), style)
                for style in ("imperative", "noun phrase", "question", "keep")
            )
            negatives = tuple(names[m] for m in members if m not in (query, target))
            samples.append(Sample(names[query], names[target], texts, negatives))
    return samples


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Bench:
    folder = tmp_path_factory.mktemp("benchmark")
    make_benchmark(folder, seed=21, queries=120, gallery=320)
    params = load_params(project / "params.yaml")
    checkpoint = str(project / params.train.base_model)
    benchmark = read_benchmark(folder, "{relative_caption}")
    recorder = FingerprintRecorder(benchmark.read_image)
    benchmark = replace(benchmark, read_image=recorder)
    rng = random.Random(3)
    families = [family(rng, "corpus", 5) for _ in range(80)]
    scenes = list(dict.fromkeys(s for members in families for s in members))
    names = {scene: f"s{n}" for n, scene in enumerate(scenes)}
    base = ClipRetriever(checkpoint, device="cpu", threads=1)
    gallery = encode_images(base, benchmark, 128)
    trained = Images(base, Store(folder), {name: scene for scene, name in names.items()})
    # for the one that trains on the benchmark
    trained.raw |= {key: torch.from_numpy(row) for key, row in gallery.items()}

    def tuned(samples: list[Sample]) -> Scores:
        trained.add([p for s in samples for p in (s.target, *((s.query,) if s.query else ()), *s.negatives)])
        retriever = ClipRetriever(checkpoint, device="cpu", threads=1)
        settings = FitSettings(steps=30, batch=48, rate=0.0015, warmup=5, temperature=0.02)
        fit_texts(retriever, samples, trained.raw, settings)
        return score_retriever(retriever, benchmark, 128, image_features=gallery)

    def seen(images: list[str]) -> float:
        known = FingerprintRecorder(lambda key: benchmark.read_image(key) if key in gallery else _drawn(key))
        for key in dict.fromkeys(images):
            known(key)
        return float(
            contamination_report(benchmark, recorder.fingerprints, list(known.fingerprints.values()), params)["share"]
        )

    def _drawn(key: str):
        from tasks.sample.scenes import draw_image

        return draw_image(trained.drawn[key])

    samples = true_samples(families, names)
    return Bench(
        benchmark, score_retriever(base, benchmark, 128, image_features=gallery), tuned(samples), samples, tuned, seen
    )


def decision(bench: Bench, candidate: Scores, images: list[str]) -> Decision:
    """The rule's decision on a candidate, with no promoted model yet."""
    rule = PromotionRule("map_at_5", min_gain=0.005, seen_share_max=0.01)
    return decide(candidate, None, bench.base, rule, seen_share=bench.seen(images))


def image_ids(samples: list[Sample]) -> list[str]:
    return [p for s in samples for p in (s.target, *((s.query,) if s.query else ()), *s.negatives)]


def test_true_triplets_are_promoted(bench: Bench):
    found = decision(bench, bench.honest, image_ids(bench.samples))
    assert found.is_promoted, found.why


def test_shuffled_instructions_are_refused(bench: Bench):
    texts = [s.texts for s in bench.samples]
    random.Random(1).shuffle(texts)
    shuffled = [replace(s, texts=t) for s, t in zip(bench.samples, texts, strict=True)]
    candidate = bench.tuned(shuffled)
    found = decision(bench, candidate, image_ids(shuffled))
    assert not found.is_promoted, found.why


def test_text_without_the_image_is_refused(bench: Bench):
    alone = [replace(s, query=None) for s in bench.samples]
    candidate = bench.tuned(alone)
    found = decision(bench, candidate, image_ids(alone))
    assert not found.is_promoted, found.why


def test_training_on_the_benchmark_is_refused_though_it_scores_best(bench: Bench):
    (task,) = bench.benchmark.tasks
    stolen = [Sample(q.reference, q.ground_truths[0], (q.text,)) for q in task.queries]
    candidate = bench.tuned(stolen)
    assert candidate["composed"]["map_at_5"] > bench.honest["composed"]["map_at_5"]
    found = decision(bench, candidate, image_ids(stolen))
    assert not found.is_promoted and found.why.startswith("contaminated")
