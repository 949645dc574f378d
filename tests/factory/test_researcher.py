"""The researcher: clone, `dvc pull`, load_dataset, an older version, and a remote that somebody altered.

The versions are fakes (no models), published for real: once to a folder, once to S3 (moto's server on loopback).
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tasks.errors import (
    EXIT_DATA_ERROR,
    ConfigError,
    CredentialsError,
    DataError,
    MissingPackageError,
    UnreachableError,
)
from tasks.publish.audit import audit
from tasks.publish.deployment import configure_deployment
from tasks.publish.dvc_repo import locked_stages
from tasks.publish.published import published_bytes
from tasks.publish.pull import pull
from tasks.publish.readers import with_images
from tasks.publish.remote import object_path
from tasks.publish.verify import check_survey
from tests.support.fake_run import publish_version
from tests.support.small_environment import small_environment

FIRST, SECOND = "dataset/2026.11.16", "dataset/2026.11.23"


class Deployment(NamedTuple):
    """Where a deployment lies, and its remote's folder when it has one."""

    root: Path
    remote: Path | None


def deploy(root: Path, project: Path, remote_url: str, **options: str) -> None:
    """Two weekly versions: 10 images, then 6 more."""
    configure_deployment(root / "origin.git", root / "dataset", remote_url, root / "cache", checkout=project, **options)
    assert publish_version(root, "scheduled__1", "2026-11-16", range(0, 10)) == FIRST
    assert publish_version(root, "scheduled__2", "2026-11-23", range(10, 16)) == SECOND


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Deployment:
    """A deployment whose remote is a folder."""
    root = tmp_path_factory.mktemp("folder")
    deploy(root, project, str(root / "remote"))
    return Deployment(root, root / "remote")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Iterator[Deployment]:
    """A deployment whose remote is s3://versions on a server of moto's."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("NO_PROXY", "127.0.0.1"),
        ):
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="versions")
        root = tmp_path_factory.mktemp("s3")
        deploy(root, project, "s3://versions/megapairs", endpointurl=url)
        yield Deployment(root, None)
    server.stop()


def shell(cwd: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A researcher's command line; nothing of the deployment in its environment."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MEGAPAIRS")}
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def dvc(cwd: Path, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return shell(cwd, sys.executable, "-m", "dvc", *args, check=check)


def clone(deployment: Deployment, to: Path) -> Path:
    """git clone of origin: what is checked out is the newest version."""
    shell(to.parent, "git", "clone", "-q", str(deployment.root / "origin.git"), str(to))
    return to


def counts(root: Path) -> dict[str, int]:
    return dict(json.loads((root / "version.json").read_text())["rows"])


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_clones_pulls_loads_and_goes_back(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    deployment: Deployment = request.getfixturevalue(kind)
    here = clone(deployment, tmp_path / "mine")
    assert counts(here)["triplets"] == 7 + 3
    dvc(here, "pull")

    from datasets import load_dataset
    from datasets.exceptions import NonMatchingSplitsSizesError

    cache = str(tmp_path / "hf")
    triplets = load_dataset(str(here), "triplets", split="train", cache_dir=cache)
    assert (len(triplets), len(load_dataset(str(here), "images", split="train", cache_dir=cache))) == (
        counts(here)["triplets"],
        counts(here)["images"],
    )
    streamed = list(load_dataset(str(here), "with_images", split="train", streaming=True))
    assert [r["triplet_id"] for r in streamed] == triplets["triplet_id"][:]
    assert streamed[0]["query_image"].size == (24, 24) and len(streamed[0]["negative_images"]) == 2
    tars = list(load_dataset("webdataset", data_files=str(here / "data/shards/*.tar"), split="train", streaming=True))
    assert sorted(t["__key__"].rpartition("/")[2] for t in tars) == sorted(
        load_dataset(str(here), "images", split="train", cache_dir=cache)["image_id"]
    )
    joined = list(with_images(here))
    assert [r["triplet_id"] for r in joined] == triplets["triplet_id"][:]
    assert all(r["query_image"].size == r["target_image"].size == (24, 24) for r in joined)
    assert (here / "reports/gallery.html").read_text().startswith("<!doctype html>")

    # back to the first version in the same clone, with the same cache: what is loaded is what version.json counts
    shell(here, "git", "checkout", "-q", FIRST)
    # `dvc pull` forgotten: the images of the second version are still here
    with pytest.raises(NonMatchingSplitsSizesError):
        load_dataset(str(here), "images", split="train", cache_dir=cache)
    dvc(here, "pull")
    assert counts(here)["triplets"] == len(list(with_images(here))) == 7
    for config, rows in (("triplets", 7), ("images", 10), ("with_images", 7)):
        assert len(load_dataset(str(here), config, split="train", cache_dir=cache)) == rows, config
    shell(here, "git", "checkout", "-q", SECOND)
    dvc(here, "pull")
    assert len(load_dataset(str(here), "triplets", split="train", cache_dir=cache)) == 7 + 3


class Spoilt(NamedTuple):
    """A copy of a deployment's remote in which one object is altered; `mend` puts it right again."""

    url: str
    mend: Callable[[], object]


def spoil(deployment: Deployment, md5: str, to: Path) -> Spoilt:
    """Copy the remote, with a date in the object changed (a Parquet file, a list of files: both hold one)."""
    key = f"files/md5/{md5[:2]}/{md5[2:]}"
    if deployment.remote:
        shutil.copytree(deployment.remote, to)
        victim = to / key
        good = victim.read_bytes()
        assert b"2026.11.16" in good
        victim.chmod(0o644)
        victim.write_bytes(good.replace(b"2026.11.16", b"2026.11.17", 1))
        return Spoilt(str(to), lambda: victim.write_bytes(good))
    import boto3

    url = (deployment.root / "dataset/.dvc/config").read_text().partition("endpointurl = ")[2].split()[0]
    bucket = boto3.resource("s3", endpoint_url=url).Bucket("versions")
    for old in list(bucket.objects.filter(Prefix="megapairs/")):
        bucket.copy({"Bucket": "versions", "Key": old.key}, f"{to.name}/{old.key.partition('/')[2]}")
    good = bucket.Object(f"{to.name}/{key}").get()["Body"].read()
    assert b"2026.11.16" in good
    bucket.put_object(Key=f"{to.name}/{key}", Body=good.replace(b"2026.11.16", b"2026.11.17", 1))
    return Spoilt(f"s3://versions/{to.name}", lambda: bucket.put_object(Key=f"{to.name}/{key}", Body=good))


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_an_altered_object_stops_the_pull_and_is_named(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    deployment: Deployment = request.getfixturevalue(kind)
    here, name = clone(deployment, tmp_path / "mine"), "data/triplets/2026.11.16-00000.parquet"
    altered = spoil(
        deployment, hashlib.md5(published_content(deployment, name)).hexdigest(), tmp_path / f"altered-{kind}"
    )
    dvc(here, "config", "--local", "remote.versions.url", altered.url)

    plain = dvc(here, "pull", check=False)
    # DVC alone names the folder that it would not make
    assert plain.returncode != 0 and "data/triplets" in plain.stderr
    # this names the file in it, and no other
    done = shell(here, sys.executable, "-m", "tasks", "pull", check=False)
    assert done.returncode == EXIT_DATA_ERROR and done.stderr.count("missing or altered in the remote") == 1, (
        done.stderr
    )
    assert f"in the remote: {name} (object files/md5/" in done.stderr
    assert not (here / name).exists()
    again = shell(here, sys.executable, "-m", "tasks", "verify", check=False)
    assert again.returncode == EXIT_DATA_ERROR and name in again.stderr

    altered.mend()
    shell(here, sys.executable, "-m", "tasks", "pull")
    assert "files are as published" in shell(here, sys.executable, "-m", "tasks", "verify").stdout


def test_an_altered_list_of_files_goes_through_dvc_but_not_through_tasks_pull(folder: Deployment, tmp_path: Path):
    here = clone(folder, tmp_path / "mine")
    md5 = next(
        o["md5"]
        for s in locked_stages((here / "dvc.lock").read_bytes()).values()
        for o in s["outs"]
        if o["path"] == "data/triplets"
    )
    altered = spoil(folder, md5, tmp_path / "altered")
    dvc(here, "config", "--local", "remote.versions.url", altered.url)
    dvc(here, "pull")  # no error: DVC checks the objects in a folder, not what they are called there
    done = shell(here, sys.executable, "-m", "tasks", "pull", check=False)
    assert done.returncode == EXIT_DATA_ERROR
    assert f"in the remote: data/triplets (object files/md5/{md5[:2]}/{md5[2:]}, the list of its files)" in done.stderr
    # only what was asked for is judged
    assert shell(here, sys.executable, "-m", "tasks", "pull", "data/images").stdout

    altered.mend()
    shell(here, sys.executable, "-m", "tasks", "pull")
    assert "files are as published" in shell(here, sys.executable, "-m", "tasks", "verify").stdout


def test_a_part_is_pulled_and_the_rest_is_not_missing(folder: Deployment, tmp_path: Path):
    here = clone(folder, tmp_path / "mine")
    assert pull(here, targets=["triplets", "data/images", "reports/validation/images.json"]) == 0
    assert not (here / "data/pairs").exists()
    found = check_survey(here)
    assert {"data/pairs", "data/export", "reports/gallery.html"} <= set(found.not_pulled)
    assert "data/triplets" not in found.not_pulled and "data/shards" in found.not_pulled
    assert found.files == 2 + 2 + 1  # of two weeks, and a report
    assert pull(here, targets=["images"]) == 0, "the table and its tars"
    found = check_survey(here)
    assert "data/shards" not in found.not_pulled and found.files == 2 + 2 + 2 + 1
    assert len(list(with_images(here))) == 7 + 3
    with pytest.raises(ConfigError, match="no 'triplet'; known: .*data/triplets"):
        pull(here, targets=["triplet"])
    # what lies beside the version's files, and what was changed in a report, is named
    shutil.copyfile(here / "data/triplets/2026.11.16-00000.parquet", here / "data/triplets/mine.parquet")
    report = here / "reports/validation/images.json"
    report.unlink()
    report.write_text("{}")
    with pytest.raises(DataError) as caught:
        check_survey(here)
    assert "no part of this version: data/triplets/mine.parquet" in str(caught.value)
    assert "altered here: reports/validation/images.json" in str(caught.value)
    assert str(caught.value).startswith(f"{here}: 2 of ")


def test_a_file_that_the_remote_lost_is_named_and_every_version_that_needs_it(folder: Deployment, tmp_path: Path):
    here, name = clone(folder, tmp_path / "mine"), "data/triplets/2026.11.23-00000.parquet"
    assert folder.remote
    shutil.copytree(folder.remote, tmp_path / "lossy")
    (tmp_path / "lossy" / object_path(hashlib.md5(published_content(folder, name)).hexdigest())).unlink()
    dvc(here, "config", "--local", "remote.versions.url", str(tmp_path / "lossy"))
    with pytest.raises(
        DataError, match=r"published: 1\n  missing or altered in the remote: data/triplets/2026.11.23-0"
    ):
        pull(here)
    found = audit(here)
    assert [tag for tag, state in found.items() if state["lost"]] == [SECOND]
    assert [path for path, _ in found[SECOND]["lost"]] == [name]


def test_a_remote_that_gives_nothing_says_why_by_its_exit_code(
    folder: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = clone(folder, tmp_path / "mine")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    (here / ".dvc" / "config.local").write_text("['remote \"versions\"']\n    url = /no/such/remote\n")
    with pytest.raises(UnreachableError, match="remote /no/such/remote: no such folder") as gone:
        pull(here)
    dvc(here, "config", "--local", "remote.versions.url", "s3://versions/megapairs")
    dvc(here, "config", "--local", "remote.versions.endpointurl", "http://127.0.0.1:9")
    with pytest.raises(CredentialsError, match="remote s3://versions/megapairs: refuses or lacks credentials") as keys:
        audit(here)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    with pytest.raises(UnreachableError, match="cannot be reached"):
        audit(here)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "dvc_s3", None)
        with pytest.raises(MissingPackageError, match="pip install dvc-s3") as package:
            audit(here)
    assert (gone.value.exit_code, keys.value.exit_code, package.value.exit_code) == (69, 77, 72)


def test_a_version_explains_itself(folder: Deployment, tmp_path: Path):
    here = clone(folder, tmp_path / "mine")
    page = tmp_path / "diff.html"
    arguments = [FIRST, "2026.11.23", "--root", str(folder.root / "dataset"), "--out", str(page), "--json"]
    found = json.loads(shell(here, sys.executable, "-m", "tasks", "diff", *arguments).stdout)
    assert found["tables"]["triplets"] == {"added": 3, "withdrawn": [], "reasons": {}}
    assert (found["tables"]["images"]["added"], found["recaptioned"]) == (6, {})
    assert page.read_text().count("data:image/jpeg") >= 6 + 3
    log = (here / "CHANGELOG-DATA.md").read_text()
    assert log.index("## 2026.11.23") < log.index("## 2026.11.16") and "3 triplets added, 0 withdrawn" in log
    quality = json.loads((here / "reports/quality.json").read_text())
    assert quality["new_triplets"] == 3 and quality["yield"] == pytest.approx(3 / 4)
    metrics = json.loads(dvc(here, "metrics", "diff", FIRST, SECOND, "--json").stdout)
    assert metrics["reports/quality.json"]["new_triplets"] == {"old": 7, "new": 3, "diff": -4}


@pytest.mark.slow
def test_the_cards_lines_run_as_printed_with_what_the_card_installs(folder: Deployment, tmp_path: Path):
    """Each block in a shell or a Python of its own, in the folder that the card says."""
    card = shell(folder.root / "origin.git", "git", "show", "dataset:README.md").stdout
    install, exports = re.findall(r"^```bash\n(.*?)^```$", card, re.M | re.S)
    (python,) = re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)
    pip, _, lines = install.partition("\n")
    assert pip.startswith("pip install ")
    programs = small_environment(tmp_path / "environment", shlex.split(pip)[2:])
    path = f"PATH={programs}:{os.environ['PATH']}"
    own = ["env", "-u", "VIRTUAL_ENV", "-u", "PYTHONPATH", path, f"HF_HOME={tmp_path / 'hf'}"]

    done = shell(tmp_path, *own, "bash", "-e", "-c", lines.replace("<origin>", str(folder.root / "origin.git")))
    assert "files are as published" in done.stdout
    here = tmp_path / "my-clone"
    shell(here, *own, "bash", "-e", "-c", exports)
    assert [len((tmp_path / name).read_text().splitlines()) for name in ("megapairs.jsonl", "rows.jsonl")] == [10, 30]
    assert (tmp_path / "triplets.parquet").exists() and "2026.11.23" in (tmp_path / "diff.html").read_text()
    shell(here, *own, "python", "-c", python)
    assert shell(here, "git", "status", "--porcelain").stdout == ""


def test_mlcroissant_validates_what_is_published(folder: Deployment, project: Path, tmp_path: Path):
    program = project / ".venv-croissant" / "bin" / "mlcroissant"
    if not program.exists():
        pytest.skip("mlcroissant: not installed; `make test-croissant`")
    described = shell(folder.root / "origin.git", "git", "show", "dataset:croissant.json").stdout
    assert "data/export/*.parquet" in described
    (tmp_path / "croissant.json").write_text(described)
    done = shell(tmp_path, str(program), "validate", "--jsonld", "croissant.json")
    assert not re.search("error|warning", done.stderr, re.I), done.stderr


def published_content(deployment: Deployment, name: str) -> bytes:
    """A data file of the newest version, by its run's worktree."""
    return next((deployment.root / "runs").glob(f"*/{name}")).read_bytes()


def test_the_deployment_reads_back_what_it_published(folder: Deployment):
    clone_of_the_deployment = folder.root / "dataset"
    assert json.loads(published_bytes(clone_of_the_deployment, "version.json"))["version"] == "2026.11.23"
    assert published_bytes(clone_of_the_deployment, "reports/gallery.html").startswith(b"<!doctype html>")
    assert (
        json.loads(published_bytes(clone_of_the_deployment, "version.json", f"refs/tags/{FIRST}"))["version"]
        == "2026.11.16"
    )
