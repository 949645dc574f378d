"""s3:// against moto's server: objects in key order, only new and changed ones, also when half of the requests fail."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tasks.config import SourceConfig
from tasks.errors import ConfigError, TransientError
from tasks.sources import s3 as s3_source
from tasks.sources.files import FileRejected
from tasks.sources.open import list_files
from tests.support.flaky_proxy import FAILURES, FlakyProxy


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
