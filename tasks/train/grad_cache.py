"""One training step: encode, contrastive loss, backward pass with gradient caching; on one process or several.

The loss is computed on the features as on leaves of the graph; their gradients are then passed back into the towers. So

- gradient caching (GradCache, arXiv:2101.06983) is the same step with a second forward pass in chunks: memory is that
  of one chunk and of the features, whatever the batch size;
- several processes share one batch: each encodes every n-th image and text, the features are gathered, all compute the
  same loss, and the gradients of the weights are summed. The step equals that of one process with the whole batch;
- with sharded weights (FSDP2) the backward pass itself reduces gradients, to the mean: it is given the gradient times
  the number of processes, and every process runs the towers as often as the others, with a row of weight zero where it
  has one row less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist

from tasks.errors import DataError
from tasks.train.accelerator import TrainingRuntime
from tasks.train.loss import Loss
from tasks.train.optimizer import SAME_EVERYWHERE

Encode = Callable[[Sequence[int]], torch.Tensor]  # positions in the batch -> (n, d) raw features


class EncodedBatch(NamedTuple):
    """Features of a batch, cut off from the towers' graph.

    Attributes:
        features: (count, d), a leaf.
        backward: called once with the gradient of all features (count, d), it adds the gradients of the weights; None
            where the tower is frozen.
    """

    features: torch.Tensor
    backward: Callable[[torch.Tensor], None] | None


def rank_and_processes() -> tuple[int, int]:
    """(rank, processes); (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def own_positions(count: int, *, is_sharded: bool = False) -> tuple[list[int], list[int]]:
    """The rows of a batch that this process encodes.

    A process without a row of its own encodes the first one with weight 0, so that every process runs the towers; with
    sharded weights all run them equally often.

    Args:
        count: rows of the whole batch.
        is_sharded: the weights are spread over the processes.
    Returns:
        Positions in the batch, and the weight of each, 1 or 0.
    """
    rank, processes = rank_and_processes()
    positions = list(range(rank, count, processes))
    weights = [1] * len(positions)
    if count and (not positions or (is_sharded and len(positions) < math.ceil(count / processes))):
        return [*positions, 0], [*weights, 0]
    return positions, weights


def gather_rows(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Rows of all processes in the batch's order, without gradient.

    Args:
        rows: (n, d), those of positions rank, rank + processes, ...; n may be 0.
        count: rows of the whole batch.
    Returns:
        (count, d).
    """
    _, processes = rank_and_processes()
    if processes == 1:
        return rows.detach()
    padded = rows.new_zeros(math.ceil(count / processes), rows.shape[1])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:count].contiguous()  # position p = round * processes + rank


@contextmanager
def replay_rng_state(device: torch.device) -> Iterator[Callable[[], None]]:
    """Yield a function that sets the random state back to what it was on entry, so that dropout repeats itself."""
    state = torch.get_rng_state()
    device_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        torch.set_rng_state(state)
        if device_state is not None:
            torch.cuda.set_rng_state(device_state, device)

    yield restore


def encode_batch(
    encode: Encode, count: int, chunk: int | None, device: torch.device, *, is_sharded: bool = False
) -> EncodedBatch:
    """Encode this process's rows of a batch and gather those of the others.

    Args:
        encode: a tower; called with positions of this process.
        count: rows of the whole batch.
        chunk: rows in one pass; all at once where None.
        device: device of the tower.
        is_sharded: the weights are spread over the processes.
    """
    _, processes = rank_and_processes()
    positions, row_weights = own_positions(count, is_sharded=is_sharded)
    own_rows = sum(row_weights)

    def part_gradient(part: slice, gradient: torch.Tensor) -> torch.Tensor:
        """The rows of all features' gradient that belong to the pass of `positions[part]`."""
        if processes == 1:
            return gradient if len(positions[part]) == count else gradient[positions[part]]
        rows = gradient[positions[part]]
        return rows * ((processes if is_sharded else 1) * rows.new_tensor(row_weights[part])[:, None])

    if chunk is None or chunk >= len(positions):
        own = encode(positions)
        leaf = gather_rows(own[:own_rows], count).requires_grad_()
        everything = slice(None)
        return EncodedBatch(leaf, lambda gradient: own.backward(part_gradient(everything, gradient)))  # type: ignore[no-untyped-call]
    parts = [slice(start, start + chunk) for start in range(0, len(positions), chunk)]
    rng_states = []
    rows = []
    with torch.no_grad():
        for part in parts:
            with replay_rng_state(device) as restore:
                rng_states.append(restore)
                rows.append(encode(positions[part]))
    leaf = gather_rows(torch.cat(rows)[:own_rows], count).requires_grad_()

    def backward(gradient: torch.Tensor) -> None:
        for part, restore in zip(parts, rng_states, strict=True):
            restore()
            encode(positions[part]).backward(part_gradient(part, gradient))  # type: ignore[no-untyped-call]

    return EncodedBatch(leaf, backward)


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum the gradients over all processes, in one message; a parameter without gradient in any stays without.

    Processes differ in what has a gradient: one whose share has texts alone runs no image tower.
    """
    if rank_and_processes()[1] == 1:
        return
    has_gradient = torch.tensor(
        [p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device
    )
    dist.all_reduce(has_gradient, op=dist.ReduceOp.MAX)
    given = [p for p, has in zip(parameters, has_gradient.tolist(), strict=True) if has]
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in given])
    dist.all_reduce(flat)
    for p, part in zip(given, flat.split([p.numel() for p in given]), strict=True):
        p.grad = part.view_as(p)


def united(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Each flag, set where any process sets it; all processes call this with as many."""
    if rank_and_processes()[1] == 1 or not flags:
        return list(flags)
    tensor = torch.tensor(flags, dtype=torch.uint8, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in tensor.tolist()]


def training_step(
    runtime: TrainingRuntime,
    optimizer: torch.optim.Optimizer,
    loss_function: Callable[[torch.Tensor, torch.Tensor], Loss],
    images: EncodedBatch,
    texts: EncodedBatch,
    *,
    learning_rate: float,
    step: int,
) -> Loss:
    """One step of the optimiser: loss, backward pass, clipping, update.

    Args:
        runtime: clips the gradients; where the weights are sharded it has summed them already.
        optimizer: groups marked SAME_EVERYWHERE (a learnt temperature) have the same gradient in every process.
        loss_function: (c, d) raw images, (b, d) raw texts or queries -> loss.
        images: of the batch.
        texts: of the batch; queries where image and text are encoded together.
        learning_rate: of this step.
        step: its number, for the error.
    Raises:
        DataError: the loss or the gradient is not finite; no weight was changed.
    """
    loss = loss_function(images.features, texts.features)
    value = float(loss.total.detach())
    if not math.isfinite(value):
        raise DataError(
            f"train: the loss is {value} at step {step}; lower train.learning_rate or raise train.temperature"
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()  # type: ignore[no-untyped-call]
    for encoded in (images, texts):
        if encoded.backward is not None and encoded.features.grad is not None:
            encoded.backward(encoded.features.grad)
    groups = optimizer.param_groups
    if not runtime.is_sharded:
        sum_gradients([p for group in groups if not group.get(SAME_EVERYWHERE) for p in group["params"]])
    norm = runtime.clip_gradients([p for group in groups for p in group["params"]])
    if not math.isfinite(norm):
        raise DataError(
            f"train: the gradient is {norm} at step {step} (loss {value:g}); lower train.learning_rate, or train in "
            "float32"
        )
    optimizer.step()
    return loss
