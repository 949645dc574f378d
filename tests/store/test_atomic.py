"""Whole or not at all: files and folders appear complete, and an error leaves the old content and no leftovers."""

import os
from pathlib import Path

import pytest

from tasks.store.atomic import atomic_write, move_into_place, temporary_sibling, write_bytes


def test_a_file_appears_whole_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "one.json"
    write_bytes(path, b"first")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["one.json"]


def test_the_target_does_not_exist_while_it_is_written(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "table") as temporary:
        temporary.write_bytes(b"half")
        assert not (tmp_path / "table").exists()
        assert temporary.parent == tmp_path  # a rename is atomic within one file system
    assert (tmp_path / "table").read_bytes() == b"half"


def test_an_error_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "table", b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "table") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "table").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["table"]


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with atomic_write(tmp_path / "model") as folder:
            folder.mkdir()
            (folder / name).write_text(name)
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(tmp_path / "model") == ["b"]


def test_a_hard_link_is_replaced_never_written_into(tmp_path: Path) -> None:
    cached = tmp_path / "cached"
    cached.write_bytes(b"of an earlier version")
    os.link(cached, tmp_path / "table")
    write_bytes(tmp_path / "table", b"new")
    assert cached.read_bytes() == b"of an earlier version"


def test_a_sole_writer_overwrites_what_a_killed_one_left(tmp_path: Path) -> None:
    temporary_sibling(tmp_path / "shard.tar", is_sole_writer=True).write_bytes(b"half of a killed process")
    again = temporary_sibling(tmp_path / "shard.tar", is_sole_writer=True)
    again.write_bytes(b"whole")
    move_into_place(again, tmp_path / "shard.tar")
    assert (tmp_path / "shard.tar").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["shard.tar"]


def test_two_processes_that_write_one_path_use_two_temporary_files(tmp_path: Path) -> None:
    assert str(os.getpid()) in temporary_sibling(tmp_path / "cache").name


def test_the_old_folder_that_a_killed_process_left_beside_goes_with_the_next_replacement(tmp_path: Path):
    left, other = tmp_path / ".model.4711.old", tmp_path / ".modelling.4711.old"
    for folder in (left, other, tmp_path / "model"):
        folder.mkdir()
        (folder / "weights").write_text("old")
    with atomic_write(tmp_path / "model") as folder:
        folder.mkdir()
        (folder / "weights").write_text("new")
    assert (tmp_path / "model" / "weights").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".modelling.4711.old", "model"]
