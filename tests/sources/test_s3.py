"""s3:// against moto's server: objects in key order, only new and changed ones, also when half of the requests fail."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from tasks.config import SourceConfig
from tasks.errors import ConfigError, TransientError
from tasks.ingest import fetch, listing
from tasks.ingest import stage as ingest
from tasks.sources import s3 as s3_source
from tasks.sources.files import FileRejected
from tasks.sources.open import list_files
from tasks.store import Store
from tests.support.flaky_proxy import FAILURES, FlakyProxy
from tests.support.images import block_image, encode
from tests.support.ingest import ingest_params, read_kept
from tests.support.tars import make_tar


def source(url: str, path: str = "s3://images/week", **more: Any) -> SourceConfig:
    return SourceConfig(name="bucket", path=path, endpoint_url=url, license_code="CC0-1.0", **more)


def make_bytes(name: str, size: int = 3_000) -> bytes:
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def put(client: Any, *keys: str) -> None:
    for key in keys:
        client.put_object(Bucket="images", Key=key, Body=make_bytes(key))


def test_objects_are_listed_by_key_and_read_up_to_a_byte_limit(s3: Any, s3_url: str):
    put(s3, "week/b.jpg", "week/a/../c.jpg", "week/a.jpg", "weekend/z.jpg", "other.jpg")
    s3.put_object(Bucket="images", Key="week/", Body=b"")
    s3.put_object(Bucket="images", Key="week/empty.jpg", Body=b"")
    s3.put_object(Bucket="images", Key="week/captions.csv", Body=b"path,caption,licence\na.jpg,a thing,CC-BY-4.0\n")
    files = list(list_files(source(s3_url)))
    assert [f.uri for f in files] == ["bucket:a.jpg", "bucket:a/../c.jpg", "bucket:b.jpg", "bucket:empty.jpg"]
    assert (files[0].metadata.caption, files[0].license_code, files[2].license_code) == (
        "a thing",
        "CC-BY-4.0",
        "CC0-1.0",
    )
    assert [f.read(3_000) for f in files] == [
        *(make_bytes(k) for k in ("week/a.jpg", "week/a/../c.jpg", "week/b.jpg")),
        b"",
    ]
    with pytest.raises(FileRejected) as caught:
        files[0].read(2_999)
    assert caught.value.reason == "too_large"


def test_a_listing_of_several_pages(s3: Any, s3_url: str, monkeypatch: pytest.MonkeyPatch):
    """Pages of two keys."""
    put(s3, *(f"week/{n:03d}.jpg" for n in range(7)))
    client = s3_source.s3_client(s3_url, None)
    client.meta.events.register(
        "provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 2}, unique_id="two"
    )
    try:
        assert [f.uri for f in list_files(source(s3_url))] == [f"bucket:{n:03d}.jpg" for n in range(7)]
    finally:
        client.meta.events.unregister("provide-client-params.s3.ListObjectsV2", unique_id="two")


def test_a_fingerprint_changes_only_with_the_bytes_or_the_name(s3: Any, s3_url: str):
    put(s3, "week/a.jpg", "week/b.jpg")
    first = {f.uri: f for f in list_files(source(s3_url))}
    put(s3, "week/a.jpg")  # the same bytes, written again
    s3.put_object(Bucket="images", Key="week/b.jpg", Body=b"others")
    second = {f.uri: f for f in list_files(source(s3_url))}
    assert first["bucket:a.jpg"].fingerprint == second["bucket:a.jpg"].fingerprint != ""
    assert first["bucket:b.jpg"].fingerprint != second["bucket:b.jpg"].fingerprint
    s3.copy_object(Bucket="images", Key="week/copy.jpg", CopySource="images/week/a.jpg")
    # the same bytes under a new name are a new file
    assert len({f.fingerprint for f in list_files(source(s3_url))}) == 3
    with pytest.raises(
        FileRejected
    ) as caught:  # what was listed is not there any more: never other bytes under its ETag
        first["bucket:b.jpg"].read(10_000)
    assert (caught.value.reason, caught.value.is_lasting) == ("unreachable", False)


def test_every_object_is_read_although_half_of_the_requests_fail(
    s3: Any, flaky: FlakyProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.01)
    put(s3, *(f"week/{n}.jpg" for n in range(8)))
    files = list(list_files(source(flaky.url)))
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda f: f.read(10_000), files))
    assert read == [make_bytes(f"week/{n}.jpg") for n in range(8)]
    assert sum(flaky.outcomes[f] for f in FAILURES) >= 8 <= flaky.outcomes["fine"]


def test_an_endpoint_that_is_down_is_a_transient_error(s3: Any, flaky: FlakyProxy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.001)
    flaky.is_down = True
    with pytest.raises(TransientError, match="run the stage again"):
        list(list_files(source(flaky.url)))


def test_wrong_buckets_and_credentials_are_configuration_errors(s3: Any, s3_url: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="NoSuchBucket"):
        list(list_files(source(s3_url, "s3://nowhere/week")))
    with pytest.raises(ConfigError, match="names no bucket"):
        list(list_files(source(s3_url, "s3:///week")))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    s3_source.s3_client.cache_clear()
    with pytest.raises(ConfigError, match="aws_default"):
        list(list_files(source(s3_url)))
    s3_source.s3_client.cache_clear()


@contextmanager
def answering(url: str, key: str, status: int, code: str, operation: str = "GetObject") -> Iterator[list[str]]:
    """Requests for keys that contain `key` get this error; yields their addresses."""
    body, asked = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode(), []

    def answer(request: Any, **_: Any) -> AWSResponse | None:
        if key not in request.url:
            return None
        asked.append(request.url)
        raw = SimpleNamespace(stream=lambda *_, **__: iter([body]), read=io.BytesIO(body).read, close=lambda: None)
        return AWSResponse(request.url, status, {"content-length": str(len(body))}, raw)

    events = s3_source.s3_client(url, None).meta.events
    events.register(f"before-send.s3.{operation}", answer, unique_id="answer")
    try:
        yield asked
    finally:
        events.unregister(f"before-send.s3.{operation}", unique_id="answer")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (400, "KMS.DisabledException"),
        (403, "InvalidObjectState"),
        (404, "NoSuchKey"),
        (400, "InvalidRequest"),
        (500, "InternalError"),
        (200, "InternalError"),  # an error as a body, as S3 may send it
    ],
)
def test_an_object_that_its_bucket_does_not_give_is_a_row_that_is_tried_again(
    s3: Any, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str
):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.001)
    for n in range(4):
        s3.put_object(Bucket="images", Key=f"week/{n}.png", Body=encode(block_image(n)))
    settings = {"name": "bucket", "path": "s3://images/week", "endpoint_url": s3_url}
    store = Store(tmp_path / "run")
    with answering(s3_url, "/2.png", status, code):
        first = ingest.run(ingest_params([settings]), store)
    assert (first.written, first.dropped) == (3, {"unreachable": 1})
    second = ingest.run(ingest_params([settings], "2026.01.11"), store)
    assert (second.read, second.written, sorted(read_kept(store))) == (1, 1, [f"{n}.png" for n in range(4)])


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (400, "KMS.DisabledException")])
def test_a_bucket_that_gives_no_object_at_all_is_a_configuration_error_until_the_credential_is_right(
    s3: Any, s3_url: str, tmp_path: Path, status: int, code: str
):
    for n in range(3):
        s3.put_object(Bucket="images", Key=f"week/{n}.png", Body=encode(block_image(n)))
    settings = {"name": "bucket", "path": "s3://images/week", "endpoint_url": s3_url}
    store, params = Store(tmp_path / "run"), ingest_params([settings])
    listing.run(params, store)
    with answering(s3_url, "/week/", status, code):
        fetch.run(params, store)
        with pytest.raises(ConfigError, match=rf"none of its 3 objects can be read.*{code}.*s3:GetObject"):
            ingest.run(params, store)
    assert not store.table_path("images", "2026.01.04").exists()
    assert ingest.run(params, store).written == 3
    s3.put_object(Bucket="images", Key="week/new.png", Body=encode(block_image(4)))
    with answering(s3_url, "/week/", status, code):  # the only new one of a bucket that gives the others
        assert ingest.run(ingest_params([settings], "2026.01.11"), store).dropped == {"unreachable": 1}


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (500, "InternalError")])
def test_a_bucket_that_gives_no_object_stops_no_other_source_and_is_asked_again_without_end(
    s3: Any, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str
):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.001)
    for n in range(2):
        s3.put_object(Bucket="images", Key=f"week/{n}.png", Body=encode(block_image(n)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "own.png").write_bytes(encode(block_image(7)))
    sources = [
        {"name": "bucket", "path": "s3://images/week", "endpoint_url": s3_url},
        {"name": "folder", "path": str(tmp_path / "in")},
    ]
    store = Store(tmp_path / "run")
    with answering(s3_url, "/week/", status, code):
        for week, written in enumerate([1, 0, 0]):  # in the later weeks, the folder has nothing new
            report = ingest.run(ingest_params(sources, f"2026.01.{4 + 7 * week:02d}", max_tries=2), store)
            assert (report.read, report.written, report.dropped) == (2 + written, written, {"unreachable": 2})
            (note,) = (note for note in report.notes if "none of its 2 objects can be read" in note)
            assert code in note and "the other sources were taken in" in note
    report = ingest.run(ingest_params(sources, "2026.01.25", max_tries=2), store)
    assert report.written == 2 and not report.dropped


def test_one_tar_and_one_table_that_may_not_be_read_leave_the_others(s3: Any, s3_url: str):
    for n in range(2):
        s3.put_object(Bucket="images", Key=f"t/{n}.tar", Body=make_tar([("a.jpg", b"a")]))
        s3.put_object(Bucket="images", Key=f"u/{n}.csv", Body=f"url\nhttp://example.org/{n}.jpg\n".encode())
    with answering(s3_url, "/0.", 403, "AccessDenied"):
        for path in ("s3://images/t/*.tar", "s3://images/u/*.csv"):
            first, second = list_files(source(s3_url, path, contact="me@example.org"))
            assert (first.is_rejected, second.is_rejected) == (True, False)
            with pytest.raises(FileRejected, match="does not give it") as caught:
                first.read(10)
            assert (caught.value.reason, caught.value.is_lasting) == ("unreachable", False)


def test_a_listing_that_is_forbidden_is_a_configuration_error(s3: Any, s3_url: str):
    for status, code in ((403, "AccessDenied"), (301, "PermanentRedirect"), (400, "InvalidRequest")):
        with answering(s3_url, "list-type", status, code, "ListObjectsV2"), pytest.raises(ConfigError, match=code):
            list(list_files(source(s3_url)))


def test_requests_without_a_signature_and_with_the_requesters_money(
    s3: Any, s3_url: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("week/a.jpg", "week/a.txt"):
        s3.put_object(Bucket="images", Key=name, Body=b"a thing", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    sent: list[Any] = []
    client = s3_source.anonymous_client(s3_url, None)
    client.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.headers), unique_id="sent")
    (file,) = list_files(source(s3_url, anonymous=True, requester_pays=True))
    assert (file.read(10_000), file.metadata.caption) == (b"a thing", "a thing")
    assert len(sent) >= 2 and all("Authorization" not in headers for headers in sent)
    assert all(headers["x-amz-request-payer"] in (b"requester", "requester") for headers in sent)
    s3_source.anonymous_client.cache_clear()
