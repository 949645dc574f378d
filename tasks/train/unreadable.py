"""The queries of a training that name an image which cannot be read."""

from __future__ import annotations

from collections import Counter

from tasks.errors import DataError
from tasks.train.batches import BatchPlan

FREE_QUERIES = 3  # queries that may be left out whatever their share
QUERIES_TO_JUDGE = 256  # a share of fewer says little


class UnreadableQueries:
    """Counts the queries that are left out because an image of theirs cannot be read."""

    def __init__(self) -> None:
        """None yet."""
        self.dropped = Counter[str]()  # by reason
        self.queries = 0
        self.first: str | None = None  # id of the first image

    def count(self, plan: BatchPlan) -> None:
        """Count the queries of a step."""
        self.queries += len(plan.texts)
        if plan.broken:
            self.dropped["unreadable_image"] += len(plan.texts) - len(plan.readable_queries)
            self.first = self.first or plan.images[min(plan.broken)]

    def require_few(self, share_max: float) -> None:
        """Raise where so many queries are left out that the dataset cannot be meant.

        Raises:
            DataError: more than FREE_QUERIES and more than this share.
        """
        dropped = self.dropped["unreadable_image"]
        if dropped > max(FREE_QUERIES, share_max * self.queries) and self.queries >= QUERIES_TO_JUDGE:
            raise DataError(
                f"train: {dropped} of {self.queries} queries name an image that cannot be read, the first is "
                f"{self.first}; correct `images` of 'train.datasets', or raise train.faulty_records_share_max"
            )
