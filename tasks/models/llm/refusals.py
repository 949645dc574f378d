"""How many refused requests a part may have: some are bad rows, many are a wrong setting or a broken server."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.errors import DataError

ALWAYS_ALLOWED = 3  # rows, whatever their share: a small week is not stopped by a few bad images


class RefusalShare:
    """Counts the rows of one part that were refused.

    Attributes:
        asked: rows so far, a count.
        refused: of those, refused, a count.
    """

    def __init__(self, key: str, share_max: float) -> None:
        """`key`: of the parameter; `share_max`: its value, 0..1."""
        self.key, self.share_max = key, share_max
        self.asked = self.refused = 0

    def add(self, asked: int, words: Sequence[str]) -> None:
        """Count the rows of a chunk, before its file is written.

        Args:
            asked: rows, a count.
            words: of the server or processor, one per refused row.
        Raises:
            DataError: too many rows were refused so far.
        """
        self.asked, self.refused = self.asked + asked, self.refused + len(words)
        if self.refused > ALWAYS_ALLOWED and self.refused > self.share_max * self.asked:
            raise DataError(
                f"{self.key}: {self.refused} of {self.asked} rows were refused by the model's server or processor, "
                f"expected at most {self.share_max:.0%}; the last one: {words[-1] if words else ''}; check the "
                "server's log and limits (context length, images per request), then run the stage again: replies that "
                "came are in the request cache"
            )
