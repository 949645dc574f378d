"""How models encode benchmarks: batches, decoding threads, arithmetic, and where vectors are kept.

Vectors are kept below one folder by weights and image: `<weights>/<ids>.npz`, where `<weights>` stands for the model's
revision, its configuration files and the arithmetic, and an image for its key, place, size and time. What was encoded
once is read: by the next model with the same weights, by an evaluation that was killed, by the next benchmark with the
same images.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigError
from tasks.evaluate.protocols import Benchmark
from tasks.evaluate.retrieval import RetrievalResult, retrieve
from tasks.models.retrievers.kept_rows import EncodeOptions, KeptRows
from tasks.progress import Progress

if TYPE_CHECKING:
    from tasks.models.retrievers.base import ContentEncoder, Retriever


@dataclass(frozen=True)
class EncodeSettings:
    """Settings of one evaluation.

    Attributes:
        batch_images: images, texts or both together in one call of the model, a count.
        workers: threads that read and prepare images, a count.
        precision: float32, bfloat16 or float16: of the matrix products; weights and vectors stay float32.
        vectors: folder where vectors are kept; None: they are not.
        is_fast: resize images by torch's kernel, up to rounding the same; else by Pillow, as the released script does.
    """

    batch_images: int = 128
    workers: int = 1
    precision: str = "float32"
    vectors: Path | None = None
    is_fast: bool = False

    def arithmetic(self, device: str) -> AbstractContextManager[Any]:
        """The context in which the model computes on a device.

        Raises:
            ConfigError: float16 on a CPU.
        """
        if self.precision == "float32":
            return nullcontext()
        import torch

        kind = device.partition(":")[0]
        if kind == "cpu" and self.precision == "float16":
            raise ConfigError("precision 'float16' is for GPUs; on a CPU take bfloat16 or float32")
        return torch.autocast(kind, dtype=getattr(torch, self.precision))


def image_ids(benchmark: Benchmark) -> Callable[[str], str]:
    """Image key -> what identifies its bytes: of a file also its place, size and time of change."""

    def image_id(key: str) -> str:
        path = benchmark.files.get(key)
        if path is None:
            return key
        stamp = path.stat()
        return f"{key}\t{path.absolute()}\t{stamp.st_size}\t{stamp.st_mtime_ns}"

    return image_id


class WithOptions:
    """A retriever whose encoders of contents have these options; else it is the retriever itself."""

    def __init__(self, retriever: Retriever, options: EncodeOptions) -> None:
        self._retriever, self._options = retriever, options

    def __getattr__(self, name: str) -> Any:
        return getattr(self._retriever, name)

    def content_encoder(
        self, read_image: Any, batch_size: int, image_features: Any = None, options: EncodeOptions | None = None
    ) -> ContentEncoder:
        """As `Retriever.content_encoder`."""
        return self._retriever.content_encoder(read_image, batch_size, image_features, options=options or self._options)


class ModelScorer:
    """One loaded model, and how it encodes."""

    def __init__(
        self, retriever: Retriever, settings: EncodeSettings, model: str, replicas: Sequence[Retriever] = ()
    ) -> None:
        """Nothing is encoded yet.

        Args:
            retriever: the model.
            settings: of the evaluation.
            model: Hugging Face name or folder that it was loaded from.
            replicas: the same model on further devices.
        """
        self.retriever, self.settings, self.replicas = retriever, settings, replicas
        self.revision = retriever.revision
        folder = settings.vectors and settings.vectors / weights_name(
            model, self.revision, settings.precision, settings.is_fast
        )
        self.kept = KeptRows(folder)

    def retrieve(self, benchmark: Benchmark, run: Callable[..., RetrievalResult] = retrieve) -> RetrievalResult:
        """Rank a benchmark's galleries for its queries.

        Args:
            benchmark: queries and galleries.
            run: (model, benchmark, batch size) -> result.
        """
        is_joint = getattr(self.retriever, "is_joint", False)
        progress = Progress(
            "evaluate",
            None if is_joint else len(benchmark.image_keys()),
            f"{'contents' if is_joint else 'images'} of {benchmark.name}",
        )
        options = EncodeOptions(
            self.kept,
            image_ids(benchmark),
            self.settings.workers,
            progress,
            self.replicas,
            self.settings.arithmetic,
            self.settings.is_fast,
        )
        device = getattr(self.retriever, "device", "cpu")
        with self.settings.arithmetic(device), task_instruction(self.retriever, benchmark.instruction):
            result = run(WithOptions(self.retriever, options), benchmark, self.settings.batch_images)
        progress.finish()
        return result


@contextmanager
def task_instruction(retriever: Any, instruction: str | None) -> Iterator[None]:
    """An MLLM's queries have this task instruction in the block; the model's own where None. A CLIP has none."""
    own = getattr(retriever, "instruction", None)
    if own is None or instruction is None:
        yield
        return
    retriever.instruction = instruction
    try:
        yield
    finally:
        retriever.instruction = own


def weights_name(model: str, revision: str, precision: str, is_fast: bool = False) -> str:
    """Folder name of a model's vectors: its revision, and a digest of all else that decides about them."""
    digest = hashlib.sha256(f"{revision}\n{precision}\n{'fast' if is_fast else ''}\n".encode())
    if Path(model).is_dir():
        for path in sorted(Path(model).glob("*.json")):
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    else:
        digest.update(model.encode())
    return f"{re.sub(r'[^A-Za-z0-9]', '', revision)[:12]}-{precision}-{digest.hexdigest()[:12]}"
