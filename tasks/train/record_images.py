"""The images that a dataset's records name, and the count of records that cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tasks.config import MixedDatasetConfig
from tasks.errors import DataError
from tasks.models.decoding import decode
from tasks.train.batches import Candidate, CandidateId, Example, image_of
from tasks.train.loader import FORMATS
from tasks.train.record_files import Records
from tasks.train.record_formats import PARSERS

FAULTS = ("damaged_record", "missing_image", "broken_image", "unsafe_path")  # why a record cannot be used
FREE_RECORDS = 3  # records that may be faulty whatever their share


class RecordImages:
    """The images of a dataset's records; each file is looked at once.

    Attributes:
        files: image id ("<dataset>:<path>") -> file, of the images that were looked at and can be used.
    """

    def __init__(self, config: MixedDatasetConfig) -> None:
        self.config, self.name, self.root = config, config.name, Path(config.images)
        self.files: dict[str, Path] = {}
        self._faults: dict[str, tuple[str, str] | None] = {}

    def fault(self, image: str) -> tuple[str, str] | None:
        """Why an image cannot be used: (reason, a sentence); None where it can."""
        if image not in self._faults:
            self._faults[image] = self._look(image)
            if self._faults[image] is None:
                self.files[f"{self.name}:{image}"] = self.root / image
        return self._faults[image]

    def _look(self, image: str) -> tuple[str, str] | None:
        if not is_inside(image, self.root):
            return "unsafe_path", f"image {image!r} lies outside {self.root}"
        file = self.root / image
        if not file.is_file():
            return "missing_image", f"image {file} is missing; 'train.datasets' names the folder in `images`"
        return None if is_readable(file) else ("broken_image", f"image {file} cannot be decoded")


def is_inside(image: str, root: Path) -> bool:
    """Whether a record's path names a file below the folder, links followed."""
    return "\0" not in image and (root / image).resolve().is_relative_to(root.resolve())


def is_readable(file: Path) -> bool:
    """Whether an image decodes to its end; a JPEG at an eighth of its size, which reads all of it in little time."""
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as image:
            image.draft("RGB", (1, 1))
            decode(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, MemoryError):
        return False
    return True


class ImageFiles(Mapping[str, Path]):
    """Image id -> file, of all further datasets; those of a stream are found when they are asked for."""

    def __init__(self) -> None:
        """No image yet."""
        self.known: dict[str, Path] = {}
        self.roots: dict[str, Path] = {}  # name of a streamed dataset -> its folder of images

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.known or str(image_id).partition(":")[0] in self.roots

    def __getitem__(self, image_id: str) -> Path:
        """The file, whether it exists or not.

        Raises:
            DataError: the path of a streamed record leads out of its folder.
        """
        if image_id in self.known:
            return self.known[image_id]
        name, _, image = image_id.partition(":")
        root = self.roots[name]
        if not is_inside(image, root):
            raise DataError(f"image {image!r} lies outside {root}; 'train.datasets' names the folder in `images`")
        return root / image

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def with_ids(example: Example, config: MixedDatasetConfig) -> Example:
    """An example of a dataset's paths by image ids ("<dataset>:<path>"), with what the dataset's entry says of them."""
    name, task = config.name, config.instruction
    if task is None and config.format == "mmeb":
        task = ""  # its texts hold each task's own

    def named(candidate: CandidateId) -> CandidateId:
        if isinstance(candidate, str):
            return f"{name}:{candidate}"
        return candidate if candidate.image is None else Candidate(f"{name}:{candidate.image}", candidate.text)

    query = None if example.query is None else f"{name}:{example.query}"
    return replace(
        example,
        query=query,
        target=named(example.target),
        negatives=tuple(map(named, example.negatives)),
        task=task,
        is_symmetric=config.symmetric,
    )


@dataclass
class DroppedRecords:
    """Records that are left out.

    Attributes:
        counts: by reason.
        faulty: those of FAULTS, a count.
        first: what is wrong with the first few of these, each with its place.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faulty: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, reason: str, where: Callable[[], str], detail: str = "") -> None:
        """Count one; `where` and `detail` say which, and what is wrong with a faulty one."""
        self.counts[reason] += 1
        if reason in FAULTS:
            self.faulty += 1
            if len(self.first) < 3:
                self.first.append(f"{where()}: {detail}")

    def require_few(self, path: str, records: int, share_max: float) -> None:
        """Raise where so many records are faulty that the dataset cannot be meant.

        Raises:
            DataError: more than FREE_RECORDS and more than this share.
        """
        if self.faulty > max(FREE_RECORDS, share_max * records):
            raise DataError(
                f"{path}: {self.faulty} of {records} records cannot be used, at most {share_max:g} of them may; "
                f"{'; '.join(self.first)}; correct `path` or `images` of 'train.datasets', or raise "
                "train.faulty_records_share_max"
            )

    def require_some(self, path: str, usable: int) -> None:
        """Raise where no record is left.

        Raises:
            DataError: `usable` is 0.
        """
        if not usable:
            detail = "".join(f"; {first}" for first in self.first)
            raise DataError(f"{path}: no record to train on; left out: {dict(self.counts)}{detail}")


def parse_record(record: dict[str, Any] | str, record_format: str) -> Example | tuple[str, str]:
    """An example of the record's paths, or (reason, detail) where it is left out.

    Args:
        record: of a file, or what is wrong with a damaged one.
        record_format: a key of `PARSERS`.
    Raises:
        ConfigError: columns that the format does not know.
    """
    if isinstance(record, str):
        return "damaged_record", record
    try:
        example = PARSERS[record_format](record)
    except KeyError as error:
        return (
            "damaged_record",
            f"key {error} is missing in a record of format '{record_format}'; found {sorted(record)}",
        )
    except ValueError as error:
        return "damaged_record", str(error)
    return (example, "") if isinstance(example, str) else example


def checked_example(
    records: Records, number: int, record_format: str, images: RecordImages, dropped: DroppedRecords
) -> Example | None:
    """A record's example by image ids, every image looked at; None where it is left out, which is counted.

    A record keeps its place without a negative whose image cannot be used.
    """
    example = parse_record(records[number], record_format)

    def where() -> str:
        return records.where(number)

    if not isinstance(example, Example):
        dropped.add(example[0], where, example[1])
        return None
    for image in (example.query, image_of(example.target)):
        fault = None if image is None else images.fault(image)
        if fault:
            dropped.add(fault[0], where, fault[1])
            return None
    negatives = []
    for candidate in example.negatives:
        image = image_of(candidate)
        fault = None if image is None else images.fault(image)
        if fault:
            dropped.counts[f"negative_{fault[0]}"] += 1
        else:
            negatives.append(candidate)
    return with_ids(replace(example, negatives=tuple(negatives)), images.config)
