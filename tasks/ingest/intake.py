"""In which order files are taken: those that no batch has tried, by source and path; then those that failed before."""

from __future__ import annotations

import os
from collections.abc import Iterator

from tasks.config import IngestConfig
from tasks.errors import ConfigError
from tasks.ingest.history import SourceHistory, skip_known_files
from tasks.sources.files import SourceFile
from tasks.sources.open import list_files

HASH_THREADS = 4  # most threads that hash local files


def new_files(config: IngestConfig, history: SourceHistory) -> Iterator[SourceFile]:
    """The files to take, in the order in which they are taken; listed as they are asked for.

    Files that an earlier batch did not reach come last, so that dead addresses in front never use up a run's limit or
    its time. Their sources are listed a second time, where there are any.

    Args:
        config: its sources, taken in order of name: a run's limit goes to the first ones first.
        history: of earlier batches.
    Raises:
        ConfigError: two sources of one name, or one that does not exist.
    """
    names = [s.name for s in config.sources]
    if len(set(names)) != len(names):
        raise ConfigError(
            f"ingest.sources: names {names}; expected each name once, since it begins the ids of a source's files; "
            "rename one"
        )
    sources = sorted(config.sources, key=lambda s: s.name)
    threads = min(HASH_THREADS, os.cpu_count() or 1)
    listed = (file for source in sources for file in list_files(source, history.has_fingerprint, history.listing))
    yield from skip_known_files(listed, history, threads)
    again = [source for source in sources if source.name in history.failed_sources]
    listed = (file for source in again for file in list_files(source, history.has_fingerprint))
    yield from skip_known_files(listed, history, threads, failed_before=True)
