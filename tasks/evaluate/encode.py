"""How models encode benchmarks: batches, decoding threads, arithmetic, devices, and where vectors are kept."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigError
from tasks.evaluate.protocols import Benchmark
from tasks.evaluate.retrieval import RetrievalResult, retrieve

if TYPE_CHECKING:
    from tasks.models.retrievers.base import Retriever


@dataclass(frozen=True)
class EncodeSettings:
    """Settings of one evaluation.

    Attributes:
        batch_images: images, texts or both together in one call of the model, a count.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads of the model, a count.
        workers: threads that decode and prepare images, a count.
        precision: float32, bfloat16 or float16: of the matrix products; weights and vectors stay float32.
        vectors: folder where vectors are kept; None: they are not.
    """

    batch_images: int = 128
    device: str = "auto"
    threads: int = 2
    workers: int = 1
    precision: str = "float32"
    vectors: Path | None = None

    def arithmetic(self, device: str) -> AbstractContextManager[Any]:
        """The context in which the model computes on a device."""
        if self.precision == "float32":
            return nullcontext()
        import torch

        kind = device.partition(":")[0]
        if kind == "cpu" and self.precision == "float16":
            raise ConfigError("precision 'float16' is for GPUs; on a CPU take bfloat16 or float32")
        return torch.autocast(kind, dtype=getattr(torch, self.precision))


class ModelScorer:
    """One loaded model, and how it encodes."""

    def __init__(self, retriever: Retriever, settings: EncodeSettings) -> None:
        """Nothing is encoded yet."""
        self.retriever, self.settings = retriever, settings
        self.revision = retriever.revision

    def retrieve(self, benchmark: Benchmark) -> RetrievalResult:
        """Rank a benchmark's galleries for its queries."""
        with self.settings.arithmetic(getattr(self.retriever, "device", "cpu")):
            return retrieve(self.retriever, benchmark, self.settings.batch_images)
