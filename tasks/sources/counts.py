"""What a listing of sources read beside its files: captions and the rows of tables, so that none is lost silently.

captions = matched + unmatched; rows = files listed from tables + repeated rows, of which damaged ones are rejected
files too. Counts are added up over sources and parts, and travel as JSON.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from tasks.errors import DataError

EXAMPLES = 3  # of unmatched captions that are told by name
NOTES = 20  # of tables that are told


@dataclass
class ListingCounts:
    """Counts of a listing.

    Attributes:
        matched: captions that met a file.
        unmatched: captions that met none.
        examples: the first few of those, each with where it stands and why.
        files_without_caption: files that may be images and have no caption.
        rows: of tables, header lines excluded.
        damaged_rows: that could not be read; each is a rejected file.
        repeated_rows: whose URL or path was listed before.
        notes: sentences about tables, e.g. on a quote that is never closed.
        without_caption: the first few files that have none.
    """

    matched: int = 0
    unmatched: int = 0
    examples: list[str] = field(default_factory=list)
    files_without_caption: int = 0
    rows: int = 0
    damaged_rows: int = 0
    repeated_rows: int = 0
    notes: list[str] = field(default_factory=list)
    without_caption: list[str] = field(default_factory=list)

    @property
    def captions(self) -> int:
        """Captions read."""
        return self.matched + self.unmatched

    def count_caption(self, where: str = "", *, is_matched: bool, why: str = "") -> None:
        """Count one caption; `where` and `why` tell an unmatched one."""
        if is_matched:
            self.matched += 1
            return
        self.unmatched += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{where} ({why})" if why else where)

    def count_file(self, uri: str, *, has_caption: bool) -> None:
        """Count one file that may be an image."""
        if not has_caption:
            self.files_without_caption += 1
            if len(self.without_caption) < EXAMPLES:
                self.without_caption.append(uri)

    def refuse_no_match(self, where: str) -> None:
        """Refuse captions of which none met a file, though there are files.

        Raises:
            DataError: it names some of both.
        """
        if self.unmatched and not self.matched and self.without_caption:
            raise DataError(
                f"{where}: 0 of {self.unmatched:,} captions match a file: captions of {self.examples}, files "
                f"{self.without_caption}; expected the files' paths inside the source; correct the captions' paths, "
                "or take the captions away"
            )

    def note(self, sentence: str) -> None:
        """Keep a sentence for the report."""
        if len(self.notes) < NOTES and sentence not in self.notes:
            self.notes.append(sentence)

    def add(self, other: ListingCounts) -> None:
        """Add the counts of another listing."""
        for name in ("matched", "unmatched", "files_without_caption", "rows", "damaged_rows", "repeated_rows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.without_caption = [*self.without_caption, *other.without_caption][:EXAMPLES]
        self.examples = [*self.examples, *other.examples][:EXAMPLES]
        self.notes = list(dict.fromkeys([*self.notes, *other.notes]))[:NOTES]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ListingCounts:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))

    def figures(self) -> dict[str, float]:
        """Figures for a report, where there is anything to tell."""
        figures: dict[str, float] = {}
        if self.captions:
            figures["captions_read"] = float(self.captions)
            figures["captions_matched"] = float(self.matched)
            figures["captions_unmatched"] = float(self.unmatched)
        if self.captions and self.files_without_caption:
            figures["files_without_caption"] = float(self.files_without_caption)
        if self.damaged_rows:
            figures["damaged_rows"] = float(self.damaged_rows)
        return figures

    def sentences(self) -> list[str]:
        """The counts as sentences for a person."""
        sentences = []
        if self.captions:
            sentences.append(
                f"captions of the sources: {self.captions:,} read, {self.matched:,} matched a file, "
                f"{self.unmatched:,} matched none"
                + (
                    f" ({'; '.join(self.examples)}{' ...' if self.unmatched > len(self.examples) else ''})"
                    if self.unmatched
                    else ""
                )
                + f"; files without a caption: {self.files_without_caption:,}"
            )
        if self.rows and (self.damaged_rows or self.repeated_rows):
            sentences.append(
                f"rows of tables: {self.rows:,} read, {self.damaged_rows:,} damaged, "
                f"{self.repeated_rows:,} repeat an earlier row"
            )
        return [*sentences, *self.notes]
