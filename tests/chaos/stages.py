"""Chaos without Airflow: stages, their disk, their model server and their bucket are broken."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tasks.demo.processes import end_with_parent
from tasks.names import slug
from tasks.publish.git import tags
from tests.chaos.week import IN_FLIGHT, Outcome, Week
from tests.support.flaky_proxy import FlakyProxy
from tests.support.waiting import wait_until
from tests.support.web import running

ALWAYS = ("write", "", 0)  # every command writes something, also one that finds all done
LATE = ("end", "", 0)
SEED = 11
NO_NAMESPACE = "mounts need root and CLONE_NEWNS here"


def random_kills(week: Week, kills: int, seed: int) -> Outcome:
    """SIGKILL of every command of the week at random moments, many times each, then once undisturbed."""
    draw, out = random.Random(seed), Outcome("random kills of every stage")
    chain = week.chain()
    lost = 0
    for number, words in enumerate(chain):
        events = week.events[" ".join(words[:2])]
        weights = {kind: len(labels) for kind, labels in events.items()}
        wanted = kills * (number + 1) // len(chain) - kills * number // len(chain)
        for _ in range(wanted):
            kind = draw.choice(sorted(weights))
            ended = week.run(words, (kind, "", draw.randrange(weights[kind])))
            if ended.code == 0:  # less was left to do: it ended before that moment
                ended = week.run(words, ALWAYS if draw.random() < 0.5 else LATE)
            assert ended.code == -signal.SIGKILL, f"{words[:2]}: {ended.code} {ended.output[-800:]}"
            out.kills += 1
            lost += IN_FLIGHT if words[0] in ("recaption", "caption", "judge") else 0
        week.finish(words)
    out.is_recovered = True
    out.is_equal = week.is_as_expected(lost)
    out.note = f"{week.calls} paid calls, {week.paid_again()} lost in flight and asked again"
    return out


def server_dies_and_comes_back_with_another_model(week: Week) -> Outcome:
    """The model server is killed in the middle of caption, comes back with another model, then with the right one."""
    out, notes = Outcome("model server killed, back with another model"), []
    for words in week.chain():
        if words[0] == "caption":
            week.server(die=9)
            died = week.run(words)
            out.kills += 1
            week.server(model="another")
            other = week.run(words)
            week.server()
            notes = [died, other]
        week.finish(words)
    died, other = notes
    out.is_recovered = died.code == 75 and other.code in (75, 78) and "not 'tiny'" in other.output
    out.is_equal = week.is_as_expected(IN_FLIGHT)
    out.note = f"exit codes {died.code}, {other.code}: {other.output.strip().splitlines()[-1][:90]}"
    return out


def two_runs_at_once(week: Week) -> Outcome:
    """Two runs of the same week side by side, stage by stage: one publishes, the other is told to start anew."""
    out = Outcome("two runs at once")
    other = week.place / "runs" / slug("other")
    for words in week.chain()[:-1]:
        week.finish(words)
        week.finish(week.opening("other") if words[0] == "open_run" else words, worktree=other)
    week.finish(["version"])
    late = week.run(["version"], worktree=other)
    is_refused = late.code in (65, 75, 78, 99) and bool(late.output.strip())
    out.is_recovered = is_refused and len(tags(week.origin, "dataset")) == 1
    # both runs ask the same, and the second one finds the first one's replies
    out.is_equal = week.is_as_expected()
    paid = f"{len(set(week.server.paid()))} of {week.calls} different calls paid, {week.paid_again()} twice"
    is_same = "the same" if week.published() == week.expected else "another version"
    out.note = f"{is_same}, {paid}; the second: exit code {late.code}, " + late.output.strip().splitlines()[-1][:90]
    return out


def killed_twin(week: Week) -> Outcome:
    """The stage's lock is held by a process that hangs and is then killed: the second one waits, then works."""
    out = Outcome("a hanging twin holds the lock")
    for words in week.chain():
        if words[0] == "select":
            lock = week.worktree / ".run" / "locks" / "select"
            code = "import sys, time\nfrom pathlib import Path\nfrom tasks.locks import exclusive\n"
            code += "with exclusive(Path(sys.argv[1]), 60, 'busy'):\n    print('held', flush=True)\n    time.sleep(600)"
            twin = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
            assert twin.stdout and twin.stdout.readline() == "held\n"
            twin.send_signal(signal.SIGSTOP)
            refused = week.run(words, MEGAPAIRS_LOCK_WAIT_S="0.5")
            out.is_recovered = refused.code == 75 and f"process {twin.pid} on" in refused.output
            twin.kill()
            twin.wait()
            out.kills += 1
        week.finish(words)
    out.is_equal = week.is_as_expected()
    out.note = "refused after its limit, naming the holder; then it worked"
    return out


# --- disk ------------------------------------------------------------------------------------------------------------


def own_mounts() -> bool:
    """Give this process and its children mounts of their own; False where that is not allowed."""
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(0x00020000) != 0:  # CLONE_NEWNS
        return False
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False)
    return done.returncode == 0


def used_bytes(place: Path) -> int:
    """Bytes in use on the file system of a folder."""
    state = os.statvfs(place)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def disk_full(week: Week) -> Outcome:
    """The disk is full before every stage and has room again after it failed."""
    out, failed = Outcome("disk full at each stage"), []
    shutil.rmtree(week.place)
    week.place.mkdir()
    size = 3 << 30

    def mount(*words: str) -> None:
        subprocess.run(["mount", *words, str(week.place)], check=True, capture_output=True)

    mount("-t", "tmpfs", "-o", f"size={size}", "none")
    try:
        shutil.copytree(week.untouched, week.place, symlinks=True, dirs_exist_ok=True)
        for words in week.chain():
            room = used_bytes(week.place) + 2 * os.sysconf("SC_PAGE_SIZE")
            mount("-o", f"remount,size={room}")
            ended = week.run(words)
            if ended.code != 0:
                failed.append(words[0])
            assert ended.code in (0, 1, 75), (
                f"{words[:2]}: a full disk ended it with {ended.code}: {ended.output[-500:]}"
            )
            mount("-o", f"remount,size={size}")
            week.finish(words)
        out.is_recovered = len(failed) > 8
        out.is_equal = week.is_as_expected(IN_FLIGHT * len(failed))
        out.note = f"{len(failed)} of {len(week.chain())} commands failed for it: {', '.join(dict.fromkeys(failed))}"
    finally:
        subprocess.run(["umount", "-l", str(week.place)], check=True)
    return out


# --- S3 --------------------------------------------------------------------------------------------------------------


def bucket_cut(week: Week) -> Outcome:
    """The source's bucket is cut off before ingest, then answers every other request badly: the same images."""
    out = Outcome("S3 cut off, then flaky")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(words, stdout=quiet, stderr=quiet, preexec_fn=end_with_parent)
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "moto's server answers", poll_s=0.1)
        upload(url, keys, week.root / "source")
        tables = []
        with running(FlakyProxy(url)) as proxy:
            for endpoint in (url, proxy.url):
                week.reset()
                source = {"name": "shop", "path": "s3://shop/", "endpoint_url": endpoint, "license_code": "CC0-1.0"}
                # an S3 server of the deployment is one that its environment names
                ended = week.run(week.opening(sources=[source]), **keys, AWS_ENDPOINT_URL=endpoint)
                assert ended.code == 0, ended.output[-800:]
                if endpoint == proxy.url:
                    proxy.is_down = True
                    cut = week.run(["ingest"], **keys)
                    proxy.is_down = False
                    out.is_recovered = cut.code == 75
                ended = week.run(["ingest"], **keys)
                assert ended.code == 0, ended.output[-800:]
                folders = [week.worktree / "data" / name for name in ("images", "shards")]
                tables.append({p.name: p.read_bytes() for folder in folders for p in sorted(folder.iterdir())})
        out.is_equal = tables[0] == tables[1] and len(tables[0]) > 2
        out.note = (
            f"cut: exit code {cut.code}; {proxy.outcomes.total()} requests, {proxy.outcomes['fine']} answered well"
        )
    finally:
        server.kill()
        server.wait()
    return out


def upload(url: str, keys: dict[str, str], folder: Path) -> None:
    """Put a folder's files into bucket `shop`."""
    import boto3

    names = {"AWS_ACCESS_KEY_ID": "aws_access_key_id", "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key"}
    options = {names[k]: v for k, v in keys.items() if k in names}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **options)
    client.create_bucket(Bucket="shop")
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        client.upload_file(str(file), "shop", file.relative_to(folder).as_posix())


def stage_scenarios(kills: int, has_mounts: bool, seed: int = SEED) -> dict[str, Callable[[Week], Outcome]]:
    """Every scenario of this file by a short name.

    Args:
        kills: of the random ones, a count.
        has_mounts: whether file systems can be mounted here.
        seed: that draws the random kills' moments.
    """
    scenarios: dict[str, Callable[[Week], Outcome]] = {
        "kills": lambda week: random_kills(week, kills, seed),
        "model-server": server_dies_and_comes_back_with_another_model,
        "two-runs": two_runs_at_once,
        "lock": killed_twin,
        "bucket": bucket_cut,
    }
    return scenarios | ({"disk": disk_full} if has_mounts else {})


def report(out: Outcome) -> str:
    """The outcome as one JSON line, for a log."""
    return json.dumps(out.__dict__)
