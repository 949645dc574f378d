"""Score a subset of a benchmark's queries: CIRCUS' shortcut-free or validated ones, or a list of query ids.

Files, as matteoattimonelli/CIRCUS has them (arXiv:2605.14787): croissant/exports/<dataset>_<label>.csv
with query_text and query_image_ref; <label>/mbeir_<dataset>_..._multimodal.jsonl with query_txt and query_img_path. A
row is a query with the same reference image (the file's name without folders, suffix and leading zeros) and the same
words, whatever their order, capitals and points: M-BEIR's form joins FashionIQ's two captions with "and". Or a JSON
list of query ids. The gallery stays whole.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from tasks.errors import ConfigError, DataError
from tasks.evaluate.protocols import Benchmark, Query, Task

UNKNOWN_SHARE_MAX = 0.05  # of the file's rows that may be no query of the benchmark
Key: TypeAlias = tuple[str, tuple[str, ...]]  # reference image, sorted words


def words(text: str) -> tuple[str, ...]:
    """A text's words in order of the alphabet, small, without "and"."""
    return tuple(sorted(word for word in re.findall(r"[a-z0-9]+", text.lower()) if word != "and"))


def image_name(reference: str) -> str:
    """An image's name without folders, suffix and leading zeros."""
    stem = reference.rsplit("/", 1)[-1]
    stem = re.sub(r"\.(jpe?g|png|webp)$", "", stem, flags=re.IGNORECASE)
    return stem.lstrip("0") or stem


def query_key(query: Query) -> Key:
    """Reference image and words of a query, as its benchmark's file has them."""
    captions = query.record.get("captions") or [query.record.get("caption") or query.text]
    return image_name(str(query.reference)), words(" ".join(map(str, captions)))


def read_subset(path: Path) -> tuple[list[Key], list[str]]:
    """(keys, query ids) that a file names; one of the two is empty.

    Raises:
        ConfigError: no such file.
        DataError: none of the forms.
    """
    if not path.is_file():
        raise ConfigError(f"subset {path}: no such file; expected CIRCUS' CSV or JSONL, or a JSON list of query ids")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            content = json.loads(text)
            ids = content.get("query_indices") if isinstance(content, dict) else content
            if isinstance(ids, list):
                return [], [str(i) for i in ids]
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
            return [_row_key(r, "query_img_path", "query_txt") for r in rows], []
        else:
            found = list(csv.DictReader(io.StringIO(text, newline="")))
            return [_row_key(r, "query_image_ref", "query_text") for r in found], []
    except (ValueError, KeyError, AttributeError, TypeError, csv.Error) as error:
        raise DataError(f"subset {path}: {type(error).__name__}: {error}; expected CIRCUS' CSV or JSONL") from error
    raise DataError(f"subset {path}: expected a JSON list of query ids, or an object with query_indices")


def _row_key(row: Mapping[str, Any], image: str, text: str) -> Key:
    return image_name(row[image]), words(row[text])


def with_subset(benchmark: Benchmark, path: Path) -> Benchmark:
    """The benchmark with the queries alone that a file names.

    Raises:
        ConfigError: no such file.
        DataError: too large a share of its rows is no query of the benchmark, or a task has none of them.
    """
    keys, ids = read_subset(path)
    wanted, by_id, tasks = Counter(keys), set(ids), []
    known = set[Any]()
    for task in benchmark.tasks:
        named = [(q, q.query_id if by_id else query_key(q)) for q in task.queries]
        kept = [q for q, key in named if (key in by_id if by_id else key in wanted)]
        known.update(key for _, key in named)
        if kept:
            tasks.append(Task(task.name, kept, task.gallery))
    rows = [*keys, *ids]
    unknown = [row for row in rows if row not in known]
    if not tasks or len(unknown) > UNKNOWN_SHARE_MAX * len(rows):
        raise DataError(
            f"subset {path}: {len(unknown)} of {len(rows)} rows are no query of {benchmark.name} ({benchmark.split}), "
            f"such as {unknown[:2]}; is it the file of this benchmark and split?"
        )
    return replace(benchmark, tasks=tasks, is_subset=True)
