"""Where published data holds an image: which objects, which tags, which replies of models, which models.

Objects are content-addressed and most versions share most of them: each is looked at once, however many tags name it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.fingerprints.takedown import IMAGE_COLUMNS, names_any_word
from tasks.fingerprints.takedown_list import Limits, TakedownList
from tasks.names import stable_id
from tasks.publish.dvc_repo import locked_stages
from tasks.publish.git import read_at, tags
from tasks.publish.objects import Objects

KINDS = ("dataset", "model")
TEXT_COLUMNS = {"captions": ("caption",), "captioned": ("description", "instructions"), "triplets": ("instructions",)}
KEYED_BY_PAIR = ("data/captioned/", "data/dropped/caption/", "data/dropped/judge/")
# its rows quote captions of other images of the batch's triplets, without their ids
QUOTING_CAPTIONS = "data/rows/image_to_caption/"
MIN_TEXT = 12  # characters: a shorter reply ("yes") is of any image


@dataclass
class Holdings:
    """What holds the images.

    Attributes:
        image_ids: of the images, over all versions.
        pair_ids: of the pairs that start or end at one of them: texts about them are keyed by these.
        files: tag -> path -> object, of files that hold one of them.
        replies: files of the request cache.
        models: tags of models whose training set named one of them.
        unknown_models: tags of models whose training set an earlier purge has deleted in part: it cannot be looked at.
    """

    image_ids: set[str] = field(default_factory=set)
    pair_ids: set[str] = field(default_factory=set)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    replies: list[Path] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    unknown_models: list[str] = field(default_factory=list)

    def words_for(self, path: str) -> set[str]:
        """The ids by which a data file would name an image, or hold a text about one."""
        return self.image_ids | self.pair_ids if path.startswith(KEYED_BY_PAIR) else self.image_ids

    @property
    def versions(self) -> list[str]:
        """Tags of the affected versions, oldest first."""
        return [tag for tag in self.files if tag.startswith("dataset/")]

    @property
    def objects(self) -> set[str]:
        """The objects that hold an image."""
        return {name for files in self.files.values() for name in files.values()}


def scan(objects: Objects, takedown: TakedownList, limits: Limits, replies: Path | None) -> Holdings:
    """Find what holds the images that a list names.

    Args:
        objects: of the deployment's clone, whose tags are origin's.
        takedown: what is to be purged.
        limits: within which a perceptual hash matches.
        replies: folder of the request cache; None without one.
    """
    holdings = Holdings()
    files = {tag: objects.files_at(f"refs/tags/{tag}") for kind in KINDS for tag in tags(objects.clone, kind)}
    holdings.image_ids = find_images(objects, files, takedown, limits)
    if not holdings.image_ids:
        return holdings
    holdings.pair_ids = find_pairs(objects, files, holdings.image_ids)
    held: dict[str, bool] = {}
    texts: set[str] = set()
    for tag, of_tag in files.items():
        found = {}
        for path, name in of_tag.items():
            if name not in held:
                held[name] = holds(path, name, of_tag, objects, holdings.words_for(path))
                texts |= texts_of(path, objects.read(name), holdings.words_for(path)) if held[name] else set()
            if held[name]:
                found[path] = name
        if found:
            holdings.files[tag] = found
        if tag.startswith("model/"):
            trained, is_whole = trained_on(objects, tag, of_tag)
            if any(holds(path, name, trained, objects, holdings.image_ids) for path, name in trained.items()):
                holdings.models.append(tag)
            elif not is_whole:
                holdings.unknown_models.append(tag)
    holdings.replies = list(find_replies(replies, texts))
    return holdings


def trained_on(objects: Objects, tag: str, files: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """(path -> object of the triplets that a model was trained on, whether none of them was purged).

    They are those that its training has locked: the tag's own data may be of a version that came out meanwhile.

    Args:
        objects: of the clone.
        tag: of the model.
        files: all of the tag's data files; they count where the lock does not tell.
    """
    lock = locked_stages(read_at(objects.clone, f"refs/tags/{tag}", "dvc.lock")).get("train") or {}
    folders = [str(dep["md5"]) for dep in lock.get("deps") or () if dep["path"] == "data/triplets" and "md5" in dep]
    for folder in folders:
        try:
            return objects.files_in("data/triplets", folder)
        except DataError:  # a version that was deleted, and garbage collected
            break
    return {path: name for path, name in files.items() if path.startswith("data/triplets/")}, not folders


def find_images(
    objects: Objects, files: Mapping[str, Mapping[str, str]], takedown: TakedownList, limits: Limits
) -> set[str]:
    """Ids of the images that the list names, in any version."""
    import pyarrow.parquet as pq

    ids, seen = set[str](), set[str]()
    for of_tag in files.values():
        for path, name in of_tag.items():
            if name in seen or not path.startswith(("data/images/", "data/quarantine/images/rows/")):
                continue
            seen.add(name)
            if path.endswith(".parquet"):
                columns = [*IMAGE_COLUMNS, "phash", "thumbnail"]
                rows = pq.read_table(io.BytesIO(objects.read(name)), columns=columns).to_pylist()
                ids |= set(takedown.match(rows, limits).entries)
    return ids


def find_pairs(objects: Objects, files: Mapping[str, Mapping[str, str]], ids: Set[str]) -> set[str]:
    """Ids of the pairs that start or end at one of the images, in any version, and of their reverses."""
    import pyarrow.parquet as pq

    names = {
        name
        for of_tag in files.values()
        for path, name in of_tag.items()
        if path.startswith(("data/pairs/", "data/quarantine/pairs/rows/")) and path.endswith(".parquet")
    }
    columns = ["pair_id", "query_image_id", "target_image_id"]
    pairs = set[str]()
    for name in sorted(names):
        for row in pq.read_table(io.BytesIO(objects.read(name)), columns=columns).to_pylist():
            if not ids.isdisjoint((row["query_image_id"], row["target_image_id"])):
                pairs |= {row["pair_id"], stable_id(row["target_image_id"], row["query_image_id"])}
    return pairs


def holds(path: str, name: str, files: Mapping[str, str], objects: Objects, ids: Set[str]) -> bool:
    """Whether a data file holds one of the images, its id, its vector or its thumbnail.

    Args:
        path, name: of the file and its object.
        files: all files of the same version: vectors belong to the ids beside them.
        objects: of the clone.
        ids: of the images.
    """
    if path.startswith("data/withdrawn/"):
        return False
    if path.endswith(".npy"):
        beside = path.removesuffix(".npy") + ".parquet"
        if "/codes/" in path:  # data/neighbours/<encoder>[/next]/codes/<model>/<shard>.npy
            index = path.partition("/codes/")[0].removeprefix("data/neighbours/")
            beside = f"data/embeddings/{index}/{Path(path).stem}.parquet"
        return beside in files and holds(beside, files[beside], files, objects, ids)
    if path.startswith(QUOTING_CAPTIONS) and _triplets_hold(Path(path).stem, files, objects, ids):
        return True
    content = objects.read(name)
    if path.endswith(".parquet"):
        return any(any(names_any_word(table, ids)) for table in _text_tables(content))
    if path.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            return any(member.partition(".")[0] in ids for member in tar.getnames())
    return any(image_id.encode() in content for image_id in ids)


def _triplets_hold(batch: str, files: Mapping[str, str], objects: Objects, ids: Set[str]) -> bool:
    """Whether a triplet of a batch holds one of the images."""
    paths = [path for path in files if path.startswith("data/triplets/")]
    own = [path for path in paths if batch in (Path(path).stem, Path(path).stem.rpartition("-")[0])]
    return any(holds(path, files[path], files, objects, ids) for path in own)


def _text_tables(content: bytes) -> Iterator[Any]:
    """A Parquet file's rows as tables of strings, those inside structs included."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(io.BytesIO(content)).iter_batches(2_000):
        table = pa.Table.from_batches([batch])
        while any(pa.types.is_struct(field.type) for field in table.schema):
            table = table.flatten()
        yield table


def texts_of(path: str, content: bytes, ids: Set[str]) -> set[str]:
    """What models wrote about the images: by these texts their replies are found in the request cache."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table_name = Path(path).parts[1]
    if table_name not in TEXT_COLUMNS or not path.endswith(".parquet"):
        return set()
    table = pq.read_table(io.BytesIO(content))
    rows = table.filter(pa.array(names_any_word(table, ids))).to_pylist()
    values = [row[column] for row in rows for column in TEXT_COLUMNS[table_name]]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    return {text for text in texts if text and len(text) >= MIN_TEXT}


def find_replies(folder: Path | None, texts: Set[str]) -> Iterable[Path]:
    """Files of the request cache whose reply is one of the texts."""
    if folder is None or not texts:
        return
    for path in sorted((folder / "replies").glob("*/*.json")):
        try:
            reply = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not texts.isdisjoint(_strings(reply)):
            yield path


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
