"""Captioning and judging with a server that fails in every way: equal tables, and no request is paid for twice."""

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tasks.caption.stage import run as run_caption
from tasks.config import load_params
from tasks.errors import ConfigError, DataError
from tasks.store import Store
from tasks.store.shards import shard_path
from tests.support.parameters import raw_params
from tests.support.served_model import FakeServer

BATCH = "2026.01.05"
PAIRS = 12


def worktree(root: Path, project: Path, url: str, **caption: Any) -> Store:
    """Twelve pairs over thirteen images, and params for the served engine."""
    store = Store(root)
    shard, images, pairs = b"", [], []
    for n in range(PAIRS + 1):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (20 * n, 255 - 20 * n, 99)).save(file, "PNG")
        blank = {
            "source_uri": f"s:{n}",
            "source_sha256": "",
            "license_code": "",
            "attribution": "",
            "fetched_at": "",
            "phash": "",
            "thumbnail": b"",
        }
        where = {"shard": f"{BATCH}-00000.tar", "offset_bytes": len(shard), "size_bytes": len(file.getvalue())}
        images.append(
            {
                "image_id": f"i{n:02d}",
                "batch": BATCH,
                "width_px": 16,
                "height_px": 16,
                "caption": f"number {n}",
                "caption_source": "source",
                **blank,
                **where,
            }
        )
        shard += file.getvalue()
    for n in range(PAIRS):
        ids = {
            "pair_id": f"p{n:02d}",
            "batch": BATCH,
            "query_image_id": f"i{n:02d}",
            "target_image_id": f"i{n + 1:02d}",
            "mined_by": ["semantic"],
        }
        scores = {
            "similarity_semantic": 0.9,
            "similarity_pattern": None,
            "similarity_caption": None,
            "rank": 0,
            "negative_similarity": [0.9, 0.8],
        }
        pairs.append({**ids, "negative_image_ids": [f"i{n:02d}", f"i{(n + 5) % 13:02d}"], **scores})
    store.write_bytes(shard_path(store.root, f"{BATCH}-00000.tar"), shard)
    store.write(store.table_path("images", BATCH), images, "images")
    store.write(store.table_path("pairs", BATCH), pairs, "pairs")
    params = raw_params(None)
    params["open_run"]["batch"] = BATCH
    served = {"engine": "openai", "url": url, "model": "tiny", "chunk_pairs": 5, "in_flight": 4, "timeout_s": 60.0}
    params["caption"] |= (
        served
        | {
            "writer_url": url,
            "writer": "tiny",
            "styles": ["imperative", "question"],
            "instructions_min": 1,
            "canaries": None,
        }
        | caption
    )
    params["judge"] |= served | {"labelled": None, "threshold": 0.5, "negative_threshold": 0.99, "instructions_min": 1}
    params["validate"]["triplets"] |= {"yes_min": 0.5, "instructions_min": 1}
    store.write_bytes(root / "params.yaml", yaml.safe_dump(params).encode())
    return store


def without_captions(store: Store, **recaption: Any) -> Store:
    """The worktree with images that came without a caption."""
    images = store.read_table("images").to_pylist()
    rows = [{**row, "caption": None, "caption_source": None} for row in images]
    store.write(store.table_path("images", BATCH), rows, "images")
    params = yaml.safe_load((store.root / "params.yaml").read_text())
    params["recaption"] |= recaption
    store.write_bytes(store.root / "params.yaml", yaml.safe_dump(params).encode())
    return store


def run(stage: str, root: Path, project: Path, pid_file: Path | None = None) -> tuple[int, str]:
    """`python -m tasks <stage>`; exit code and output."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MEGAPAIRS")} | {"PYTHONPATH": str(project)}
    with subprocess.Popen(
        [sys.executable, "-m", "tasks", *stage.split()],
        cwd=root,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        if pid_file:
            pid_file.write_text(str(process.pid))
        output, _ = process.communicate(timeout=600)
    return process.returncode, output


def tables(store: Store) -> dict[str, bytes]:
    wanted = [
        p for t in ("captions", "captioned", "triplets", "dropped") for p in store.folder("data", t).rglob("*.parquet")
    ]
    return {str(p.relative_to(store.root)): p.read_bytes() for p in sorted(wanted)}


@pytest.mark.slow
def test_a_killed_stage_makes_the_same_tables_when_run_again_and_pays_nothing_twice(
    tmp_path: Path, project: Path, server: FakeServer
):
    url = server()
    whole = worktree(tmp_path / "whole", project, url)
    for stage in ("caption", "judge"):
        assert run(stage, whole.root, project)[0] == 0
    once = server.paid()
    assert len(set(once)) == len(once) > 40
    columns = (
        "captioner_revision",
        "engine",
        "prompt_sha256",
        "sampling",
        "judge_revision",
        "judge_engine",
        "judge_prompt_sha256",
    )
    rows = whole.read_table("triplets").to_pylist() + whole.read_table("captioned").to_pylist()
    assert rows and all(row[name] for row in rows for name in columns if name in row)
    assert {row["seed"] for row in rows} == {0}
    assert {row["judge_engine"] for row in rows if "judge_engine" in row} == {"openai, vllm 0.fake"}

    server.forget()
    killed = worktree(tmp_path / "killed", project, url)
    for stage, n in (("caption", 17), ("judge", 9)):
        server(kill=[str(tmp_path / "pid"), n])
        code, output = run(stage, killed.root, project, tmp_path / "pid")
        assert code == -signal.SIGKILL, output
        server()
        code, output = run(stage, killed.root, project)
        assert code == 0 and "from the cache" in output, output
    assert tables(killed) == tables(whole)
    again = server.paid()
    # Replies in flight when the client is killed are lost: at most in_flight a kill, and no other request is repeated.
    assert set(again) == set(once) and len(again) - len(set(again)) <= 2 * 4

    server.forget()
    for path in [p for t in ("captioned", "triplets") for p in killed.folder("data", t).iterdir()]:
        path.unlink()
    for stage in ("caption", "judge"):
        code, output = run(stage, killed.root, project)
        assert code == 0 and "100% from the cache), paid 0 prompt and 0 output tokens" in output, output
    assert tables(killed) == tables(whole) and server.paid() == []


@pytest.mark.slow
def test_a_server_killed_and_restarted_gives_the_same_tables_and_repeats_only_requests_in_flight(
    tmp_path: Path, project: Path, server: FakeServer
):
    whole = worktree(tmp_path / "whole", project, server())
    assert run("caption", whole.root, project)[0] == 0
    once = server.paid()
    server.forget()

    broken = worktree(tmp_path / "broken", project, server(die=len(once) // 2))

    def restart() -> None:
        server.process().wait(600)
        server()

    restarting = threading.Thread(target=restart)
    restarting.start()
    code, output = run("caption", broken.root, project)
    restarting.join()
    assert code == 0, output
    assert tables(broken) == tables(whole)
    assert set(server.paid()) == set(once) and len(server.paid()) - len(once) <= 4  # in_flight


@pytest.mark.parametrize(
    ("restart_options", "message"),
    [
        ({"model": "other"}, "serves ['other'], not 'tiny'"),
        ({"root": "/weights/b"}, "is /weights/b there now and was /weights/a"),
    ],
)
def test_a_server_that_comes_back_with_another_model_ends_the_stage_without_a_retry(
    tmp_path: Path, project: Path, server: FakeServer, restart_options: dict[str, str], message: str
):
    store = worktree(tmp_path / "tree", project, server(die=20, root="/weights/a"))

    def restart() -> None:
        server.process().wait(600)
        server(**restart_options)

    restarting = threading.Thread(target=restart)
    restarting.start()
    code, output = run("caption", store.root, project)
    restarting.join()
    assert code == ConfigError.exit_code and message in output, output


def test_a_reply_of_ten_thousand_tokens_is_too_long(tmp_path: Path, project: Path, server: FakeServer):
    url = server(fault="long", every=1)
    store = worktree(tmp_path / "tree", project, url)
    code, output = run("caption", store.root, project)
    assert code == 0, output
    [reason] = {d["reason"] for d in store.read_dropped("caption").to_pylist()}
    assert reason == "too_long" and store.read_table("captioned").num_rows == 0


@pytest.mark.slow
def test_a_spent_budget_ends_the_stage_and_a_larger_one_continues_it(tmp_path: Path, project: Path, server: FakeServer):
    url = server()
    whole = worktree(tmp_path / "whole", project, url)
    assert run("caption", whole.root, project)[0] == 0
    small = worktree(tmp_path / "small", project, url, budget_tokens=100)
    code, output = run("caption", small.root, project)
    assert code == 0 and "7 of 12 pairs are left" in output, output
    assert len(small.table_files("captioned")) == 1
    worktree(tmp_path / "small", project, url, budget_tokens=100_000)
    assert run("caption", small.root, project)[0] == 0
    assert {k: v for k, v in tables(small).items() if "captioned" in k} == {
        k: v for k, v in tables(whole).items() if "captioned" in k
    }


@pytest.mark.slow
def test_recaption_killed_in_the_middle_makes_the_same_captions_and_pays_nothing_twice(
    tmp_path: Path, project: Path, server: FakeServer
):
    chunks = {"chunk_images": 4}
    whole = without_captions(worktree(tmp_path / "whole", project, server()), **chunks)
    assert run("recaption", whole.root, project)[0] == 0
    once = server.paid()
    assert len(once) == len(set(once)) == PAIRS + 1 == whole.read_table("captions").num_rows

    server.forget()
    killed = without_captions(worktree(tmp_path / "killed", project, server(kill=[str(tmp_path / "pid"), 7])), **chunks)
    code, output = run("recaption", killed.root, project, tmp_path / "pid")
    assert code == -signal.SIGKILL and len(killed.table_files("captions")) == 1, output
    server()
    for part in ("2/2", "1/2"):  # what is left may as well be done in parts
        code, output = run(f"recaption --part {part}", killed.root, project)
        assert code == 0, output
    assert tables(killed) == tables(whole)
    assert set(server.paid()) == set(once) and len(server.paid()) - len(once) <= 4  # in_flight


def test_a_bad_pair_is_a_row_of_a_green_stage_and_a_bad_server_an_error_that_says_so(
    tmp_path: Path, project: Path, server: FakeServer
):
    """The instructions of one style are refused by the writer; then everything is."""

    def caption(name: str, bad: str, **changes: Any) -> Store:
        store = worktree(tmp_path / name, project, server(bad=[bad, 400]), **changes)
        run_caption(load_params(store.root / "params.yaml"), store)
        return store

    store = caption("tree", "style: question", refused_share_max=1.0)
    assert {tuple(row["styles"]) for row in store.read_table("captioned").to_pylist()} == {("imperative",)}
    with pytest.raises(DataError, match=r"caption.refused_share_max: 5 of 5 rows were refused.*aspect ratio"):
        caption("strict", "style: question")
    with pytest.raises(ConfigError, match="the server refuses every request for 'tiny': 400 .*aspect ratio"):
        caption("none", "model")
