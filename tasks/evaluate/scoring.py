"""Scorings: what one model retrieves on one benchmark, kept in a file by the part that made it.

A part of the evaluation makes some of the scorings (models x benchmarks) and leaves a file for each below `.run/parts`;
the call that writes the report reads them, and makes what no part has made. A file holds rankings, which are strings,
so the report is the same bytes as without parts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.evaluate.contamination import Fingerprint
from tasks.evaluate.protocols import Benchmark, Prediction
from tasks.evaluate.retrieval import RetrievalResult
from tasks.store import Store


@dataclass(frozen=True)
class Scoring:
    """What one model retrieved on one benchmark.

    Attributes:
        result: its rankings.
        revision: of the model's weights.
        fingerprints: image key -> fingerprint of the images that were read.
    """

    result: RetrievalResult
    revision: str
    fingerprints: dict[str, Fingerprint]


class ScoringFiles:
    """The files of one evaluation; those of other weights, benchmarks or parameters are never read."""

    def __init__(self, params: Params, store: Store, models: Mapping[str, str]) -> None:
        """Choose the folder; nothing is read or written.

        Args:
            params: the run's.
            store: of the run's worktree.
            models: model name in the report -> Hugging Face name or folder.
        """
        weights = [_file_stamps(Path(model)) for model in models.values()]
        decides = [
            models,
            params.train.revision,
            weights,
            params.evaluate.model_dump(mode="json"),
            params.train.held_out_share,
        ]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
        self.store, self.folder = store, store.folder(".run", "parts", "evaluate", digest)

    def path(self, benchmark: Benchmark, model: str) -> Path:
        """The file of a scoring."""
        name = hashlib.sha256(benchmark.name.encode()).hexdigest()[:16]
        return self.folder / f"{name}-{model}.json"

    def write(self, benchmark: Benchmark, model: str, scoring: Scoring) -> None:
        """Keep a scoring."""
        content = {
            "revision": scoring.revision,
            "predictions": {
                mode: [[prediction for _, prediction in task] for task in tasks]
                for mode, tasks in scoring.result.predictions.items()
            },
            "wordings": [[predictions for _, predictions in task] for task in scoring.result.wordings],
            "fingerprints": {key: [bits, pixels.hex()] for key, (bits, pixels) in scoring.fingerprints.items()},
        }
        self.store.write_bytes(self.path(benchmark, model), json.dumps(content).encode())

    def read(self, benchmark: Benchmark, model: str) -> Scoring | None:
        """A scoring that was kept; None where there is none of these queries."""
        path = self.path(benchmark, model)
        if not path.exists():
            return None
        content = json.loads(path.read_bytes())
        counts = [len(task.queries) for task in benchmark.tasks]
        if any([len(task) for task in tasks] != counts for tasks in content["predictions"].values()):
            return None  # images that decode only in part were left out since
        result = RetrievalResult()
        for mode, tasks in content["predictions"].items():
            result.predictions[mode] = [
                list(zip(task.queries, _predictions(kept), strict=True))
                for task, kept in zip(benchmark.tasks, tasks, strict=True)
            ]
        several = [queries for task in benchmark.tasks if (queries := [q for q in task.queries if q.wordings])]
        for queries, of_task in zip(several, content["wordings"], strict=True):
            result.wordings.append([(q, _predictions(kept)) for q, kept in zip(queries, of_task, strict=True)])
        fingerprints = {key: (bits, bytes.fromhex(pixels)) for key, (bits, pixels) in content["fingerprints"].items()}
        return Scoring(result, content["revision"], fingerprints)

    def remove(self) -> None:
        """Remove the files of all evaluations of the run, which are merged."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)


def _file_stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the files of a local model; a training that ran again gives others."""
    files = sorted(path for path in folder.glob("*") if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _predictions(kept: Sequence[Any]) -> list[Prediction]:
    return [Prediction(list(ranked), tuple(subset)) for ranked, subset in kept]


def of_part(scorings: Sequence[tuple[str, Benchmark]], part: tuple[int, int]) -> list[tuple[str, Benchmark]]:
    """The scorings of the i-th of n parts: neighbours in the list, so that a part loads few models.

    Args:
        scorings: model and benchmark, by model.
        part: (i, n), 1-based.
    """
    number, parts = part
    count = len(scorings)
    return list(scorings[count * (number - 1) // parts : count * number // parts])
