"""Versions: what is published, what is not, and what makes two of them equal."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.browse.published import versions as published_versions
from tasks.config import load_params
from tasks.errors import ConfigError, DataError, NothingToDo, TransientError
from tasks.judge import stage as judge
from tasks.promote import stage as promote
from tasks.publish import version
from tasks.publish.changes import compare_rows
from tasks.publish.deployment import configure_deployment
from tasks.publish.git import files_at, git, read_at, tags
from tasks.publish.identity import identity_params
from tasks.publish.open_run import Deployment, RunRequest, close_run, open_run
from tasks.publish.published import REMOTE_BRANCH, version_at
from tasks.publish.remote import folder_list, object_path, outputs_at
from tasks.publish.snapshots import Snapshot
from tasks.records import StageReport
from tasks.reviews.answers import Review, Reviews
from tasks.reviews.verdicts import RUN_FILE
from tasks.store import Store
from tasks.validate import stage as validate
from tests.support.colour_pairs import with_judge
from tests.support.fake_llm import FakeLlm
from tests.support.fake_run import fill, gates, open_dataset_run, publish_version

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def versions(deployment: Path) -> Path:
    """Two versions: 8 images, then 5 more."""
    publish_version(deployment, "one", "2026-11-16", range(0, 8))
    publish_version(deployment, "two", "2026-11-23", range(8, 13))
    return deployment


def test_the_branch_holds_code_card_and_counts(versions: Path):
    clone = versions / "dataset"
    assert tags(clone, "dataset") == ["dataset/2026.11.16", "dataset/2026.11.23"]
    newest = version_at(clone) or {}
    assert (newest["version"], newest["parent"]) == ("2026.11.23", "2026.11.16")
    assert newest["rows"] == {"images": 13, "captions": 0, "pairs": 9, "captioned": 9, "triplets": 7}
    assert newest["new_rows"]["triplets"] == 2
    assert newest["drops"] == {"judge": {"wrong_target": 2}}
    assert newest["encoders"]["semantic"] == {"pairs": 3, "triplets": 2, "yield": 2 / 3}
    assert "path" not in newest["params"]["ingest"]["sources"][0]
    files = files_at(clone, REMOTE_BRANCH)
    assert {
        "README.md",
        "version.json",
        "manifest.json",
        "dvc.lock",
        "data/export.dvc",
        "tasks/publish/version.py",
    } <= set(files)
    assert b"config_name: triplets" in (read_at(clone, REMOTE_BRANCH, "README.md") or b"")
    assert git(clone, "rev-parse", f"{REMOTE_BRANCH}^1") == git(clone, "rev-parse", "dataset/2026.11.16^{commit}")
    assert git(versions / "origin.git", "symbolic-ref", "HEAD") == "refs/heads/dataset"
    # main keeps the project's own README
    assert "megapairs" not in (read_at(clone, "origin/main", "README.md") or b"").decode()[:4]


def test_a_dry_run_and_an_empty_week_publish_nothing(versions: Path):
    for run_id, conf, with_triplets, why in (
        ("dry", {"dry_run": True}, True, "dry run"),
        ("empty", {}, False, "no new triplet.* New images 4, new pairs 2; left out by judge: 2 wrong_target"),
    ):
        root = open_dataset_run(versions, run_id, "2026-11-30", **conf)
        params = fill(root, range(20, 24), triplets=with_triplets)
        gates(root)  # green
        with pytest.raises(NothingToDo, match=why):
            version.run(params, Store(root))
        close_run(root, versions / "dataset")
    assert tags(versions / "dataset", "dataset")[-1] == "dataset/2026.11.23"


def test_a_second_try_after_the_push_changes_nothing(versions: Path):
    root = Path(open_run(RunRequest("two", "dataset"), Deployment(versions / "dataset", versions / "runs")).notes[0])
    tip = git(versions / "origin.git", "rev-parse", "dataset")
    # as `python -m tasks version` leaves it
    Store(root).write_report(StageReport("version", figures={"rows_images": 13.0}))
    assert version.run(load_params(root / "params.yaml"), Store(root)).notes[0] == "dataset/2026.11.23"
    assert git(versions / "origin.git", "rev-parse", "dataset") == tip


def test_a_push_that_fails_leaves_no_name_behind_and_may_be_tried_again(versions: Path):
    root = open_dataset_run(versions, "refused", "2026-12-01")
    params = fill(root, range(30, 35))
    gates(root)
    hook = versions / "origin.git" / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(TransientError, match=r"(?s)origin refused dataset/2026.12.01 5 times.*out of order"):
        version.run(params, Store(root))
    assert tags(versions / "dataset", "dataset")[-1] == "dataset/2026.11.23"
    hook.unlink()
    lost = lost_object(versions, "dataset/2026.11.23", "data/images")
    lost.rename(lost.with_suffix(".away"))
    gone = r"objects of dataset/2026.11.23 are gone, first data/images/.* \(files/md5/.*audit"
    with pytest.raises(DataError, match=gone):
        version.run(params, Store(root))
    lost.with_suffix(".away").rename(lost)
    (root / "dvc.lock").write_text("schema: '2.0'\nstages:\n  ing")  # as a kill in the middle of writing leaves them
    (root / "data" / "export.dvc").write_text("outs:\n- md5")
    (root / ".dvc" / "tmp" / "rwlock").write_text('{"write": {"')
    assert version.run(params, Store(root)).notes[0] == "dataset/2026.12.01"
    assert git(versions / "origin.git", "cat-file", "-t", "dataset/2026.12.01") == "tag"


def lost_object(root: Path, tag: str, folder: str) -> Path:
    """Where the remote holds the first file of a published folder."""
    clone = root / "dataset"
    md5 = next(out.md5 for out in outputs_at(clone, f"refs/tags/{tag}") if out.path == folder)
    entries = folder_list(md5, root / "cache", None)
    assert entries
    return root / "remote" / object_path(entries[0][1])


def test_a_date_or_a_name_before_the_last_versions_is_refused(versions: Path):
    with pytest.raises(ConfigError, match=r"open_run.date: 2026-11-01 is before .* would continue"):
        open_dataset_run(versions, "early", "2026-11-01")
    with pytest.raises(ConfigError, match=r"open_run.batch: 2026.10.01 does not come after"):
        open_dataset_run(versions, "early name", "2027-12-07", batch="2026.10.01")
    request = RunRequest("no date", "dataset", {"sources": str(versions / "source")})
    root = Path(open_run(request, Deployment(versions / "dataset", versions / "runs")).notes[0])
    newest = (version_at(versions / "dataset") or {})["date"]
    assert (load_params(root / "params.yaml").open_run.date or "") >= newest
    close_run(root, versions / "dataset")


def test_a_run_that_was_overtaken_does_not_hide_the_other_version(versions: Path):
    root = open_dataset_run(versions, "slow", "2026-12-07")
    params = fill(root, range(40, 45))
    gates(root)
    publish_version(versions, "fast", "2026-12-08", range(50, 54))
    with pytest.raises(DataError, match="came in since this run opened"):
        version.run(params, Store(root))
    assert (version_at(versions / "dataset") or {})["version"] == "2026.12.08"


def test_equal_inputs_give_equal_fingerprints_on_another_day_and_machine(versions: Path, tmp_path: Path, project: Path):
    configure_deployment(
        tmp_path / "origin.git", tmp_path / "dataset", str(tmp_path / "remote"), tmp_path / "cache", checkout=project
    )
    publish_version(tmp_path, "other", "2027-01-04", range(0, 8))
    first = version_at(versions / "dataset", "refs/tags/dataset/2026.11.16") or {}
    assert (version_at(tmp_path / "dataset") or {})["fingerprint"] == first["fingerprint"]
    root = open_dataset_run(tmp_path, "changed", "2027-01-05", **{"mine.neighbours": 3})
    assert identity_params(load_params(root / "params.yaml").model_dump(by_alias=True)) != identity_params(
        first["params"]
    )


@pytest.mark.parametrize(("score", "is_promoted"), [(0.30, True), (0.10, False)])
def test_a_better_model_is_published_beside_the_data(score: float, is_promoted: bool, versions: Path):
    deployment = Deployment(versions / "dataset", versions / "runs")
    root = Path(open_run(RunRequest(f"model {score}", "model", {"date": "2026-12-10"}), deployment).notes[0])
    assert len(list(Store(root).table_files("triplets"))) == 4  # the newest version's data is there
    (root / "models" / "candidate").mkdir(parents=True)
    (root / "models" / "candidate" / "model.safetensors").write_bytes(b"weights")
    kinds, names = ("composed", "image_only", "text_only"), ("map_at_5", "recall_at_1", "recall_at_10")
    values = {"base": 0.1, "finetuned": score}
    metrics = {
        m: {kind: dict.fromkeys(names, v if kind == "composed" else v / 2) for kind in kinds} for m, v in values.items()
    }
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports" / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
    (root / "reports" / "training.json").write_text("{}")
    report = promote.run(load_params(root / "params.yaml"), Store(root))
    assert report.figures["is_promoted"] == float(is_promoted), report.notes
    clone = versions / "dataset"
    if is_promoted:
        assert report.notes[0] == "model/2026.12.10" in tags(clone, "model")
        assert "Recall@10" in (root / "models/promoted/README.md").read_text()
        assert (version_at(clone) or {})["version"] == "2026.12.08"  # the data is the same
        assert {"models/promoted.dvc", "reports/evaluation.json", "README.md"} <= set(
            files_at(clone, "model/2026.12.10")
        )
        again = Path(open_run(RunRequest("model next", "model", {"date": "2026-12-10"}), deployment).notes[0])
        assert (again / "models/promoted/model.safetensors").read_bytes() == b"weights"
        assert not (again / "models/candidate").exists()
        assert load_params(again / "params.yaml").open_run.batch == "2026.12.10.2"
    else:
        assert "model/2026.12.10.2" not in tags(clone, "model")


def test_gates_see_the_last_version(versions: Path):
    root = open_dataset_run(versions, "shuffled", "2026-12-14")
    params = fill(root, range(60, 66), cosine=0.12)
    store = Store(root)
    validate.run(params, store, table="images")
    with pytest.raises(DataError, match="median_caption_cosine_drop: be between: observed 0.18, expected at most 0.1"):
        validate.run(params, store, table="pairs")
    report = json.loads((root / "reports/validation/pairs.json").read_text())
    failure = report["failures"][0]
    assert report["is_valid"] is False and report["last_version"] == "2026.12.08"
    assert failure["column"] == "median_caption_cosine_drop" and len(failure["examples"]) == 5
    assert all(len(e["image_ids"][0]) == 64 for e in failure["examples"])
    shutil.rmtree(root)


def test_the_next_version_follows_what_people_answered_before_its_run_opened(versions: Path):
    clone = versions / "dataset"
    newest = published_versions(clone)[0]
    shown = newest.table("data/triplets").to_pylist()

    def answer(name: str, number: int, said: str, text: str = "") -> None:
        row = shown[number]
        ends = {"query": row["query_image_id"], "target": row["target_image_id"]}
        of_row = {"version": newest.name, "row_id": row["triplet_id"], "instruction": row["instructions"][0]}
        Reviews(clone).add(Review("2026-12-17T08:00:00+00:00", name, answer=said, text=text, **of_row, **ends))

    for name in ("ann.person", "bob.person"):
        answer(name, 0, "wrong")
        answer(name, 1, "right", text="paint it deep red")
    root = open_dataset_run(versions, "reviewed", "2026-12-21")
    assert "person" not in (root / RUN_FILE).read_text()
    answer("ann.person", 0, "right")
    answer("bob.person", 2, "wrong")  # both too late for this run
    params, store = fill(root, range(70, 75)), Store(root)
    store.write_report(judge.run(params, store))
    gates(root)
    tag = version.run(params, store).notes[0]

    record = version_at(clone) or {}
    assert record["rows"]["triplets"] == len(shown) - 1 + record["new_rows"]["triplets"]
    assert record["new_drops"]["judge"] == {"reviewed_text": 1, "reviewed_wrong": 1, "wrong_target": 1}
    triplets = {row["pair_id"]: row for row in store.read_table("triplets").to_pylist()}
    assert shown[0]["pair_id"] not in triplets and triplets[shown[2]["pair_id"]] == shown[2]
    assert triplets[shown[1]["pair_id"]]["instructions"] == ["paint it deep red", *shown[1]["instructions"][1:]]
    exported = [pq.read_table(path) for path in sorted((root / "data" / "export").glob("*.parquet"))]
    assert [i for table in exported for i in table["triplet_id"].to_pylist()] == [
        row["triplet_id"] for row in triplets.values()
    ]
    card = (read_at(clone, REMOTE_BRANCH, "README.md") or b"").decode()
    assert "1 triplets were withdrawn\nas wrong, 1 texts replaced, 0 negatives taken out" in card
    before, after = (Snapshot.of_tag(clone, name) for name in (f"dataset/{newest.name}", tag))
    assert compare_rows(before, after, "triplets").reasons == {"reviewed_text": 1, "reviewed_wrong": 1}
    files = [path.read_bytes() for path in (root / "data").rglob("*.parquet")]
    assert not any(b"person" in content for content in [card.encode(), *files])


def test_verdicts_alone_make_a_version_and_a_rejected_pair_that_people_judge_right_is_in_it(
    versions: Path, monkeypatch: pytest.MonkeyPatch
):
    clone = versions / "dataset"
    newest = published_versions(clone)[0]
    rejected = newest.table("data/dropped/judge").to_pylist()
    lost = next(row for row in rejected if row["batch"] == newest.name and row["reason"] == "wrong_target")
    pair = next(row for row in newest.table("data/pairs").to_pylist() if row["pair_id"] == lost["key"])
    ends = {"query": pair["query_image_id"], "target": pair["target_image_id"]}
    of_row = {"version": newest.name, "row_id": lost["key"], "instruction": "a red one"}
    Reviews(clone).add(Review("2026-12-22T08:00:00+00:00", "ann", answer="right", **of_row, **ends))
    monkeypatch.setattr(judge, "load_judge", lambda *_: FakeLlm(yes=lambda _: 0.2))
    root = open_dataset_run(versions, "verdicts", "2026-12-28")
    params, store = with_judge(load_params(root / "params.yaml"), labelled=None, calibration=None), Store(root)
    store.write_report(judge.run(params, store))
    gates(root)
    version.run(params, store)

    record = version_at(clone) or {}
    assert record["version"] == "2026.12.28" and record["new_rows"]["images"] == record["new_rows"]["pairs"] == 0
    assert record["new_rows"]["triplets"] == record["reviewed_right"] == 1
    assert record["new_drops"]["judge"] == {"reviewed_wrong": 1}, "bob's answer, which was too late for the last run"
    [row] = pq.read_table(store.reviewed_path("2026.12.28")).to_pylist()
    assert row["instructions"] == ["a red one"] and row["judge_target"] == pytest.approx([0.2])
    assert record["weeks"]["2026.12.28"]["triplets"] == 0, "figures about models leave out what people decided"
    card = (read_at(clone, REMOTE_BRANCH, "README.md") or b"").decode()
    assert "1 triplets are pairs that the judge had rejected and people judged right" in card
