"""One step of contrastive training: encode, contrast, go down - on one process or several, in one pass or in chunks.

The loss is taken on the features as on leaves; their gradients are then handed back to the towers. So
- gradient caching (GradCache, arXiv:2101.06983) is the same step with a second pass in chunks: memory is that of a
  chunk
  and of the features, whatever the batch;
- several processes share one batch: each encodes every n-th image and text, features are gathered, everybody takes the
  same loss, gradients of the weights are summed. The step is that of one process with the whole batch.
- with sharded weights (FSDP2) the backward pass itself reduces, to the mean: it is handed the gradient times the
  processes,
  and every process goes through the towers as often as the others, with a row of no weight where it has one less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from tasks.errors import DataError
from tasks.train.loss import Loss

if TYPE_CHECKING:
    from tasks.train.accelerator import Machine

Encode = Callable[[Sequence[int]], torch.Tensor]  # positions in the batch -> (n, d) raw features
Back = Callable[[torch.Tensor], None]  # gradient of all features (count, d) -> gradients of the weights


def world() -> tuple[int, int]:
    """(rank, processes); (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def gathered(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Rows of all processes in the batch's order, without gradient.

    Args:
        rows: (n, d), those of positions rank, rank + processes, ...
        count: rows of the whole batch.
    Returns:
        (count, d).
    """
    rank, processes = world()
    if processes == 1:
        return rows.detach()
    padded = rows.new_zeros(math.ceil(count / processes), rows.shape[1])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:count].contiguous()  # position p = round * processes + rank


@contextmanager
def same_dice(device: torch.device) -> Iterator[Callable[[], None]]:
    """Yields a function that puts the random state back to where it was on entry: dropout falls as before."""
    state = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def again() -> None:
        torch.set_rng_state(state)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)

    yield again


def encoded(
    encode: Encode, count: int, chunk: int | None, device: torch.device, *, is_sharded: bool = False
) -> tuple[torch.Tensor, Back]:
    """Features of a batch as a leaf, and the way back into the weights.

    Args:
        encode: a tower; called with positions of this process.
        count: rows of the whole batch.
        chunk: rows in one pass; all at once where None.
        device: where the tower is.
        is_sharded: the weights are spread over the processes.
    Returns:
        (count, d) leaf, and a function to be called once with its gradient.
    """
    rank, processes = world()
    mine = list(range(rank, count, processes))
    weights = [1] * len(mine)
    if is_sharded and len(mine) < math.ceil(count / processes):
        mine, weights = [*mine, 0], [*weights, 0]
    own_rows = sum(weights)

    def share(gradient: torch.Tensor, at: slice) -> torch.Tensor:
        """Of all features' gradient what is handed to the pass of `mine[at]`."""
        if processes == 1:
            return gradient if len(mine[at]) == count else gradient[mine[at]]
        rows = gradient[mine[at]]
        return rows * (processes * rows.new_tensor(weights[at])[:, None]) if is_sharded else rows

    if chunk is None or chunk >= len(mine):
        own = encode(mine)
        leaf = gathered(own[:own_rows], count).requires_grad_()
        return leaf, lambda gradient: own.backward(share(gradient, slice(None)))  # type: ignore[no-untyped-call]
    parts = [slice(start, start + chunk) for start in range(0, len(mine), chunk)]
    dice = []
    rows = []
    with torch.no_grad():
        for part in parts:
            with same_dice(device) as again:
                dice.append(again)
                rows.append(encode(mine[part]))
    leaf = gathered(torch.cat(rows)[:own_rows], count).requires_grad_()

    def back(gradient: torch.Tensor) -> None:
        for part, again in zip(parts, dice, strict=True):
            again()
            encode(mine[part]).backward(share(gradient, part))  # type: ignore[no-untyped-call]

    return leaf, back


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum the gradients over all processes, in one message; a parameter without gradient stays without."""
    if world()[1] == 1:
        return
    given = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in given if p.grad is not None])
    dist.all_reduce(flat)
    for p, part in zip(given, flat.split([p.numel() for p in given]), strict=True):
        p.grad = part.view_as(p)


def descend(
    optimizer: torch.optim.Optimizer,
    contrast: Callable[[torch.Tensor, torch.Tensor], Loss],
    images: tuple[torch.Tensor, Back | None],
    texts: tuple[torch.Tensor, Back | None],
    *,
    rate: float,
    step: int,
    machine: Machine,
) -> Loss:
    """One step of the optimiser.

    Args:
        optimizer: its first group is the towers'; others (a learnt temperature) have the same gradient in every
            process.
        contrast: (c, d) raw images, (b, d) raw texts -> loss.
        images: features and their way back; None where the tower is locked.
        texts: likewise.
        rate: learning rate.
        step: for the error.
        machine: clips the gradients; where the weights are sharded it has summed them already.
    Raises:
        DataError: the loss or the gradient is not finite; no weight was changed.
    """
    parts = contrast(images[0], texts[0])
    loss = float(parts.total.detach())
    if not math.isfinite(loss):
        raise DataError(
            f"train: the loss is {loss} at step {step}; lower train.learning_rate or raise train.temperature"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    parts.total.backward()  # type: ignore[no-untyped-call]
    for rows, back in (images, texts):
        if back is not None and rows.grad is not None:
            back(rows.grad)
    if not machine.is_sharded:
        sum_gradients(optimizer.param_groups[0]["params"])
    norm = machine.clip([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    if not math.isfinite(norm):
        raise DataError(
            f"train: the gradient is {norm} at step {step} (loss {loss:g}); lower train.learning_rate, or train in float32"
        )
    optimizer.step()
    return parts
