"""Vectors are kept by weights and image: computed once, by whoever needs them first."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.errors import ConfigError
from tasks.evaluate.encode import EncodeSettings, ModelScorer, weights_name
from tasks.evaluate.protocols import Benchmark, Query, Task
from tasks.evaluate.protocols.base import image_reader
from tasks.models.retrievers.clip import ClipRetriever
from tasks.models.retrievers.content_encoders import JointEncoder
from tasks.models.retrievers.kept_rows import ROWS_PER_FILE, EncodeOptions, KeptRows


class Counting:
    """Computes a row from an id, and says how often."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids, self.computed = ids, list[str]()

    def __call__(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        for start in range(0, len(positions), 100):
            batch = [self.ids[n] for n in positions[start : start + 100]]
            self.computed += batch
            yield np.array([[len(i), int(i)] for i in batch], np.float32)


def test_rows_are_computed_once_in_any_order_and_company(tmp_path: Path):
    ids = [str(n) for n in range(2 * ROWS_PER_FILE + 300)]
    first = Counting(ids)
    rows = KeptRows(tmp_path).rows(ids, first)
    assert first.computed == ids and np.array_equal(rows[:, 1], np.arange(len(ids)))
    assert len(list(tmp_path.glob("*.npz"))) == 3
    others = [*reversed(ids[:500]), "9999", *ids[-3:]]
    again, kept = Counting(others), []
    rows = KeptRows(tmp_path).rows(others, again, kept.append)
    assert again.computed == ["9999"] and kept == [503]
    assert np.array_equal(rows[:, 1], [int(i) for i in others])


def test_a_killed_encoding_loses_one_file_and_a_broken_file_is_computed_again(tmp_path: Path):
    ids = [str(n) for n in range(2 * ROWS_PER_FILE)]
    compute = Counting(ids)

    def killed(positions: Sequence[int]) -> Iterator[np.ndarray]:
        for n, batch in enumerate(compute(positions)):
            if n == 15:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        KeptRows(tmp_path).rows(ids, killed)
    (file,) = tmp_path.iterdir()
    again = Counting(ids)
    rows = KeptRows(tmp_path).rows(ids, again)
    assert len(again.computed) < ROWS_PER_FILE + 100 and np.array_equal(rows[:, 1], np.arange(len(ids)))
    file.write_bytes(file.read_bytes()[:-100])
    last = Counting(ids)
    assert np.array_equal(KeptRows(tmp_path).rows(ids, last), rows) and ROWS_PER_FILE <= len(last.computed) < len(ids)


class MeanColour:
    """A fast model; counts what it encodes."""

    revision, device, is_joint = "weights", "cpu", False
    content_encoder = ClipRetriever.content_encoder

    def __init__(self) -> None:
        self.encoded = 0

    def raw_image_features(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.encoded += len(images)
        return np.array([np.asarray(i, np.float32).mean((0, 1)) for i in images])

    def raw_text_features(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(t), 1.0, 2.0] for t in texts], np.float32)


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    files = {str(n): tmp_path / "images" / f"{n}.png" for n in range(40)}
    (tmp_path / "images").mkdir()
    for n, path in enumerate(files.values()):
        Image.new("RGB", (8, 8), (n, 2 * n, 255 - n)).save(path)
    queries = [Query(str(n), str(n), "x", (str(n + 1),)) for n in range(5)]
    return Benchmark("b", "circo", "val", {"": "x"}, [Task("", queries, list(files))], image_reader(files), files=files)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_second_model_with_the_same_weights_encodes_nothing(benchmark: Benchmark, tmp_path: Path, workers: int):
    settings = EncodeSettings(batch_images=7, workers=workers, vectors=tmp_path / "vectors")
    one, other = MeanColour(), MeanColour()
    expected = ModelScorer(one, settings, "a").retrieve(benchmark)
    assert ModelScorer(other, settings, "a").retrieve(benchmark) == expected and (one.encoded, other.encoded) == (40, 0)
    Image.new("RGB", (9, 9), "red").save(benchmark.files["7"])  # another image under the same name
    assert ModelScorer(other, settings, "a").retrieve(benchmark) != expected and other.encoded == 1
    low = EncodeSettings(batch_images=7, precision="bfloat16", vectors=tmp_path / "vectors")
    ModelScorer(other, low, "a").retrieve(benchmark)
    assert other.encoded == 41, "another arithmetic has vectors of its own"
    with pytest.raises(ConfigError, match="float16"):
        ModelScorer(other, EncodeSettings(precision="float16"), "a").retrieve(benchmark)


def test_weights_and_configuration_name_the_vectors(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "preprocessor_config.json").write_text("{}")
    one, other = (weights_name(str(tmp_path / name), "r", "float32") for name in ("a", "b"))
    assert one == other, "base and candidate in place have the same vectors wherever they lie"
    (tmp_path / "b" / "preprocessor_config.json").write_text('{"size": 1}')
    assert weights_name(str(tmp_path / "b"), "r", "float32") != one != weights_name(str(tmp_path / "a"), "s", "float32")
    assert weights_name("hub/one", "r", "float32") != weights_name("hub/two", "r", "float32")


class Joint:
    """An MLLM in two lines: the vector of a content holds its role, image and text."""

    dimension, instruction = 3, "find it"

    def __init__(self) -> None:
        self.encoded = 0

    def preprocess(self, images: Sequence[Any]) -> list[Any]:
        return list(images)

    def raw_features(self, contents: Sequence[tuple[Any, str]], role: str) -> np.ndarray:
        self.encoded += len(contents)
        return np.array([[len(role), image or 0, len(text)] for image, text in contents], np.float32)


def test_contents_of_an_mllm_are_kept_by_role_image_text_and_instruction(tmp_path: Path):
    contents = [("1", ""), ("1", "blue"), (None, "blue"), ("2", "blue")]

    def vectors(model: Joint) -> np.ndarray:
        encoder = JointEncoder(model, lambda key: int(key), 2, EncodeOptions(KeptRows(tmp_path)))
        return np.concatenate([encoder.encode(contents, "query"), encoder.encode(contents, "candidate")])

    one, other = Joint(), Joint()
    expected = vectors(one)
    assert np.array_equal(vectors(other), expected) and (one.encoded, other.encoded) == (8, 0)
    other.instruction = "find another"
    vectors(other)
    assert other.encoded == 4, "queries have the instruction, candidates have none"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_several_devices_share_the_batches_and_give_the_vectors_of_one(benchmark: Benchmark, precision: str):
    settings = EncodeSettings(batch_images=3, workers=2, precision=precision)
    models = [MeanColour() for _ in range(3)]
    expected = ModelScorer(MeanColour(), settings, "a").retrieve(benchmark)
    assert ModelScorer(models[0], settings, "a", models[1:]).retrieve(benchmark) == expected  # type: ignore[arg-type]
    assert sorted(model.encoded for model in models) == [12, 13, 15]


def test_what_breaks_on_one_device_ends_the_encoding(benchmark: Benchmark):
    class Broken(MeanColour):
        def raw_image_features(self, images: Sequence[Image.Image]) -> np.ndarray:
            raise ConfigError("out of memory")

    settings = EncodeSettings(batch_images=3)
    with pytest.raises(ConfigError, match="out of memory"):
        ModelScorer(MeanColour(), settings, "a", [Broken()]).retrieve(benchmark)  # type: ignore[arg-type,list-item]
