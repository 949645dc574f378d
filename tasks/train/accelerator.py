"""TrainingRuntime: accelerate around a retriever. Devices, bfloat16, sharded weights, and the state of a checkpoint.

What accelerate does here, on one device, on several (torchrun or `accelerate-launch` start the processes), and with
sharded weights (FSDP2): the process group and each process's device, autocast, `fully_shard`, gradient clipping over
shards, and checkpoints of weights, optimiser and random state that every process can resume from. It does not reduce
gradients: the loss is computed over the whole batch in every process, so gradients are summed where DDP would average
them (tasks/train/grad_cache.py); DDP's wrapper is left out, and FSDP's average is multiplied back by the number of
processes. docs/decisions/0035 says why this trainer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks.devices import pick_device
from tasks.errors import ConfigError
from tasks.store.atomic import move_into_place, remove, temporary_sibling

if TYPE_CHECKING:
    from tasks.config import TrainConfig
    from tasks.models.retrievers.base import Retriever, Role

Tracker = Callable[[Mapping[str, float], int | None], None]  # values, and their step or None at the end
LOGIT_SCALE = "logit_scale"  # CLIP's own temperature: a scalar, which FSDP2 cannot shard


class RetrieverModule(torch.nn.Module):
    """A retriever as one torch module with one forward: what accelerate prepares.

    The wrapper also keeps accelerate 1.15 away from CLIPModel.get_input_embeddings, which raises in transformers 5.23.
    """

    def __init__(self, retriever: Retriever) -> None:
        super().__init__()
        self.model: torch.nn.Module = retriever.model
        self._no_split_modules = getattr(retriever.model, "_no_split_modules", None)  # FSDP wraps each of these layers
        self.__dict__["_retriever"] = retriever  # not a submodule

    def forward(
        self, *, pixels: Any = None, texts: list[str] | None = None, role: Role = "query", task: str | None = None
    ) -> torch.Tensor:
        """(n, d) float32 raw features of n images (preprocessed), of n texts, or of n queries or candidates of both."""
        retriever: Retriever = self.__dict__["_retriever"]
        return retriever.features(pixels=pixels, texts=texts, role=role, task=task).float()

    def state_dict(self, *args: Any, **keywords: Any) -> dict[str, Any]:
        """The trained weights only: with adapters, the base's weights, of gigabytes, are in no checkpoint."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **keywords).items() if name not in frozen}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Restore what `state_dict` returned.

        Raises:
            RuntimeError: strict, and the weights are of another model or recipe.
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        trained = set(self.state_dict())
        result.missing_keys[:] = [name for name in result.missing_keys if name in trained]
        if strict and (result.missing_keys or result.unexpected_keys):
            raise RuntimeError(
                f"the checkpoint is of other weights: it lacks {result.missing_keys[:3]}, and has "
                f"{result.unexpected_keys[:3]}"
            )
        return result


class TrainingRuntime:
    """accelerate's Accelerator around a retriever, with the operations that a training needs."""

    def __init__(self, retriever: Retriever, config: TrainConfig) -> None:
        """Set up accelerate; nothing is wrapped before `prepare`.

        Args:
            retriever: on its device; of several processes, each has joined the group (`init_process_group`).
            config: precision, shard_weights, learn_temperature.
        Raises:
            ConfigError: sharding is asked for and impossible: one process, FSDP of version 1, or a learnt temperature.
        """
        from accelerate import Accelerator

        _reset_accelerate(retriever.device)
        self.retriever, self.max_gradient_norm = retriever, config.optimizer.max_gradient_norm
        self.accelerator = Accelerator(
            mixed_precision="bf16" if config.precision == "bfloat16" else "no",
            cpu=torch.device(retriever.device).type == "cpu",
            fsdp_plugin=_fsdp_plugin(config) if config.shard_weights else None,
            log_with=_available_trackers(config) or None,
        )
        self.is_sharded = bool(self.accelerator.is_fsdp2)
        if str(self.accelerator.distributed_type).endswith("FSDP") and not self.is_sharded:
            raise ConfigError(
                "train: accelerate was launched with FSDP of version 1; ask for version 2 (`fsdp_version: 2`), or set "
                "'train.shard_weights'"
            )
        if config.shard_weights and not self.is_sharded:
            raise ConfigError(
                "'train.shard_weights' needs several processes on GPUs; set 'train.processes', or switch it off"
            )
        self._logit_scale: torch.nn.Parameter | None = None
        if self.is_sharded and config.learn_temperature:
            raise ConfigError(
                "'train.learn_temperature' and 'train.shard_weights' do not go together: FSDP shards no scalar; switch "
                "one of them off"
            )
        if self.is_sharded and isinstance(getattr(retriever.model, LOGIT_SCALE, None), torch.nn.Parameter):
            self._logit_scale = getattr(retriever.model, LOGIT_SCALE)
            retriever.model.register_parameter(LOGIT_SCALE, None)
        self.module: Any = RetrieverModule(retriever)

    def start_trackers(self, config: TrainConfig, folder: Path) -> Tracker | None:
        """Open `train.trackers` on the first process.

        Args:
            config: logged as the run's parameters.
            folder: for what they write on this machine.
        Returns:
            A function that logs values at a step, and closes the trackers at step None; None without trackers.
        """
        if not config.trackers:
            return None
        recipe = {key: str(value)[:250] for key, value in config.model_dump(mode="json", exclude={"device"}).items()}
        self.accelerator.project_configuration.set_directories(str(folder))
        self.accelerator.init_trackers("megapairs", config=recipe)

        def track(values: Mapping[str, float], step: int | None) -> None:
            if step is not None:
                self.accelerator.log(dict(values), step=step)
            elif self.accelerator.is_main_process:
                for tracker in self.accelerator.trackers:
                    tracker.finish()

        return track

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return torch.device(self.retriever.device)

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        """Wrap module and optimiser as accelerate runs them, in place of those of the phase before.

        Returns:
            The wrapped optimiser; the wrapped module is `module`.
        """
        self.accelerator.free_memory()
        if self.is_sharded:
            self.module, prepared = self.accelerator.prepare(self.module, optimizer)
            return prepared
        # evaluation_mode leaves out DDP, whose reducer averages gradients
        self.module = self.accelerator.prepare_model(self.module, evaluation_mode=True)
        return self.accelerator.prepare_optimizer(optimizer)

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 for the first forward pass; the second one (gradient caching) has it from the prepared module."""
        return self.accelerator.autocast()  # type: ignore[no-any-return]

    def clip_gradients(self, parameters: list[torch.nn.Parameter]) -> float:
        """Scale the gradients down to a norm of at most `optimizer.max_gradient_norm`, over all shards; returns the
        norm before.
        """
        norm: Any = self.accelerator.clip_grad_norm_(parameters, self.max_gradient_norm)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def save_state(self, folder: Path, text_files: Mapping[str, str]) -> None:
        """Write weights, optimiser and random state of every process, atomically; called by all processes.

        Args:
            folder: one of that name (of another recipe) is replaced.
            text_files: further files, name -> content.
        """
        temporary = temporary_sibling(folder, is_sole_writer=True)  # one name for all processes
        if self.accelerator.is_main_process:
            remove(temporary)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for name, content in text_files.items():
                (temporary / name).write_text(content)
            move_into_place(temporary, folder)

    def load_state(self, folder: Path) -> None:
        """Restore what `save_state` wrote."""
        self.accelerator.load_state(str(folder))

    def full_weights(self) -> dict[str, torch.Tensor] | None:
        """The model's full state dict on the first process where it is sharded; None where the model itself holds it.

        Called by all processes.
        """
        if not self.is_sharded:
            return None
        state = {k.removeprefix("model."): v for k, v in self.accelerator.get_state_dict(self.module).items()}
        if self._logit_scale is not None and self.accelerator.is_main_process:
            state[LOGIT_SCALE] = self._logit_scale.detach().cpu()
        return state


def init_process_group(device: str) -> str:
    """Join the processes that a launcher started; returns the device of this one.

    Args:
        device: train.device.
    """
    from accelerate.state import PartialState

    with warnings.catch_warnings():
        # accelerate sets a number of threads where the environment has none; the recipe's is set when the model loads
        warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
        state = PartialState(cpu=pick_device(device) == "cpu")
    return "cpu" if state.device.type == "cpu" else str(state.device)


def destroy_process_group(runtime: TrainingRuntime) -> None:
    """Wait for the other processes and leave the group."""
    runtime.accelerator.wait_for_everyone()
    if runtime.accelerator.num_processes > 1:
        torch.distributed.destroy_process_group()


def _reset_accelerate(device: str) -> None:
    """Forget accelerate's state of an earlier training in this process, which would refuse another precision or device.

    The process group stays as it is.
    """
    from accelerate.state import AcceleratorState

    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    has_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=not has_group)


def _available_trackers(config: TrainConfig) -> list[str]:
    """The trackers that are asked for.

    Raises:
        ConfigError: one that is not installed: accelerate would leave it out without a word.
    """
    if not config.trackers:
        return []
    from accelerate.tracking import get_available_trackers

    available = {str(tracker.value) for tracker in get_available_trackers()}
    for tracker in config.trackers:
        if tracker not in available:
            raise ConfigError(
                f"'train.trackers' names {tracker}, which is not installed; `pip install {tracker}`, or take it out"
            )
    return list(config.trackers)


def _fsdp_plugin(config: TrainConfig) -> Any:
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
