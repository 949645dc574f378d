"""A bucket that gives none of its objects: a wrong credential or policy, and no week without images.

One object that may not be read is a row, and is tried again. Where a source from which no image ever came gives not one
of all its objects, the batch is not written.
"""

from __future__ import annotations

from collections import Counter

from tasks.errors import ConfigError, TransientError
from tasks.ingest.inspect import InspectedFile
from tasks.ingest.rules import Rejection
from tasks.sources.s3 import FAILED_OBJECT, REFUSED_OBJECT


def is_refused(inspected: InspectedFile) -> bool:
    """Whether the file's bucket refused it, or failed for it."""
    result = inspected.result
    return isinstance(result, Rejection) and result.detail.startswith((REFUSED_OBJECT, FAILED_OBJECT))


class Refusals:
    """Counts of one batch, by source.

    Args:
        known_sources: names of sources from which an earlier batch has an image.
    """

    def __init__(self, known_sources: set[str]) -> None:
        self._giving = set(known_sources)
        self._refused: Counter[str] = Counter()
        self._examples: dict[str, tuple[str, str]] = {}

    def count(self, inspected: InspectedFile) -> None:
        """Count one file of the batch."""
        source = inspected.file.uri.partition(":")[0]
        if source in self._giving:
            return
        if not is_refused(inspected):
            self._giving.add(source)
            return
        assert isinstance(inspected.result, Rejection)
        self._refused[source] += 1
        self._examples.setdefault(source, (inspected.file.uri, inspected.result.detail))

    def check(self) -> None:
        """Call it when all files of the sources are counted.

        Raises:
            ConfigError: a bucket refuses every object.
            TransientError: a bucket fails for every object.
        """
        for source in sorted(set(self._refused) - self._giving):
            uri, detail = self._examples[source]
            problem = f"ingest.sources: source '{source}': none of its {self._refused[source]:,} objects can be read"
            if detail.startswith(FAILED_OBJECT):
                raise TransientError(f"{problem}; {uri}: {detail}; run the stage again")
            raise ConfigError(
                f"{problem}; {uri}: {detail}; expected a credential that may read objects (s3:GetObject, and for "
                "encrypted ones kms:Decrypt), not only list them; correct the credentials or the bucket's policy"
            )
