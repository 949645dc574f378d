"""What a published commit is composed of."""

import pytest
import yaml

from tasks.publish.dvc_repo import merge_locks
from tasks.publish.publish import is_product, merge_params


@pytest.mark.parametrize(
    ("path", "is_of_product"),
    [
        ("README.md", True),
        ("dvc.lock", True),
        ("data/export.dvc", True),
        ("models/promoted.dvc", True),
        ("tasks/publish/version.py", False),
        ("docs/data.dvc", False),
        ("data/shards/one.tar", False),
    ],
)
def test_files_of_the_product_are_told_from_the_deployed_code(path: str, is_of_product: bool):
    assert is_product(path) is is_of_product


def test_a_run_publishes_its_own_sections_and_keeps_the_others():
    tip = yaml.safe_dump({"mine": {"neighbours": 1}, "train": {"steps": 1}}).encode()
    ours = yaml.safe_dump({"mine": {"neighbours": 2}, "train": {"steps": 2}, "new": {}}).encode()
    assert yaml.safe_load(merge_params(tip, ours, ["mine"])) == {
        "mine": {"neighbours": 2},
        "train": {"steps": 1},
        "new": {},
    }
    assert merge_params(None, ours, []) == ours


def test_a_run_publishes_the_lock_entries_of_its_own_stages():
    def lock(**stages: str) -> bytes:
        return yaml.safe_dump(
            {"schema": "2.0", "stages": {name: {"cmd": cmd} for name, cmd in stages.items()}}
        ).encode()

    merged = yaml.safe_load(merge_locks(lock(train="old", mine="old"), lock(mine="new", train="new"), ["mine"]))
    assert merged["stages"] == {"mine": {"cmd": "new"}, "train": {"cmd": "old"}}
    assert list(merged["stages"]) == ["mine", "train"]
    assert yaml.safe_load(merge_locks(None, lock(mine="new"), ["mine"]))["stages"] == {"mine": {"cmd": "new"}}
