"""A clone is compared with its manifest; every altered or missing file is named."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from tasks.errors import ConfigError, DataError
from tasks.publish.verify import check, undelivered


def make_clone(root: Path) -> Path:
    """Two files in data/, tracked by one .dvc file, both in the cache."""
    manifest, entries = {}, []
    objects = root / ".dvc" / "cache" / "files" / "md5"
    for name in ("a.parquet", "b.parquet"):
        content = name.encode()
        (root / "data" / "export").mkdir(parents=True, exist_ok=True)
        (root / "data" / "export" / name).write_bytes(content)
        manifest[f"data/export/{name}"] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        md5 = hashlib.md5(content).hexdigest()
        entries.append({"relpath": name, "md5": md5})
        (objects / md5[:2]).mkdir(parents=True, exist_ok=True)
        (objects / md5[:2] / md5[2:]).write_bytes(content)
    (objects / "00").mkdir(parents=True, exist_ok=True)
    (objects / "00" / "folder.dir").write_text(json.dumps(entries))
    (root / "data" / "export.dvc").write_text(yaml.safe_dump({"outs": [{"path": "export", "md5": "00folder.dir"}]}))
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def test_a_clone_as_published_is_counted(tmp_path: Path):
    assert check(make_clone(tmp_path)) == 2
    assert list(undelivered(tmp_path)) == []


def test_an_altered_file_is_named(tmp_path: Path):
    (make_clone(tmp_path) / "data" / "export" / "a.parquet").write_bytes(b"other")
    with pytest.raises(DataError, match=r"1 of 2 files are not as published\n  altered here: data/export/a.parquet$"):
        check(tmp_path)


def test_a_file_that_was_not_pulled_is_told_from_one_that_the_remote_lacks(tmp_path: Path):
    (make_clone(tmp_path) / "data" / "export" / "a.parquet").unlink()
    with pytest.raises(DataError, match="missing here: data/export/a.parquet; run `dvc pull`"):
        check(tmp_path)
    md5 = hashlib.md5(b"a.parquet").hexdigest()
    (tmp_path / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]).unlink()
    with pytest.raises(DataError, match=f"missing or altered in the remote: data/export/a.parquet .*{md5[2:]}"):
        check(tmp_path)


def test_a_missing_list_of_a_folder_is_said_to_be_one(tmp_path: Path):
    (make_clone(tmp_path) / ".dvc" / "cache" / "files" / "md5" / "00" / "folder.dir").unlink()
    (fault,) = undelivered(tmp_path)
    assert str(fault).endswith("data/export (object files/md5/00/folder.dir, the list of its files)")


def test_another_folder_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="manifest.json: missing; give a clone"):
        check(tmp_path)
