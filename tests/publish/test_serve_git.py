"""origin.git by HTTP: anybody clones and fetches it with git itself, nobody pushes, nothing else can be read."""

import http.client
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.publish import serve_git
from tasks.publish.git import git
from tasks.publish.serve_git import GitServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    root = tmp_path_factory.mktemp("served")
    git(root, "init", "-q", "--bare", "-b", "main", str(root / "origin.git"))
    git(root, "init", "-q", "-b", "main", str(root / "work"))
    (root / "work" / "card.md").write_text("the first version\n")
    (root / "secret.txt").write_text("not yours")
    git(root / "work", "add", "card.md")
    git(root / "work", "commit", "-q", "-m", "one")
    git(root / "work", "tag", "dataset/2026.01.01")
    git(root / "work", "push", "-q", "--tags", str(root / "origin.git"), "HEAD:main")
    with GitServer(root / "origin.git", "127.0.0.1", 0) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def url(server: GitServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/origin.git"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "GIT_TERMINAL_PROMPT": "0", "HOME": "/nonexistent", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False, env=environment)


def test_anybody_clones_and_fetches_with_git_itself(server: GitServer, tmp_path: Path):
    done = run("clone", "-q", url(server), str(tmp_path / "clone"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "clone" / "card.md").read_text() == "the first version\n"
    assert git(tmp_path / "clone", "tag").split() == ["dataset/2026.01.01"]
    work = server.repository.parent / "work"
    (work / "card.md").write_text("the second version\n")
    git(work, "commit", "-q", "-am", "two")
    git(work, "push", "-q", str(server.repository), "HEAD:main")
    assert run("-C", str(tmp_path / "clone"), "pull", "-q").returncode == 0
    assert (tmp_path / "clone" / "card.md").read_text() == "the second version\n"
    old = run("-c", "protocol.version=0", "clone", "-q", "--depth", "1", url(server), str(tmp_path / "old"))
    assert old.returncode == 0, old.stderr


def test_nobody_pushes(server: GitServer, tmp_path: Path):
    assert run("clone", "-q", url(server), str(tmp_path / "clone")).returncode == 0
    before = git(server.repository, "for-each-ref")
    push = run("-C", str(tmp_path / "clone"), "push", "origin", "HEAD:refs/heads/stolen")
    assert push.returncode != 0 and "403" in push.stderr
    assert git(server.repository, "for-each-ref") == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/origin.git/info/refs?service=git-receive-pack", 403),
        ("POST", "/origin.git/git-receive-pack", 403),
        ("GET", "/secret.txt", 404),
        ("GET", "/origin.git/../secret.txt", 404),
        ("GET", "/origin.git/%2e%2e/secret.txt", 404),
        ("GET", "/origin.git/config", 404),
        ("GET", "/other.git/info/refs?service=git-upload-pack", 404),
        ("GET", "/origin.git/info/refs?service=git-upload-pack&x=1", 404),
        ("GET", "/origin.git/objects/00/" + "0" * 38, 404),
        ("GET", "/", 404),
    ],
)
def test_nothing_else_is_served(server: GitServer, method: str, path: str, status: int):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, body=b"0000" if method == "POST" else None)
    assert connection.getresponse().status == status
    connection.close()


@pytest.mark.parametrize("header", ["Content-Length: -5", "Content-Length: 99999999999", "Content-Length: many"])
def test_a_body_of_no_sane_length_is_refused(server: GitServer, header: str):
    name, value = header.split(": ")
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest("POST", "/origin.git/git-upload-pack")
    connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def test_a_body_in_chunks_is_read(server: GitServer, monkeypatch: pytest.MonkeyPatch):
    def post(chunks: list[bytes]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        headers = {"Content-Type": "application/x-git-upload-pack-request", "Git-Protocol": "version=2"}
        connection.request("POST", "/origin.git/git-upload-pack", iter(chunks), headers, encode_chunked=True)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status if b"refs/heads/main" in body or answer.status != 200 else -1

    wish = [b"0014command=ls-refs\n", b"0001", b"0000"]
    assert post(wish) == 200
    monkeypatch.setattr(serve_git, "MOST_REQUEST_BYTES", 8)
    assert post(wish) == 400


def test_a_taken_port_is_a_clear_error(server: GitServer, capsys: pytest.CaptureFixture[str]):
    from tasks.__main__ import main

    taken = str(server.server_port)
    assert main(["serve_git", "--repository", str(server.repository), "--port", taken]) == 78
    assert f"127.0.0.1:{taken} cannot be listened on" in capsys.readouterr().err


def test_of_a_deployments_origin_only_the_versions_are_offered(server: GitServer, tmp_path: Path):
    work = server.repository.parent / "work"
    try:
        git(work, "push", "-q", str(server.repository), "HEAD:refs/heads/dataset")
        git(server.repository, "symbolic-ref", "HEAD", "refs/heads/dataset")
        listed = run("ls-remote", url(server)).stdout.split()[1::2]
        assert listed == ["HEAD", "refs/heads/dataset", "refs/tags/dataset/2026.01.01"]
        assert run("clone", "-q", url(server), str(tmp_path / "clone")).returncode == 0
        assert git(tmp_path / "clone", "branch", "-r").split() == [
            "origin/HEAD",
            "->",
            "origin/dataset",
            "origin/dataset",
        ]
        assert run("ls-remote", str(server.repository), "refs/heads/main").stdout, "the deployment's own clone sees all"
    finally:
        git(server.repository, "symbolic-ref", "HEAD", "refs/heads/main")
