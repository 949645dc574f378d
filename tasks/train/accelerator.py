"""The machine under a training: accelerate places the model, runs the towers in bfloat16, shards the weights, keeps the
state.

What accelerate does here, on one device, on several (torchrun or `accelerate-launch` start the processes), and with the
weights sharded (FSDP2): the process group and each process's device, autocast, `fully_shard`, clipping over shards, and
checkpoints of weights, optimiser and random state that every process can go on from. What it does not: the reduction of
gradients. The loss is taken over the whole batch in every process, so gradients are summed where DDP would average them
(tasks/train/grad_cache.py); DDP's wrapper is left out, FSDP's average is undone by the number of processes.
docs/decisions/0035 says why this trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks.errors import ConfigError
from tasks.store.atomic import move_into_place, remove, temporary_sibling

if TYPE_CHECKING:
    from tasks.config import TrainConfig
    from tasks.models.retrievers.base import Retriever

SCALE = "logit_scale"  # CLIP's own temperature: a scalar, which FSDP2 cannot shard


class Towers(torch.nn.Module):
    """A retriever behind one forward: the module that accelerate prepares.

    The wrapper also keeps accelerate 1.15 away from CLIPModel.get_input_embeddings, which raises in transformers 5.23.
    """

    def __init__(self, retriever: Retriever) -> None:
        super().__init__()
        self.model: torch.nn.Module = retriever.model
        self._no_split_modules = getattr(retriever.model, "_no_split_modules", None)  # what FSDP wraps, a layer each
        self.__dict__["_retriever"] = retriever

    def forward(self, *, pixels: Any = None, texts: list[str] | None = None) -> torch.Tensor:
        """(n, d) float32 raw features of n images (pixels, as the retriever makes them), of n texts, or of n queries of
        both, encoded together.
        """
        retriever: Retriever = self.__dict__["_retriever"]
        return retriever.features(pixels=pixels, texts=texts).float()

    def state_dict(self, *args: Any, **keywords: Any) -> dict[str, Any]:
        """What training changes: with adapters the base's weights, of gigabytes, are in no checkpoint."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **keywords).items() if name not in frozen}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Put back what `state_dict` gave."""
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        trained = set(self.state_dict())
        found.missing_keys[:] = [name for name in found.missing_keys if name in trained]
        if strict and (found.missing_keys or found.unexpected_keys):
            raise RuntimeError(
                f"the checkpoint is of other weights: it lacks {found.missing_keys[:3]}, and has {found.unexpected_keys[:3]}"
            )
        return found


class Machine:
    """accelerate's Accelerator around the towers, as a training uses it."""

    def __init__(self, retriever: Retriever, config: TrainConfig) -> None:
        """Place the towers; nothing is wrapped before `prepare`.

        Args:
            retriever: on its device; several processes have joined already (`join`).
            config: precision, shard_weights, learn_temperature.
        Raises:
            ConfigError: sharding is asked for and cannot be had: one process, FSDP of version 1, or a temperature that
                is learnt.
        """
        from accelerate import Accelerator

        _forget(retriever.device)
        self.retriever = retriever
        self.accelerator = Accelerator(
            mixed_precision="bf16" if config.precision == "bfloat16" else "no",
            cpu=torch.device(retriever.device).type == "cpu",
            fsdp_plugin=_plugin(config) if config.shard_weights else None,
        )
        self.is_sharded = bool(self.accelerator.is_fsdp2)
        if str(self.accelerator.distributed_type).endswith("FSDP") and not self.is_sharded:
            raise ConfigError(
                "train: accelerate was launched with FSDP of version 1; ask for version 2 (`fsdp_version: 2`), or set 'train.shard_weights'"
            )
        if config.shard_weights and not self.is_sharded:
            raise ConfigError(
                "'train.shard_weights' needs several processes on GPUs; set 'train.processes', or switch it off"
            )
        self._scale: torch.nn.Parameter | None = None
        if self.is_sharded and config.learn_temperature:
            raise ConfigError(
                "'train.learn_temperature' and 'train.shard_weights' do not go together: FSDP shards no scalar; switch one of them off"
            )
        if self.is_sharded and isinstance(getattr(retriever.model, SCALE, None), torch.nn.Parameter):
            self._scale = getattr(retriever.model, SCALE)
            retriever.model.register_parameter(SCALE, None)
        self.towers: Any = Towers(retriever)

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return torch.device(self.retriever.device)

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        """Towers and optimiser as accelerate runs them; those of the phase before are let go. Returns the optimiser."""
        self.accelerator.free_memory()
        if self.is_sharded:
            self.towers, prepared = self.accelerator.prepare(self.towers, optimizer)
            return prepared
        # without DDP's averaging reducer
        self.towers = self.accelerator.prepare_model(self.towers, evaluation_mode=True)
        return self.accelerator.prepare_optimizer(optimizer)

    def autocast(self) -> AbstractContextManager[Any]:
        """Of the towers' first pass; the second (gradient caching) has it from `prepare`'s forward."""
        return self.accelerator.autocast()  # type: ignore[no-any-return]

    def clip(self, parameters: list[torch.nn.Parameter], norm: float) -> float:
        """Scale the gradients down to a norm of at most `norm`, over all shards; returns what it was."""
        found: Any = self.accelerator.clip_grad_norm_(parameters, norm)
        return float(found.full_tensor() if hasattr(found, "full_tensor") else found)

    def save_state(self, folder: Path, more: Mapping[str, str]) -> None:
        """Weights, optimiser and random state of every process, whole or not at all; called by all of them.

        Args:
            folder: written atomically; one of that name (of another recipe) is replaced.
            more: further text files, name -> content.
        """
        temporary = temporary_sibling(folder, is_sole_writer=True)  # one name for all processes
        if self.accelerator.is_main_process:
            remove(temporary)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for name, content in more.items():
                (temporary / name).write_text(content)
            move_into_place(temporary, folder)

    def load_state(self, folder: Path) -> None:
        """Put everything back to what `save_state` found."""
        self.accelerator.load_state(str(folder))

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The model's whole state on the first process where it is sharded; None where the model itself has it. Called
        by all.
        """
        if not self.is_sharded:
            return None
        state = {k.removeprefix("model."): v for k, v in self.accelerator.get_state_dict(self.towers).items()}
        if self._scale is not None and self.accelerator.is_main_process:
            state[SCALE] = self._scale.detach().cpu()
        return state


def join(device: str) -> str:
    """Join the processes that a launcher started; the device of this one."""
    from accelerate.state import PartialState

    from tasks.models.hub import pick_device

    state = PartialState(cpu=pick_device(device) == "cpu")
    return "cpu" if state.device.type == "cpu" else str(state.device)


def part(machine: Machine) -> None:
    """Wait for the others and leave them."""
    machine.accelerator.wait_for_everyone()
    if machine.accelerator.num_processes > 1:
        torch.distributed.destroy_process_group()


def _forget(device: str) -> None:
    """accelerate keeps one state a process and refuses another precision or device: a second training starts anew.
    Joined processes stay joined.
    """
    from accelerate.state import AcceleratorState

    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    is_joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=not is_joined)


def _plugin(config: TrainConfig) -> Any:
    """FSDP2, a unit per transformer layer; float32 weights and reductions, whatever the towers compute in."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if config.precision == "bfloat16"
        else None
    )
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", mixed_precision_policy=policy
    )
