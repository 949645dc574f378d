"""A bucket that gives none of its objects: a wrong credential or policy.

One object that may not be read is a row, and is tried again. A source from which no image ever came and that gives not
one of all its objects is said in the report, and its rows are never given up: the credential is wrong, not the objects.
The other sources' batch is written. Where no source gives anything, none is (docs/decisions/0165).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from tasks.errors import ConfigError, TransientError
from tasks.ingest.inspect import InspectedFile
from tasks.ingest.rules import Rejection
from tasks.sources.s3 import FAILED_OBJECT, REFUSED_OBJECT

EXPECTED = (
    "a credential that may read objects (s3:GetObject, and for encrypted ones kms:Decrypt), not only list them; "
    "correct the credentials or the bucket's policy"
)


def is_refused(inspected: InspectedFile) -> bool:
    """Whether the file's bucket refused it, or failed for it."""
    result = inspected.result
    return isinstance(result, Rejection) and result.detail.startswith((REFUSED_OBJECT, FAILED_OBJECT))


class Refusals:
    """Counts of one batch, by source.

    Args:
        known_sources: names of sources from which an earlier batch has an image.
        names: of the sources of this run.
    """

    def __init__(self, known_sources: set[str], names: Collection[str] = ()) -> None:
        self._giving, self._names = set(known_sources), set(names)
        self._refused: Counter[str] = Counter()
        self._examples: dict[str, tuple[str, str]] = {}

    def count(self, inspected: InspectedFile) -> bool:
        """Count one file of the batch; returns whether its source has refused every file so far."""
        source = inspected.file.uri.partition(":")[0]
        self._names.add(source)
        if source in self._giving:
            return False
        if not is_refused(inspected):
            self._giving.add(source)
            return False
        assert isinstance(inspected.result, Rejection)
        self._refused[source] += 1
        self._examples.setdefault(source, (inspected.file.uri, inspected.result.detail))
        return True

    def check(self) -> list[str]:
        """Sentences on the sources that give nothing; call it when all files of the sources are counted.

        Raises:
            ConfigError: a bucket refuses every object, and no other source gives anything.
            TransientError: a bucket fails for every object, and no other source gives anything.
        """
        problems = []
        for source in sorted(set(self._refused) - self._giving):
            uri, detail = self._examples[source]
            problem = f"ingest.sources: source '{source}': none of its {self._refused[source]:,} objects can be read"
            is_failing = detail.startswith(FAILED_OBJECT)
            step = "run the stage again" if is_failing else f"expected {EXPECTED}"
            message = f"{problem}; {uri}: {detail}; {step}"
            if not self._giving & self._names:
                raise TransientError(message) if is_failing else ConfigError(message)
            problems.append(f"{message}; the other sources were taken in, and every run asks for these objects again")
        return problems
