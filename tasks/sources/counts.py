"""What a listing of sources read beside its files: captions and the rows of tables, so that none is lost silently.

captions = matched + unmatched + repeated; rows + unread rows = lines that hold a row; each row ends as a file, as a
caption or as a repeated row. Captions, lines and rows are counted where they are read, their ends where they are
decided: `check` holds one against the other. Counts are added up over sources and parts, and travel as JSON.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from tasks.errors import DataError

EXAMPLES = 3  # of unmatched captions that are told by name
NOTES = 20  # of tables that are told
COUNTERS = (
    *("read", "matched", "unmatched", "repeated", "files_without_caption"),
    *("lines", "rows", "ended_rows", "damaged_rows", "unread_rows", "repeated_rows"),
)


@dataclass
class ListingCounts:
    """Counts of a listing.

    Attributes:
        read: captions, where they were read.
        matched: captions that met a file.
        unmatched: captions that met none.
        repeated: captions beside an image that has a better one, e.g. the one of x.json beside x.txt.
        examples: the first few of those, each with where it stands and why.
        files_without_caption: files that may be images and have no caption.
        lines: of tables that hold a row or begin one; of a Parquet or Arrow table, its rows.
        rows: of tables, header lines excluded.
        ended_rows: that became a file, a caption, or a repeated row.
        damaged_rows: that could not be read; each is a rejected file.
        unread_rows: for which one damaged row stands beside itself, e.g. of a damaged row group.
        repeated_rows: whose URL or path was listed before.
        notes: sentences about tables, e.g. on a quote that is never closed.
        without_caption: the first few files that have none.
    """

    read: int = 0
    matched: int = 0
    unmatched: int = 0
    repeated: int = 0
    examples: list[str] = field(default_factory=list)
    files_without_caption: int = 0
    lines: int = 0
    rows: int = 0
    ended_rows: int = 0
    damaged_rows: int = 0
    unread_rows: int = 0
    repeated_rows: int = 0
    notes: list[str] = field(default_factory=list)
    without_caption: list[str] = field(default_factory=list)

    @property
    def captions(self) -> int:
        """Captions read, without the repeated ones."""
        return self.matched + self.unmatched

    def count_caption(self, where: str = "", *, is_matched: bool, why: str = "") -> None:
        """Count what became of one caption; `where` and `why` tell an unmatched one."""
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

    def check(self) -> None:
        """Hold what was read against what became of it, when the listing has ended.

        Raises:
            DataError: they are not as many (a bug).
        """
        sums = {
            "captions": (self.read, self.matched + self.unmatched + self.repeated),
            "rows of tables": (self.lines, self.rows + self.unread_rows),
            "rows": (self.rows, self.ended_rows),
        }
        for what, (read, ended) in sums.items():
            if read != ended:
                raise DataError(
                    f"ingest: {read:,} {what} read, {ended:,} accounted for; this is a bug, report it "
                    "with the source's table"
                )

    def note(self, sentence: str) -> None:
        """Keep a sentence for the report."""
        if len(self.notes) < NOTES and sentence not in self.notes:
            self.notes.append(sentence)

    def add(self, other: ListingCounts) -> None:
        """Add the counts of another listing."""
        for name in COUNTERS:
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
        if self.rows:
            figures["table_lines"], figures["table_rows"] = float(self.lines), float(self.rows)
        if self.unread_rows:
            figures["unread_rows"] = float(self.unread_rows)
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
