"""A version is pushed to a Hub, a fake on loopback: what is as published, nothing else, under its own tag."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import CredentialsError, DataError, UnreachableError
from tasks.publish.push_hub import push


class FakeHub(BaseHTTPRequestHandler):
    """The calls of huggingface_hub's upload, for small files; keeps what is committed and tagged."""

    files: dict[str, bytes]
    tags: list[str]
    token = "Bearer hf_right"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def url(self) -> str:
        """Of the dataset."""
        return f"http://{self.headers['Host']}/datasets/me/set"

    def answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """The tree of the repository, to find files to delete."""
        if self.headers.get("Authorization") != self.token:
            self.answer({"error": "no"}, 401)
        elif "/tree/" in self.path:
            listed = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in self.files.items()]
            self.answer(listed)
        else:
            self.answer({"id": "me/set", "sha": "0" * 40, "siblings": [{"rfilename": p} for p in self.files]})

    def do_POST(self) -> None:
        """Create, ask for upload modes, commit, tag."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if self.headers.get("Authorization") != self.token:
            self.answer({"error": "no"}, 401)
        elif self.path.startswith("/api/repos/create"):
            self.answer({"url": self.url()})
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            self.answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]}
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    self.files.pop(line["value"]["path"])
            self.answer({"success": True, "commitUrl": f"{self.url()}/commit/1", "commitOid": "1" * 40})
        elif "/tag/" in self.path:
            self.tags.append(json.loads(body)["tag"])
            self.answer({})
        else:
            self.answer({"errors": [], "warnings": []})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    FakeHub.files, FakeHub.tags = {"data/triplets/withdrawn.parquet": b"old", "mine.txt": b"kept"}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone as pulled, in miniature: two tables, vectors, and the code beside them."""
    contents = {"data/triplets/a.parquet": b"t", "data/shards/a.tar": b"i", "data/embeddings/semantic/a.npy": b"v"}
    for name, content in {**contents, "tasks/code.py": b"x", "README.md": b"# card\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    manifest = {n: {"sha256": hashlib.sha256(c).hexdigest(), "size_bytes": len(c)} for n, c in contents.items()}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "version.json").write_text(json.dumps({"version": "2026.11.28"}))
    return tmp_path


def test_what_is_published_is_pushed_and_what_went_goes_there_too(hub: str, clone: Path):
    result = push(clone, "me/set", endpoint=hub)
    assert result["version"] == "2026.11.28" and FakeHub.tags == ["2026.11.28"]
    assert sorted(FakeHub.files) == [
        "README.md", "data/shards/a.tar", "data/triplets/a.parquet", "manifest.json", "mine.txt", "version.json"
    ]  # fmt: skip
    assert FakeHub.files["data/shards/a.tar"] == b"i"


def test_an_altered_clone_is_not_pushed(hub: str, clone: Path):
    (clone / "data/triplets/a.parquet").write_bytes(b"other")
    with pytest.raises(DataError, match=r"altered here: data/triplets/a\.parquet"):
        push(clone, "me/set", endpoint=hub)
    assert "README.md" not in FakeHub.files


def test_a_refused_token_and_an_absent_hub_say_so(hub: str, clone: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CredentialsError, match=r"refuses to write me/set \(401\)") as refused:
        push(clone, "me/set", endpoint=hub)
    assert "hf_wrong" not in str(refused.value)
    with pytest.raises(UnreachableError, match="cannot be reached"):
        push(clone, "me/set", endpoint="http://127.0.0.1:9")
