"""Folders: files in one order, with the metadata of their table, whatever the names and texts."""

import os
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import SourceConfig
from tasks.errors import ConfigError, DataError
from tasks.sources.counts import ListingCounts
from tasks.sources.files import CAPTION_CHARS, FileRejected, SourceFile, clean_text, escape_name
from tasks.sources.folder import list_folder, walk
from tasks.sources.open import list_files


def list_by_uri(folder: Path, **more: object) -> dict[str, SourceFile]:
    source = SourceConfig(name="s", path=str(folder), license_code="CC0-1.0", attribution="me", **more)  # type: ignore[arg-type]
    return {file.uri: file for file in list_files(source)}


NAMES = st.lists(
    st.lists(st.text("ab.-0 é", min_size=1, max_size=3).filter(lambda n: n.strip(".")), min_size=1, max_size=3),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(NAMES, st.randoms(use_true_random=False))
def test_files_are_listed_in_order_of_their_whole_paths(
    tmp_path_factory: pytest.TempPathFactory, names: list[list[str]], shuffle: random.Random
):
    folder = tmp_path_factory.mktemp("walk")
    for parts in names:
        try:
            (folder.joinpath(*parts[:-1])).mkdir(parents=True, exist_ok=True)
            (folder.joinpath(*parts)).touch()
        except OSError:  # a folder of that name is there
            continue
    names_inside = [inside for inside, _ in walk(folder)]
    assert names_inside == sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_linked_folder_is_not_entered_and_is_named(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jpg").write_bytes(b"x")
    folder = tmp_path / "source"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a.jpg").write_bytes(b"x")
    (folder / "in" / "link").symlink_to(tmp_path / "elsewhere")
    counts = ListingCounts()
    files = list(list_folder(SourceConfig(name="s", path=str(folder)), counts))  # type: ignore[call-arg]
    assert [file.uri for file in files] == ["s:in/a.jpg"]
    assert counts.notes[0].startswith("in/link: a linked folder, not entered; name the folder that it leads to")


def test_a_file_is_read_up_to_a_byte_limit(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"x" * 10)
    file = list_by_uri(tmp_path)["s:a.jpg"]
    assert (file.read(10), file.read(10).robots, file.fingerprint, file.license_code) == (b"x" * 10, "", "", "CC0-1.0")
    with pytest.raises(FileRejected) as caught:
        file.read(9)
    assert caught.value.reason == "too_large"
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(FileRejected) as caught:
        file.read(10)
    assert (caught.value.reason, caught.value.is_lasting) == ("unreachable", False)


def test_hostile_names_and_texts_become_one_printable_line(tmp_path: Path):
    names = [
        b"line\nbreak.jpg",
        b"<script>.jpg",
        b'quote".jpg',
        "bidi\u202egpj.exe".encode(),
        b"latin-\xe9.jpg",
        b"back\\slash.jpg",
    ]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    (tmp_path / "captions.csv").write_text(
        'path,caption\n"line\nbreak.jpg","a \u202e\x00<script>alert(1)</script>' + "x" * (1 << 20) + '"\n'
    )
    files = list_by_uri(tmp_path)
    assert len(files) == len(names) and all(uri.isprintable() and uri.isascii() for uri in files)
    caption = files["s:line\\nbreak.jpg"].metadata.caption
    assert (
        caption is not None
        and caption.startswith("a <script>")
        and len(caption) == CAPTION_CHARS
        and caption.isprintable()
    )
    assert all(file.read(5) == b"x" for file in files.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=6), unique=True))
def test_different_names_have_different_uris(names: list[str]):
    assert len({escape_name(n) for n in names}) == len(names)
    assert all(escape_name(n).isprintable() for n in names)


def test_a_name_of_a_mebibyte_is_cut_and_stays_unique():
    assert escape_name("x" * (1 << 20)) != escape_name("x" * (1 << 20) + "y")
    assert len(escape_name("x" * 1_000_000)) < 2_100


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_cleaning_a_text_again_changes_nothing(text: str):
    clean = clean_text(text)
    assert clean is None or (
        clean == clean_text(clean) and (clean.isprintable() or "\u200c" in clean or "\u200d" in clean)
    )


def test_columns_of_the_source_override_the_usual_names(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "captions.csv").write_text("datei,wort\na.jpg,ein Ding\n")
    assert list_by_uri(tmp_path, columns={"path": "datei", "caption": "wort"})["s:a.jpg"].metadata.caption == "ein Ding"
    with pytest.raises(DataError, match="column 'text' is missing, found"):
        list_by_uri(tmp_path, columns={"path": "datei", "caption": "text"})
    with pytest.raises(DataError, match="column 'path' is missing"):
        list_by_uri(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        list_by_uri(tmp_path / "nowhere")


def test_a_long_table_takes_constant_memory(tmp_path: Path):
    def peak(rows: int) -> int:
        with open(tmp_path / "captions.csv", "w") as f:
            f.write("path,caption\n")
            f.writelines(f"{n}.jpg,a thing with a number of {n}\n" for n in range(rows))
        for path in tmp_path.glob("*.jpg"):
            path.unlink()
        (tmp_path / f"{rows - 1}.jpg").write_bytes(b"x")
        tracemalloc.start()
        file = next(f for f in list_files(SourceConfig(name="s", path=str(tmp_path))) if f.metadata.caption)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert file.metadata.caption == f"a thing with a number of {rows - 1}"
        return size

    small, large = peak(500), peak(4_000)
    assert large < small + 100_000  # 4,000 labels in a dictionary take 1.2 MB


def test_an_unknown_reason_is_refused():
    with pytest.raises(ValueError, match="expected one of"):
        FileRejected("because")
