"""What is published holds nothing of the machine and no secret: neither its files, nor its rows, nor its history."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tasks.config import load_params, overlay, parse_params
from tasks.config.public import CODE_PATHS, NAMES, PUBLIC, choices, free_texts, private_texts, public_params
from tasks.errors import ConfigError
from tasks.evaluate.protocols import PROTOCOLS
from tasks.publish import version
from tasks.publish.deployment import configure_deployment
from tasks.publish.git import git, read_at
from tasks.publish.open_run import Deployment, RunRequest, open_run
from tasks.publish.redaction import public_config, remote_options, run_private_texts, without
from tasks.records import StageReport
from tasks.store import Store
from tests.support.fake_run import fill, gates
from tests.support.parameters import raw_params

SECRET = "pl4" + "nted"  # part of every text that must not be published; this file is published too


def planted(folder: Path) -> dict[str, Any]:
    """A private text in every parameter that takes one."""
    for name in ("takedown.txt", "block.txt", "hashes.jsonl", "bench/annotations.json", "mixed.jsonl", "table.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("# none\n")
    (folder / "takedown.txt").write_text(f"source:{SECRET}\n")
    (folder / "mixed.jsonl").write_text("")  # as the truth of a sample world it is read
    table = {
        "name": "shop",
        "path": str(folder / "table.csv"),
        "contact": f"{SECRET}@corp.example",
        "allow_hosts": [f"{SECRET}.intranet"],
        "columns": {"url": f"{SECRET}_url"},
    }
    bucket = {
        "name": "bucket",
        "path": f"s3://{SECRET}-bucket/in",
        "endpoint_url": f"http://{SECRET}-s3:9000",
        "region": f"{SECRET}-1",
    }
    server = f"http://{SECRET}-gpu.corp:8000/v1"
    datasets = [
        {"name": "mixed", "format": "megapairs", "path": str(folder / "mixed.jsonl"), "images": str(folder)},
        {"name": "own", "format": "rows", "path": "caption_to_image"},
    ]
    return {
        "sources": [{"name": "fake", "path": str(folder)}, table, bucket],
        "ingest": {
            "takedown": str(folder / "takedown.txt"),
            "blocklists": [str(folder / "block.txt")],
            "benchmark_hashes": [str(folder / "hashes.jsonl")],
        },
        "caption": {"url": server, "writer_url": server, "model": f"{folder}/models/vlm", "canaries": None},
        "judge": {"url": server, "model": f"{folder}/models/judge", "labelled": f"{folder}/labels.csv"},
        "train": {"base_model": f"{folder}/clip", "datasets": datasets, "steps": 10},
        "evaluate": {"benchmark": str(folder / "bench"), "truth": str(folder / "mixed.jsonl")},
    }


def test_a_list_of_a_benchmarks_images_is_named_after_the_benchmark():
    """Every protocol that `evaluate` knows, however its name is written; another list is a number."""
    names = [*PROTOCOLS, "i-CIR", "PinPoint_hashes"]
    paths = [*(f"/secret/{name}.jsonl" for name in names), "/secret/shop.jsonl"]
    shown = public_params({"ingest": {"benchmark_hashes": paths}})["ingest"]["benchmark_hashes"]
    assert shown == [*PROTOCOLS, "icir", "pinpoint", f"list {len(paths)}"]


def test_every_text_of_the_parameters_is_private_unless_it_is_listed():
    unknown = (PUBLIC | NAMES | CODE_PATHS) - free_texts()
    assert not unknown, "listed, but no parameter"
    assert not free_texts() & choices()
    for name in sorted(free_texts() - PUBLIC - NAMES - CODE_PATHS):
        raw: Any = SECRET
        for key in reversed(name.split(".")):
            raw = {key: raw}
        assert SECRET not in str(public_params(raw)), name


def test_public_parameters_can_be_read_and_published_again(tmp_path: Path):
    conf = planted(tmp_path)
    changes = overlay({k: v for k, v in conf.items() if k != "sources"}, {"ingest": {"sources": conf["sources"]}})
    raw = raw_params(**changes)
    shown = public_params(raw)
    assert SECRET not in str(shown) and str(tmp_path) not in str(shown)
    assert public_params(shown) == shown
    params = parse_params(shown)
    assert [source.kind_of_path for source in params.ingest.sources] == ["folder", "table", "folder"]
    assert [dataset.path for dataset in params.train.datasets] == ["private", "caption_to_image"], "a task is no place"
    assert (params.caption.model, params.mine) == ("vlm", parse_params(raw).mine)
    assert f"{SECRET}-gpu.corp" in private_texts(raw)


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("http://me:pa55@gpu:8000/v1", "a user or a password"),
        ("http://pa55@gpu/v1", "a user or a password"),
        ("s3://pa55:word@bucket/in", "a user or a password"),
        ("http://me:pa55/w@gpu/v1", "a user or a password"),
        ("http://a/v1,http://me:pa55@gpu/v1", "a user or a password"),
        ("https://bucket.example/list.csv?X-Amz-Signature=pa55", "a key in its query"),
        ("https://host/list.csv?x=1&api_key=pa55", "a key in its query"),
    ],
)
def test_credentials_in_any_address_are_refused_when_a_run_opens(address: str, what: str, deployment: Path):
    for number, conf in enumerate(
        (
            {"caption": {"url": address}},
            {"sources": [{"name": "x", "path": address, "contact": "me"}]},
            {"sources": [{"name": "x", "path": "data", "endpoint_url": address, "attribution": address}]},
            {"evaluate.benchmark": address},
        )
    ):
        request = RunRequest(f"credentials {number}", "dataset", conf)
        with pytest.raises(ConfigError, match=f"holds {what}.*environment or from an Airflow connection") as caught:
            open_run(request, Deployment(deployment / "dataset", deployment / "runs"))
        assert "pa55" not in str(caught.value)


def test_an_address_with_an_at_in_its_path_is_none_with_a_user(tmp_path: Path):
    from tasks.config.public import require_no_credentials

    for text in (
        "https://flickr.com/photos/12@N00/1",
        "mailto:me@here",
        "/data/a@2x",
        "s3://b/k:e@y",
        "http://h:80/@x",
    ):
        require_no_credentials({"ingest": {"sources": [{"name": "x", "attribution": text}]}})


def test_private_texts_leave_whole_words_of_a_text():
    private = ["/srv/in", "gpu.corp"]
    assert without("no /srv/in/a.jpg at gpu.corp:80, not gpu.corps", private) == (
        "no [private]/a.jpg at [private]:80, not gpu.corps"
    )
    assert without(r'{"why": "no\n/srv/in\ngpu.corp"}', private) == r'{"why": "no\n[private]\n[private]"}'


def test_a_public_remote_replaces_the_default_one_and_keys_go():
    config = b"""[core]
    remote = versions
['remote "versions"']
    url = s3://internal/x
    endpointurl = http://s3:8333
    verify = true
['remote "other"']
    url = https://me:pa55@host/x
    password = pa55
"""
    shown = public_config(config, "s3://open/x?allow_anonymous_login=true&region=eu-west-1").decode()
    assert "url = s3://open/x\n" in shown and "allow_anonymous_login = true" in shown and "verify = true" in shown
    assert not any(word in shown for word in ("internal", "s3:8333", "pa55"))
    assert "url = s3://internal/x" in public_config(config, None).decode()
    for wrong, message in (
        ("s3://key:secret@b/x", "holds a user or a password"),
        ("s3://b/x?secret_access_key=y", "private options"),
        ("b/x", "no address"),
    ):
        with pytest.raises(ConfigError, match=message):
            remote_options(wrong)


def decoded(path: Path) -> str:
    """A file's text; of Parquet its rows and its schema."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return f"{table.schema} {table.to_pylist()}"
    return path.read_bytes().decode(errors="replace")


@pytest.mark.slow
def test_a_published_clone_holds_no_planted_secret(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch):
    secret, public = tmp_path / f"{SECRET}-disk", tmp_path / "remote"
    secret.mkdir()
    monkeypatch.setenv("MEGAPAIRS_PUBLIC_REMOTE", str(public))
    (secret / "remote").mkdir()
    public.symlink_to(secret / "remote")
    origin = tmp_path / "origin.git"
    configure_deployment(origin, secret / "dataset", str(secret / "remote"), secret / "cache", checkout=project)
    monkeypatch.setenv("MEGAPAIRS_MODEL_HOSTS", f"{SECRET}-gpu.corp")
    conf = {**planted(secret), "date": "2026-11-16"}
    deployment = Deployment(secret / "dataset", secret / "runs")
    root = Path(open_run(RunRequest(f"{SECRET} run", "dataset", conf), deployment).notes[0])
    params, store = fill(root, range(6)), Store(root)
    detail = f'{{"why": "no answer of http://{SECRET}-gpu.corp:8000/v1 for {secret}/a.jpg\\n{SECRET}@corp.example"}}'
    row = {"stage": "ingest", "batch": "2026.11.16", "key": "fake:a.jpg", "reason": "unreadable", "detail": detail}
    store.write(store.dropped_path("ingest", "2026.11.16"), [row], "dropped")
    store.write_report(StageReport("ingest", read=7, new=7, done=7, notes=[f"{secret}/captions.csv names no file"]))
    gates(root)
    version.run(params, store)

    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--single-branch", origin.as_uri(), str(clone))
    assert git(clone, "rev-list", "--count", "HEAD") == "1", "the code's history came along"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEGAPAIRS")}
    subprocess.run([sys.executable, "-m", "dvc", "pull", "-q"], cwd=clone, env=environment, check=True)
    files = [p for p in clone.rglob("*") if p.is_file() and ".git/" not in str(p) and "/.dvc/tmp" not in str(p)]
    assert any(p.name == "2026.11.16.parquet" and "dropped/ingest" in str(p) for p in files)
    assert [str(p.relative_to(clone)) for p in files if SECRET in decoded(p)] == []
    assert SECRET not in git(clone, "log", "-p", "--all", "--format=fuller") + git(
        clone, "for-each-ref", "--format=%(contents)"
    )
    lock = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]["ingest"]["params"]["params.yaml"]
    assert lock["ingest"] == yaml.safe_load((clone / "params.yaml").read_text())["ingest"]
    assert load_params(clone / "params.yaml").open_run.batch == "2026.11.16"
    assert f"url = {public}\n" in (clone / ".dvc" / "config").read_text()
    # the next run goes on from the published version
    request = RunRequest("next", "dataset", {"sources": str(secret), "date": "2026-11-23"})
    again = open_run(request, deployment)
    assert Store(Path(again.notes[0])).read_table("images").num_rows == 6
    assert b"megapairs" not in (read_at(secret / "dataset", "origin/main", "README.md") or b"")[:4]


def test_names_of_the_published_columns_stay_where_a_sources_own_table_has_them_too(tmp_path: Path):
    table = {"name": "shop", "path": "/data/shop-9.csv", "columns": {"sha256": "image_id", "url": "shop_url"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"ingest": {"sources": [table]}}))
    private = run_private_texts(tmp_path)
    assert without("image_id of shop_url in /data/shop-9.csv", private) == "image_id of [private] in [private]"
