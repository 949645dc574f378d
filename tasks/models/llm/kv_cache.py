"""Two forms of the attention cache: one with room to grow, and one that ends a pass where nothing more of it is needed.

transformers' DynamicLayer joins old and new keys at every token, a copy of all that is there; here they are written
behind one another.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64  # tokens of room that a layer takes at a time, a count


class RoomyLayer(DynamicLayer):
    """Keys and values (batch, heads, tokens, width) in front of free room; full, the room doubles."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write behind what is there; all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = (key_states[:, :, :0], value_states[:, :, :0])
        start = self.keys.shape[-2] if self.keys.numel() else 0
        end = start + key_states.shape[-2]
        if end > self._room[0].shape[-2]:
            length = max(end + ROOM, 2 * start)
            self._room = tuple(
                new.new_empty((*new.shape[:2], length, new.shape[3])) for new in (key_states, value_states)
            )
            if start:
                self._room[0][:, :, :start], self._room[1][:, :, :start] = self.keys, self.values
        self._room[0][:, :, start:end], self._room[1][:, :, start:end] = key_states, value_states
        self.keys, self.values = self._room[0][:, :, :end], self._room[1][:, :, :end]
        return self.keys, self.values


def roomy_cache(config: Any) -> DynamicCache:
    """The cache that the model's configuration asks for; layers of full attention have room to grow."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _PaddedLayer(DynamicLayer):
    """Keys and values that attention sees behind zeros up to a fixed length, for the mask to hide."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.length = keys, values, length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As DynamicLayer's, padded."""
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        rooms = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            room = new.new_zeros((*new.shape[:2], self.length, new.shape[3]))
            room[:, :, :start], room[:, :, start:end] = old, new
            rooms.append(room)
        self.keys, self.values = (room[:, :, :end] for room in rooms)
        return rooms[0], rooms[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys seen, their offset)."""
        return self.length, 0


def can_choose(cache: DynamicCache) -> bool:
    """Whether `chosen` knows all the cache's layers."""
    return all(isinstance(layer, DynamicLayer) and not layer.is_sliding for layer in cache.layers)


def chosen(cache: DynamicCache, rows: torch.Tensor, length: int) -> DynamicCache:
    """A cache of the given rows, (n,) int64, of this one; attention over it is always `length` tokens long, a count.

    The bits of attention depend on how many keys it runs over, hidden ones included, and on nothing else of its
    neighbours.
    """
    other = copy.copy(cache)
    other.layers = [_PaddedLayer(layer.keys[rows], layer.values[rows], length) for layer in cache.layers]
    return other


class _Filled(Exception):
    """The last layer has its keys and values."""


class _LastLayer(DynamicLayer):
    """Ends the pass once its keys and values are there, the first time."""

    is_done = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As DynamicLayer's; the first call does not return."""
        found = super().update(key_states, value_states, *args, **kwargs)
        if not self.is_done:
            self.is_done = True
            raise _Filled
        return found


def filled_cache(model: Any, config: Any, **inputs: Any) -> DynamicCache:
    """The cache after a pass of `model` over `inputs`, without what the pass would go on to compute of its last layer:
    nobody reads that.
    """
    cache = DynamicCache(config=config)
    if type(cache.layers[-1]) is not DynamicLayer:
        model(**inputs, past_key_values=cache, use_cache=True)
        return cache
    cache.layers[-1] = _LastLayer()
    with contextlib.suppress(_Filled):
        model(**inputs, past_key_values=cache, use_cache=True)
    return cache
