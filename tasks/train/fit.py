"""The training loop: phases, learning rate, optimiser, one step, the locked phase."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from tasks.config import TrainConfig
from tasks.errors import ConfigError
from tasks.train.batches import Example, Plan, locked_plans, plans
from tasks.train.loader import ahead

if TYPE_CHECKING:
    import torch

    from tasks.models.retrievers.base import Retriever
    from tasks.train.accelerator import Machine
    from tasks.train.loss import Loss
    from tasks.train.run_log import Course


PHASES = ("locked", "both")


def rate_at(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Learning rate of a step (from 0): linear up to `peak` over `warmup` steps, then linear down to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


def contrast_of(
    config: TrainConfig, model: Any, plan: Plan, device: torch.device, *, is_joint: bool = False
) -> Callable[[torch.Tensor, torch.Tensor], Loss]:
    """The loss of a plan: (c, d) raw images, (b, d) raw texts, or raw queries where image and text are encoded together
    -> parts.
    """
    import torch
    import torch.nn.functional as F

    from tasks.train.loss import Judged, info_nce

    positive, query = (torch.tensor(x, device=device) for x in (plan.positive, plan.query))

    def contrast(images: torch.Tensor, texts: torch.Tensor) -> Loss:
        judged = None
        if config.judge_weight:
            scores = torch.tensor(plan.scores, device=device)
            judged = Judged(
                torch.tensor(plan.columns, device=device), scores, config.judge_temperature, config.judge_weight
            )
        return info_nce(
            F.normalize(texts if is_joint else images[query] + texts, dim=-1),
            F.normalize(images, dim=-1),
            image_ids=torch.arange(len(images), device=device),
            positive=positive,
            query_image=query,
            temperature=(-model.logit_scale.clamp(max=math.log(100))).exp()
            if config.learn_temperature
            else config.temperature,
            mask_margin=config.mask_margin,
            copies=torch.tensor(plan.copies, device=device) if config.count_copies else None,
            judged=judged,
        )

    return contrast


def optimizer_of(model: Any, config: TrainConfig, peak: float) -> torch.optim.Optimizer:
    """AdamW over the model; a learnt temperature is a group of its own, without weight decay.

    Raises:
        ConfigError: a learnt temperature is asked for and the model has none.
    """
    import torch

    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    if config.learn_temperature:
        if not isinstance(getattr(model, "logit_scale", None), torch.nn.Parameter):
            raise ConfigError(
                f"'train.learn_temperature' is on, but a {type(model).__name__} has no logit_scale; switch it off"
            )
        groups = [
            {"params": [p for p in model.parameters() if p is not model.logit_scale]},
            {"params": [model.logit_scale], "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)


def figures_of(parts: Loss, plan: Plan, config: TrainConfig, model: Any) -> dict[str, float]:
    """What a step says of itself; an option's figure only where the option is on."""
    out = {
        "loss": float(parts.total.detach()),
        "accuracy": float(parts.accuracy),
        "query_margin": float(parts.query_margin),
    }
    out["images"] = float(len(plan.shown))
    if config.mask_margin is not None:
        out["masked"] = float(parts.masked)
    if config.judge_weight:
        out["divergence"] = float(parts.divergence)
    if config.learn_temperature:
        out["temperature"] = max(math.exp(-float(model.logit_scale.detach())), 0.01)
    return out


def adapt(retriever: Retriever, config: TrainConfig, seed: int) -> None:
    """Make the retriever ready for the recipe: put the adapters in.

    Raises:
        ConfigError: the recipe does not suit the model's type.
    """
    if retriever.is_joint and config.locked_steps:
        raise ConfigError(
            f"'train.locked_steps' is {config.locked_steps}: model '{config.base_model}' reads image and text together, no tower can be locked; set it to 0"
        )
    if config.lora is None:
        return
    if config.shard_weights:
        raise ConfigError(
            "'train.lora' and 'train.shard_weights' do not go together: adapters are not merged into shards; switch one of them off"
        )
    retriever.add_adapters(**config.lora.model_dump(), seed=seed)


def fit(
    retriever: Retriever,
    examples: Sequence[Example],
    pixels: Callable[[list[str]], Any],
    config: TrainConfig,
    seed: int,
    *,
    more: Sequence[tuple[Sequence[Example], float]] = (),
    course: Course | None = None,
    machine: Machine | None = None,
) -> list[dict[str, float]]:
    """Train in place.

    Args:
        retriever: its model is changed.
        examples: at least one.
        pixels: image ids -> (n, 3, height, width), or a list of images of an MLLM.
        config: steps, batch, rates.
        seed: of the order, the instructions and the negatives.
        more: further datasets, examples and weight of each.
        course: checkpoint and metrics; a bare curve where None.
        machine: of the retriever and the config; a new one where None.
    Returns:
        The curve: per `LOGGED_STEPS` steps their mean loss, accuracy, query_margin and number of images.
    Raises:
        DataError: the loss is not finite, or there is no example.
        ConfigError: a learnt temperature without logit_scale.
    """
    import torch

    from tasks.train.accelerator import Machine
    from tasks.train.run_log import Course

    torch.manual_seed(seed)
    model = retriever.model
    if config.learn_temperature and hasattr(model, "logit_scale"):
        model.logit_scale.data.fill_(-math.log(config.temperature))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    course = course or Course(config.locked_steps + config.steps)
    machine = machine or Machine(retriever, config)
    if config.locked_steps and not course.is_past("locked", PHASES):
        fit_locked(retriever, examples, pixels, config, seed, course=course, machine=machine)
    optimizer = machine.prepare(optimizer_of(model, config, config.learning_rate))
    machine.towers.train()
    done = course.restore("both", machine)
    steps = islice(plans([(examples, config.version_weight), *more], config, random.Random(seed)), done, config.steps)
    for step, (plan, shown) in enumerate(ahead(steps, pixels, config.decode_workers), done):
        rate = rate_at(step, steps=config.steps, warmup=config.warmup_steps, peak=config.learning_rate)
        number = config.locked_steps + step + 1
        parts = take_step(machine, optimizer, plan, shown, config, rate=rate, step=number)
        course.note(number, figures_of(parts, plan, config, model), last=step + 1 == config.steps)
        course.keep(number, "both", step + 1, machine)
    model.eval()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    return course.curve


def take_step(
    machine: Machine, optimizer: Any, plan: Plan, shown: torch.Tensor, config: TrainConfig, *, rate: float, step: int
) -> Loss:
    """One step of both towers: every distinct image of the plan is encoded once, and every text.

    Args:
        machine: its towers are changed.
        optimizer: as `Machine.prepare` gave it.
        plan: of the step.
        shown: (c, 3, height, width) pixels of the plan's images.
        config: cache_chunk and what the loss needs.
        rate: learning rate.
        step: from 1, for the error.
    Raises:
        DataError: the loss is not finite; nothing was changed.
    """
    from tasks.train.grad_cache import descend, encoded

    device, shards = machine.device, machine.is_sharded
    with machine.autocast():
        images = encoded(
            partial(image_rows, machine.towers, shown), len(plan.shown), config.cache_chunk, device, is_sharded=shards
        )
        rows = (
            partial(query_rows, machine.towers, shown, plan)
            if machine.retriever.is_joint
            else partial(text_rows, machine.towers, plan.texts)
        )
        texts = encoded(rows, len(plan.texts), config.cache_chunk, device, is_sharded=shards)
    contrast = contrast_of(config, machine.retriever.model, plan, device, is_joint=machine.retriever.is_joint)
    return descend(optimizer, contrast, images, texts, rate=rate, step=step, machine=machine)


def fit_locked(
    retriever: Retriever,
    examples: Sequence[Example],
    pixels: Callable[[list[str]], torch.Tensor],
    config: TrainConfig,
    seed: int,
    *,
    course: Course | None = None,
    machine: Machine | None = None,
) -> list[dict[str, float]]:
    """Train the text tower in place; arguments, curve and errors as of `fit`."""
    import torch

    from tasks.train.accelerator import Machine
    from tasks.train.grad_cache import descend, encoded
    from tasks.train.run_log import Course

    model = retriever.model
    course = course or Course(config.locked_steps)
    machine = machine or Machine(retriever, config)
    optimizer = machine.prepare(optimizer_of(model, config, config.locked_learning_rate))
    towers, device, shards = machine.towers.eval(), machine.device, machine.is_sharded
    pool = list(dict.fromkeys(i for e in examples for i in (e.query, e.target, *e.negatives)))
    with torch.no_grad(), machine.autocast():
        raw = torch.cat([towers(pixels=pixels(pool[n : n + 128])) for n in range(0, len(pool), 128)])
    towers.train()
    done = course.restore("locked", machine)
    steps = islice(locked_plans(examples, pool, config, random.Random(f"locked:{seed}")), done, config.locked_steps)
    for step, plan in enumerate(steps, done):
        with machine.autocast():
            texts = encoded(
                partial(text_rows, towers, plan.texts), len(plan.texts), config.cache_chunk, device, is_sharded=shards
            )
        rate = rate_at(step, steps=config.locked_steps, warmup=config.warmup_steps, peak=config.locked_learning_rate)
        contrast = contrast_of(config, model, plan, device)
        parts = descend(optimizer, contrast, (raw[plan.shown], None), texts, rate=rate, step=step + 1, machine=machine)
        course.note(step + 1, figures_of(parts, plan, config, model), last=step + 1 == config.locked_steps)
        course.keep(step + 1, "locked", step + 1, machine)
    return course.curve


def image_rows(towers: Callable[..., torch.Tensor], pixels: Any, at: Sequence[int]) -> torch.Tensor:
    """(n, d) float32 raw features of the images at these positions of the batch."""
    return towers(pixels=part_of(pixels, at))


def text_rows(towers: Callable[..., torch.Tensor], texts: Sequence[str], at: Sequence[int]) -> torch.Tensor:
    """(n, d) float32 raw features of the texts at these positions of the batch."""
    return towers(texts=[texts[n] for n in at])


def query_rows(towers: Callable[..., torch.Tensor], pixels: Any, plan: Plan, at: Sequence[int]) -> torch.Tensor:
    """(n, d) float32 raw features of the queries at these positions of the batch, image and text encoded together."""
    return towers(pixels=[pixels[plan.query[n]] for n in at], texts=[plan.texts[n] for n in at])


def part_of(rows: Any, at: Sequence[int]) -> Any:
    """Rows at the positions; the very tensor where that is all of them."""
    if isinstance(rows, list):
        return [rows[n] for n in at]
    return rows if len(at) == len(rows) else rows[list(at)]
