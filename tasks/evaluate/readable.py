"""Leave out of a benchmark what needs an image that is missing or broken; count it, and refuse too large a share.

Every file is looked at before anything is encoded: is it there, does its header name a format and a size, does it end
as a whole file of its format ends? What does not is decoded, and that decides. So a benchmark of 123,403 images is not
decoded a second time only to be checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tasks.errors import ConfigError, DataError
from tasks.evaluate.protocols import Benchmark, Query, Task

FREE_QUERIES = 3  # queries that may be left out whatever their share
THREADS = 8  # that look at images
# format -> how a whole file ends
ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def ends_whole(path: Path) -> bool:
    """Whether a file's header and end are those of a whole image; a file without them may still decode."""
    from PIL import Image

    try:
        with path.open("rb") as file:
            with Image.open(file, formats=("JPEG", "PNG", "WEBP")) as image:
                ending = ENDINGS.get(str(image.format))
                if ending is None or image.width < 1 or image.height < 1:
                    return False
            file.seek(-len(ending), 2)
            return file.read() == ending
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return False


def unreadable_images(benchmark: Benchmark, *, is_thorough: bool = False) -> dict[str, str]:
    """Key -> what is wrong, of every image of a benchmark that does not decode to its end.

    Args:
        benchmark: as its protocol read it.
        is_thorough: decode also the files whose header and end are whole.
    """

    def fault(key: str) -> str | None:
        if not is_thorough and key in benchmark.files and ends_whole(benchmark.files[key]):
            return None
        try:
            benchmark.read_image(key).close()
        except (OSError, ValueError, SyntaxError, EOFError, DataError) as error:
            return str(error)[:300]
        return None

    keys = benchmark.image_keys()
    with ThreadPoolExecutor(THREADS) as pool:
        return {key: text for key, text in zip(keys, pool.map(fault, keys), strict=True) if text is not None}


def with_readable_images(benchmark: Benchmark, share_max: float, *, is_thorough: bool = False) -> Benchmark:
    """The benchmark without the gallery entries, and without the queries, that an unreadable image is part of.

    A query goes with its reference image, an answer, a candidate of its own or a member of its subset: without one of
    them it would be another, easier query.

    Args:
        benchmark: as its protocol read it.
        share_max: largest share of its queries that may be left out, 0 to 1.
        is_thorough: as of `unreadable_images`.
    Raises:
        ConfigError: there is no folder of images.
        DataError: a larger share, a task without a query that is left, or any query of a split whose answers are
            hidden.
    """
    if benchmark.no_images:
        raise ConfigError(
            f"{benchmark.no_images}; the images have terms of their own, see the benchmark's page. Without them only "
            "rankings are scored (--predictions)"
        )
    faults, dropped, tasks = unreadable_images(benchmark, is_thorough=is_thorough), benchmark.dropped, []
    bad_items = {key for task in benchmark.tasks for key in task.gallery if benchmark.item(key).image in faults}
    dropped.gallery_images += len({benchmark.item(key).image for key in bad_items})
    queries = dropped.count + sum(len(task.queries) for task in benchmark.tasks)
    for task in benchmark.tasks:
        kept = []
        for query in task.queries:
            references = (query.reference, *query.more_references)
            image = next((key for key in references if key in faults), None) or _first_bad(query, bad_items)
            if image is None:
                kept.append(query)
            else:
                fault = faults.get(image) or faults[str(benchmark.item(image).image)]
                dropped.add(f"query {query.query_id}: {fault}")
        dropped.require_some(len(kept))
        tasks.append(Task(task.name, kept, [key for key in task.gallery if key not in bad_items]))
    if dropped.count > max(FREE_QUERIES, share_max * queries):
        raise DataError(
            f"evaluate.benchmark: {benchmark.name}: {dropped.count} of {queries} queries cannot be used, at most "
            f"{share_max:g} of them may; {'; '.join(dropped.first)}; add the images, or raise "
            "evaluate.dropped_queries_share_max"
        )
    if dropped.count and not benchmark.has_ground_truth:
        raise DataError(
            f"evaluate.benchmark: {benchmark.name} ({benchmark.split}) hides its answers, and its server refuses a "
            f"file without every query: {dropped.count} of {queries} cannot be used; {'; '.join(dropped.first)}; add "
            "the images, or leave the split out"
        )
    return replace(benchmark, tasks=tasks) if faults else benchmark


def _first_bad(query: Query, bad_items: set[str]) -> str | None:
    named: Sequence[str] = (*query.ground_truths, *query.candidates, *query.subset)
    return next((key for key in named if key in bad_items), None)


def dropped_note(benchmark: Benchmark) -> str | None:
    """A sentence about what is left out; None where nothing is."""
    dropped = benchmark.dropped
    if not dropped.count and not dropped.gallery_images:
        return None
    first = f": {'; '.join(dropped.first)}" if dropped.first else ""
    return (
        f"benchmark {benchmark.name}: {dropped.count} queries and {dropped.gallery_images} gallery images are left out"
        f"{first}"
    )
