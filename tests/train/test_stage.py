"""The stage as a whole: what fails leaves no candidate and the promoted model as it was."""

from pathlib import Path

import pytest

from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.store import Store
from tasks.train.stage import run
from tests.support.training import with_train


def test_a_loss_that_is_not_finite_stops_the_training(params: Params, store: Store, promoted_file: Path):
    with pytest.raises(DataError, match="the loss is nan at step"):
        run(with_train(params, locked_steps=0, learning_rate=1e30, warmup_steps=0), store)
    assert promoted_file.read_bytes() == b"promoted" and not store.folder("models", "candidate").exists()


def test_a_version_without_triplets_is_refused(params: Params, store: Store, promoted_file: Path):
    for file in store.table_files("triplets"):
        file.unlink()
    with pytest.raises(DataError, match="no triplet to train on among 0"):
        run(params, store)
    assert promoted_file.read_bytes() == b"promoted" and not store.folder("models", "candidate").exists()


def test_sharding_on_one_process_is_refused(params: Params, store: Store):
    with pytest.raises(ConfigError, match="needs several processes on GPUs"):
        run(with_train(params, shard_weights=True), store)
    assert not store.folder("models", "candidate").exists()
