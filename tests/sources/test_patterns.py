"""Patterns mean the same on a disk and in a bucket, and no two files share a URI."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import SourceConfig
from tasks.errors import ConfigError
from tasks.sources.open import list_files
from tasks.sources.patterns import compile_pattern, split_pattern
from tests.support.tars import make_tar

KEYS = [
    "00000.tar",
    "00001.tar",
    "00012.tar",
    "a/00000.tar",
    "a/00001.tar",
    "b/00000.tar",
    "b/c/00000.tar",
    "b/x[1].tar",
    "notes.txt",
]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.tar", ["00000.tar", "00001.tar", "00012.tar"]),
        ("*/00000.tar", ["a/00000.tar", "b/00000.tar"]),
        ("**/00000.tar", ["00000.tar", "a/00000.tar", "b/00000.tar", "b/c/00000.tar"]),
        ("b/**", ["b/00000.tar", "b/c/00000.tar", "b/x[1].tar"]),
        ("{00000..00009}.tar", ["00000.tar", "00001.tar"]),
        ("{a,b}/0000[01].tar", ["a/00000.tar", "a/00001.tar", "b/00000.tar"]),
        ("{a,b/{c,d}}/*.tar", ["a/00000.tar", "a/00001.tar", "b/c/00000.tar"]),
        ("0000?.tar", ["00000.tar", "00001.tar"]),
        ("[!0]*", ["a/00000.tar", "a/00001.tar", "b/00000.tar", "b/c/00000.tar", "b/x[1].tar"]),
        ("b/x[1].tar", ["b/x[1].tar"]),
    ],
)
def test_a_pattern_takes_the_same_from_a_disk_and_a_bucket(
    pattern: str, expected: list[str], tmp_path: Path, s3: Any, s3_url: str
):
    for key in KEYS:
        path = tmp_path / "in" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_tar([("1.jpg", key.encode())]))
        s3.put_object(Bucket="images", Key=f"in/{key}", Body=path.read_bytes())
    local = list(list_files(SourceConfig(name="s", path=f"{tmp_path}/in/{pattern}", kind="tars")))
    remote = list(
        list_files(SourceConfig(name="s", path=f"s3://images/in/{pattern}", kind="tars", endpoint_url=s3_url))
    )
    assert sorted(bytes(file.read(100)).decode() for file in local) == sorted(expected)
    assert sorted(bytes(file.read(100)).decode() for file in remote) == sorted(expected)
    assert len({file.uri for file in local}) == len(local) and len({file.uri for file in remote}) == len(remote)


def test_a_pattern_of_images_takes_their_captions(tmp_path: Path, s3: Any, s3_url: str):
    files = {"a/1.jpg": b"1", "a/2.png": b"2", "b/1.jpg": b"3", "captions.csv": b"path,caption\na/1.jpg,x\nb/1.jpg,y\n"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        s3.put_object(Bucket="images", Key=f"in/{name}", Body=content)
    for path, more in ((f"{tmp_path}/*/*.jpg", {}), ("s3://images/in/*/*.jpg", {"endpoint_url": s3_url})):
        listed = list_files(SourceConfig(name="s", path=path, kind="folder", **more))
        assert {f.uri: f.metadata.caption for f in listed} == {"s:a/1.jpg": "x", "s:b/1.jpg": "y"}


def test_nothing_that_matches_is_an_error(tmp_path: Path, s3: Any, s3_url: str):
    s3.put_object(Bucket="images", Key="in/a.jpg", Body=b"1")
    for path in ("s3://images/nothing", "s3://images/in/*.png", "s3://images/in/*.tar", "s3://images/in/no.csv"):
        with pytest.raises(ConfigError, match=f"nothing at {path.replace('*', '.*')}"):
            list(list_files(SourceConfig(name="s", path=path, endpoint_url=s3_url, contact="me@example.org")))
    for path in (f"{tmp_path}/{{0..9}}.tar", f"{tmp_path}/no/*.tar"):
        with pytest.raises(ConfigError, match="nothing at"):
            list(list_files(SourceConfig(name="s", path=path)))


@settings(max_examples=200, deadline=None)
@given(st.text("ab0/.-[]{},*?", max_size=12), st.text("ab0/.", max_size=8))
def test_no_pattern_raises_and_a_text_without_wildcards_is_itself(pattern: str, path: str):
    compiled = compile_pattern(pattern)
    assert compiled.matches(pattern) and isinstance(compiled.matches_or_holds(path), bool)
    base, rest = split_pattern(pattern)
    assert rest == "" and base == pattern or not any(c in base for c in "*?[{")


NAMES = st.lists(st.text("a.#1/", min_size=1, max_size=5), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["x", "x.tar", "y"]), NAMES, min_size=1))
def test_no_two_files_share_a_uri(tmp_path_factory: pytest.TempPathFactory, tars: dict[str, list[str]]):
    """Tars in folders that may be named as tars are, with members that may be named as places are."""
    folder = tmp_path_factory.mktemp("uris")
    for name, members in tars.items():
        (folder / name).mkdir()
        (folder / name / "x.tar").write_bytes(make_tar([(member, b"1") for member in members]) * 2)
    uris = [file.uri for file in list_files(SourceConfig(name="s", path=str(folder), kind="tars"))]
    assert len(uris) == len(set(uris))


@pytest.mark.parametrize("pattern", ["nothing*/x.png", "*.gone", "{c,d}/*.png"])
def test_a_pattern_that_matches_no_file_of_a_folder_is_an_error(pattern: str, tmp_path: Path):
    """Also where a table of captions lies beside; the folder alone may be empty."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "captions.csv").write_text("path,caption\nx.png,a thing\n")
    with pytest.raises(ConfigError, match="nothing at"):
        list(list_files(SourceConfig(name="s", path=str(tmp_path / pattern))))
    assert not list(list_files(SourceConfig(name="s", path=str(tmp_path / "a"))))
