"""Short trainings of a tiny CLIP, for the tests of tasks/train."""

from pathlib import Path

import torch

from tasks.config import MixedDatasetConfig, Params, TrainConfig
from tasks.models.retrievers.base import Retriever
from tasks.models.retrievers.clip import ClipRetriever
from tasks.publish.further_rows import RowSources, further_rows
from tasks.store import Store
from tasks.train.batches import Example, WeightedDataset, training_examples
from tasks.train.loader import ImageLoader
from tasks.train.trainer import Trainer, TrainingData


def with_train(params: Params, **changes: object) -> Params:
    """The parameters with changes in the train section."""
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def held_captions(store: Store, **options: object) -> tuple[MixedDatasetConfig, ...]:
    """Write rows of captions for the version's images; the dataset that holds three of them beside each step."""
    ids = store.read_table("images", ["image_id"])["image_id"].to_pylist()
    captions = {i: (f"scene {i} of {n} words" + " and one" * (n % 5), "source") for n, i in enumerate(ids)}
    rows = further_rows("caption_to_image", RowSources("w", ids, captions, [], {}, {}, "tiny"))
    store.write(store.folder("data", "rows", "caption_to_image", "w.parquet"), rows, "further_rows")
    held = {"name": "held", "format": "rows", "path": "caption_to_image", "contrast": False, "keep_base": 5.0}
    return (MixedDatasetConfig.model_validate({**held, "held_beside": 3, **options}),)


def all_examples(store: Store) -> list[Example]:
    """The version's triplets, none held out."""
    return training_examples(store.read_table("triplets").to_pylist(), set())


def training_data(store: Store, retriever: Retriever, workers: int = 0) -> TrainingData:
    """All of the version's triplets and their images."""
    loader = ImageLoader(store, retriever.preprocess, workers=workers)
    return TrainingData([WeightedDataset(all_examples(store), 1.0)], loader)


def fit(retriever: Retriever, config: TrainConfig, store: Store) -> list[dict[str, float]]:
    """Train in place with seed 0; returns the curve."""
    return Trainer(retriever, config, seed=0).fit(training_data(store, retriever, config.decode_workers))


def fit_clip(params: Params, store: Store, **changes: object) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Train a fresh base model; returns its weights, flat, and the curve."""
    config = with_train(params, **changes).train
    retriever = ClipRetriever(config.base_model, device="cpu", threads=1)
    curve = fit(retriever, config, store)
    return flat_weights(retriever), curve


def flat_weights(retriever: Retriever) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().flatten() for p in retriever.model.parameters()])


def checkpoint_folders(store: Store) -> list[Path]:
    """Checkpoints of the run, the highest step last."""
    return sorted(store.folder(".run", "train").glob("checkpoint-*"))
