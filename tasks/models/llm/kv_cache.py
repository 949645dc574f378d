"""Key-value caches for transformers: one that grows without copying, and one for a prefix that many questions share.

transformers' DynamicLayer concatenates old and new keys at every token, a copy of everything so far; a GrowingLayer
writes new keys into room that is allocated ahead. `prefill_cache` computes the cache of a prefix and skips the rest of
the last layer; `select_rows` gives each question its own row of it.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64  # tokens of free room that a layer allocates at least, a count


class GrowingLayer(DynamicLayer):
    """Keys and values (batch, heads, tokens, width) at the start of a larger buffer, which doubles when it is full."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values; returns all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffer = (key_states[:, :, :0], value_states[:, :, :0])
        start = self.keys.shape[-2] if self.keys.numel() else 0
        end = start + key_states.shape[-2]
        if end > self._buffer[0].shape[-2]:
            length = max(end + ROOM, 2 * start)
            self._buffer = tuple(
                new.new_empty((*new.shape[:2], length, new.shape[3])) for new in (key_states, value_states)
            )
            if start:
                self._buffer[0][:, :, :start], self._buffer[1][:, :, :start] = self.keys, self.values
        self._buffer[0][:, :, start:end], self._buffer[1][:, :, start:end] = key_states, value_states
        self.keys, self.values = self._buffer[0][:, :, :end], self._buffer[1][:, :, :end]
        return self.keys, self.values


def growing_cache(config: Any) -> DynamicCache:
    """The cache that the model's configuration asks for, with GrowingLayer for full attention."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _PaddedLayer(DynamicLayer):
    """Keys and values followed by zeros up to a fixed length, which the attention mask hides."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.length = keys, values, length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values; returns all of them so far, padded to the fixed length."""
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        padded = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            states = new.new_zeros((*new.shape[:2], self.length, new.shape[3]))
            states[:, :, :start], states[:, :, start:end] = old, new
            padded.append(states)
        self.keys, self.values = (states[:, :, :end] for states in padded)
        return padded[0], padded[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys that attention runs over, their offset)."""
        return self.length, 0


def select_rows(cache: DynamicCache, rows: torch.Tensor, length: int) -> DynamicCache:
    """A cache of the given rows, (n,) int64, of this one; attention over it always runs over `length` keys, a count.

    The bits of an attention output depend on the number of keys, hidden ones included, but not on the other rows of the
    batch: a fixed length makes answers independent of the batch.
    """
    selected = copy.copy(cache)
    selected.layers = [_PaddedLayer(layer.keys[rows], layer.values[rows], length) for layer in cache.layers]
    return selected


class _PrefillDone(Exception):
    """The last layer has its keys and values."""


class _LastLayer(DynamicLayer):
    """Ends the forward pass at its first update, once its keys and values are stored."""

    is_done = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As of DynamicLayer; the first call raises _PrefillDone."""
        states = super().update(key_states, value_states, *args, **kwargs)
        if not self.is_done:
            self.is_done = True
            raise _PrefillDone
        return states


def prefill_cache(model: Any, config: Any, **inputs: Any) -> DynamicCache:
    """The cache after a pass of `model` over `inputs`.

    The pass ends once the last layer has its keys and values: its output is not needed.
    """
    cache = DynamicCache(config=config)
    if type(cache.layers[-1]) is not DynamicLayer:
        model(**inputs, past_key_values=cache, use_cache=True)
        return cache
    cache.layers[-1] = _LastLayer()
    with contextlib.suppress(_PrefillDone):
        model(**inputs, past_key_values=cache, use_cache=True)
    return cache
