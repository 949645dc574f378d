"""Files for the benchmarks' servers: what is written is checked as the server checks it, and a file can be scored here.

CIRCO      {"<query id>": [50 image ids], ...}
CIRR       {"version": "rc2", "metric": "recall", "<pairid>": [50 image names], ...}, the same of recall_subset with 3
FashionIQ  one list a category, the caption records in their order, each with its `ranking`; three files
PinPoint   {"<query id>": {"retrieved_items": [50 signatures]}, ...}
others     {"<query id>": [keys, best first], ...}

Every query stands there once, no image twice in a ranking, each image in the gallery, and as many as the metric reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError, DataError
from tasks.evaluate.protocols import PROTOCOLS, Benchmark, Prediction
from tasks.evaluate.protocols.base import read_json
from tasks.evaluate.retrieval import RetrievalResult

LONGEST = 50  # ranks that a server reads, where the gallery has as many
SUBSET_LONGEST = 3


def submission_files(benchmark: Benchmark, result: RetrievalResult) -> dict[str, Any]:
    """File name -> content for the benchmark's server; empty where it has none.

    Raises:
        DataError: a ranking that the server would refuse.
    """
    make = PROTOCOLS[benchmark.protocol].submission
    if make is None:
        return {}
    for task, predictions in zip(benchmark.tasks, result.predictions["composed"], strict=True):
        expected = min(LONGEST, len(task.gallery) - (benchmark.protocol == "cirr"))
        for query, prediction in predictions:
            check_ranking(f"query {query.query_id}", prediction.ranked, task.positions, expected)
    return make([pair for task in result.predictions["composed"] for pair in task])


def check_ranking(where: str, ranked: Sequence[str], gallery: Mapping[str, int] | None, shortest: int) -> None:
    """Refuse a ranking that a server would refuse.

    Args:
        where: file and query, for the error.
        ranked: keys, best first.
        gallery: keys that may stand there; None where that is not known.
        shortest: how many it must have, at least.
    Raises:
        DataError: too few, one twice, or one that is not in the gallery.
    """
    if len(set(ranked)) != len(ranked):
        raise DataError(f"{where}: an image is predicted twice; a ranking names each once")
    if gallery is not None and (unknown := [key for key in ranked if key not in gallery]):
        raise DataError(f"{where}: {unknown[:3]} are not in the gallery")
    if len(ranked) < shortest:
        raise DataError(f"{where}: {len(ranked)} images are ranked; expected {shortest}")


def read_submission(paths: Sequence[Path], benchmark: Benchmark) -> tuple[RetrievalResult, list[str]]:
    """The predictions that files hold, and the metrics that can be computed from them.

    Args:
        paths: one file; of CIRR one or two, of FashionIQ one a category.
        benchmark: with known answers.
    Raises:
        ConfigError: too few or too many files.
        DataError: not in the server's format, or a ranking that it would refuse.
    """
    metrics = PROTOCOLS[benchmark.protocol].metrics()
    if benchmark.protocol == "fashioniq":
        rankings, subsets = _fashioniq_rankings(paths, benchmark), dict[str, list[str]]()
    elif benchmark.protocol == "cirr":
        rankings, subsets = _cirr_rankings(paths)
        metrics = [m for m in metrics if (subsets if m.startswith("recall_subset") else rankings)]
    else:
        if len(paths) != 1:
            raise ConfigError(f"--predictions: {len(paths)} files; {benchmark.protocol} has one")
        rankings, subsets = _as_rankings(paths[0], read_json(paths[0])), {}
    _require_all_queries(paths[0], benchmark, rankings or subsets)
    tasks = []
    for task in benchmark.tasks:
        pairs = []
        for query in task.queries:
            ranked, subset = rankings.get(query.query_id, []), subsets.get(query.query_id, [])
            where = f"{', '.join(map(str, paths))}: query {query.query_id}"
            gallery = task.positions if benchmark.has_gallery_list else None
            if rankings:
                count = len(query.candidates) or len(task.gallery) - (benchmark.protocol == "cirr")
                count = count if benchmark.has_gallery_list else LONGEST
                check_ranking(where, ranked, gallery, 1 if query.candidates else min(LONGEST, count))
            if subsets:
                check_ranking(where, subset, gallery, min(SUBSET_LONGEST, len(query.subset)))
            pairs.append((query, Prediction(ranked, subset)))
        tasks.append(pairs)
    return RetrievalResult({"composed": tasks}), metrics


def _require_all_queries(path: Path, benchmark: Benchmark, rankings: Mapping[str, Any]) -> None:
    ids = {query.query_id for task in benchmark.tasks for query in task.queries}
    missing, unknown = sorted(ids - set(rankings)), sorted(set(rankings) - ids)
    if missing or unknown:
        raise DataError(
            f"{path}: {len(missing)} queries of {benchmark.name} ({benchmark.split}) are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}; is it a file of this split?"
        )


def _as_rankings(path: Path, content: Any) -> dict[str, list[str]]:
    if isinstance(content, dict):  # PinPoint's form has a name for the list
        content = {k: v.get("retrieved_items") if isinstance(v, dict) else v for k, v in content.items()}
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise DataError(f"{path}: expected an object {{query id: [images, best first]}}")
    return {str(query): [str(i) for i in ranked] for query, ranked in content.items()}


def _cirr_rankings(paths: Sequence[Path]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for path in paths:
        content = read_json(path)
        head = (content.pop("version", None), content.pop("metric", None)) if isinstance(content, dict) else ()
        if head not in (("rc2", "recall"), ("rc2", "recall_subset")):
            raise DataError(
                f'{path}: expected "version": "rc2" and "metric": "recall" or "recall_subset"; found {head}'
            )
        if head[1] in found:
            raise ConfigError(f"--predictions: two files of the metric {head[1]!r}; expected one of each")
        found[str(head[1])] = _as_rankings(path, content)
    return found.get("recall", {}), found.get("recall_subset", {})


def _fashioniq_rankings(paths: Sequence[Path], benchmark: Benchmark) -> dict[str, list[str]]:
    rankings: dict[str, list[str]] = {}
    tasks = {task.name: task for task in benchmark.tasks}
    for path in paths:
        category = path.name.partition(".")[0]
        if category not in tasks:
            raise ConfigError(f"--predictions {path}: expected a name such as dress.val.pred.json, of {[*tasks]}")
        content = read_json(path)
        if not isinstance(content, list) or not all(isinstance(r, dict) and "ranking" in r for r in content):
            raise DataError(f"{path}: expected a list of caption records, each with its `ranking`")
        for n, record in enumerate(content):
            rankings[f"{category}:{n}"] = [str(i) for i in record["ranking"]][:LONGEST]
    return rankings
