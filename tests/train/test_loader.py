"""The image loader: ids and files, a bounded cache, prefetching in the plans' order."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.errors import DataError
from tasks.store import Store
from tasks.train.batches import BatchPlan
from tasks.train.loader import WARNED_IMAGES, ImageLoader, prefetch


def red_values(images: list[Image.Image]) -> torch.Tensor:
    """(n, 1) red value of each image's first pixel."""
    return torch.tensor([[i.getpixel((0, 0))[0]] for i in images])


def test_images_of_further_datasets_are_read_from_their_files(tmp_path: Path):
    files = {}
    for n, name in enumerate(("a", "b")):
        files[f"other:{name}"] = tmp_path / f"{name}.png"
        Image.new("RGB", (4, 4), (40 * n, 0, 0)).save(files[f"other:{name}"])
    loader = ImageLoader(Store(tmp_path), red_values, files=files)
    assert loader(["other:b", "other:a", "other:b"])[:, 0].tolist() == [40, 0, 40]
    files["other:a"].write_bytes(b"no image")
    with pytest.raises(DataError, match="not a readable image"):
        ImageLoader(Store(tmp_path), red_values, files=files)(["other:a"])


def test_an_unreadable_image_is_named_once_and_of_many_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    files = {f"other:{n}": tmp_path / f"{n}.png" for n in range(WARNED_IMAGES + 9)}
    loader = ImageLoader(Store(tmp_path), red_values, files=files, cache_bytes=0)
    for _ in range(2):
        rows, broken = loader.load_readable([*files])
        assert len(rows) == len(broken) == len(files)
    assert len(caplog.messages) == WARNED_IMAGES + 1 and "0.png: not a readable image" in caplog.messages[0]
    assert caplog.messages[-1] == f"train: {WARNED_IMAGES} images could not be read; further ones are only counted"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_is_decoded_once_per_call_and_cached_while_there_is_room(store: Store, workers: int):
    decoded = []

    def preprocess(images: list[Image.Image]) -> torch.Tensor:
        decoded.extend(images)
        return torch.stack([torch.from_numpy(np.array(i)) for i in images])

    names = ["00a", "01b", "00a"]
    loader = ImageLoader(store, preprocess, workers=workers)
    rows = loader(names)
    assert len(decoded) == 2 and torch.equal(rows[0], rows[2])
    assert torch.equal(rows[1], torch.from_numpy(np.array(store.read_image("01b"))))
    assert torch.equal(loader(names), rows) and len(decoded) == 2
    uncached = ImageLoader(store, preprocess, workers=workers, cache_bytes=0)
    assert torch.equal(uncached(names), rows) and torch.equal(uncached(names), rows) and len(decoded) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_prefetching_keeps_the_order_of_the_plans(workers: int):
    plans = [BatchPlan([str(n)], [0], [0], ["x"], [1], [[0]], [[0.5]]) for n in range(5)]
    pairs = list(prefetch(iter(plans), lambda images: images[0] * 2, workers))
    assert [(plan.images, loaded) for plan, loaded in pairs] == [([str(n)], str(n) * 2) for n in range(5)]
