"""s3:// against moto's server: new and changed objects alone, in the order of keys; half of all requests may fail."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tasks import sources
from tasks.config import SourceConfig
from tasks.errors import ConfigError, TransientError
from tasks.sources import Refused
from tasks.sources import s3 as s3_source
from tests.sources.conftest import Flaky


def source(url: str, path: str = "s3://images/week", **more: Any) -> SourceConfig:
    return SourceConfig(name="bucket", path=path, endpoint_url=url, license_code="CC0-1.0", **more)


def bytes_for(name: str, size: int = 3_000) -> bytes:
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def put(client: Any, *keys: str) -> None:
    for key in keys:
        client.put_object(Bucket="images", Key=key, Body=bytes_for(key))


def test_objects_are_listed_by_key_and_read_under_a_limit(s3: Any, s3_url: str):
    put(s3, "week/b.jpg", "week/a/../c.jpg", "week/a.jpg", "weekend/z.jpg", "other.jpg")
    s3.put_object(Bucket="images", Key="week/", Body=b"")
    s3.put_object(Bucket="images", Key="week/empty.jpg", Body=b"")
    s3.put_object(Bucket="images", Key="week/captions.csv", Body=b"path,caption,licence\na.jpg,a thing,CC-BY-4.0\n")
    found = list(sources.listing(source(s3_url)))
    assert [f.uri for f in found] == ["bucket:a.jpg", "bucket:a/../c.jpg", "bucket:b.jpg", "bucket:empty.jpg"]
    assert (found[0].label.caption, found[0].license_code, found[2].license_code) == ("a thing", "CC-BY-4.0", "CC0-1.0")
    assert [f.read(3_000) for f in found] == [
        *(bytes_for(k) for k in ("week/a.jpg", "week/a/../c.jpg", "week/b.jpg")),
        b"",
    ]
    with pytest.raises(Refused) as caught:
        found[0].read(2_999)
    assert caught.value.reason == "too_large"


def test_more_than_a_page(s3: Any, s3_url: str, monkeypatch: pytest.MonkeyPatch):
    """Pages of two keys."""
    put(s3, *(f"week/{n:03d}.jpg" for n in range(7)))
    client = s3_source.client_of(s3_url, None)
    client.meta.events.register(
        "provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 2}, unique_id="two"
    )
    try:
        assert [f.uri for f in sources.listing(source(s3_url))] == [f"bucket:{n:03d}.jpg" for n in range(7)]
    finally:
        client.meta.events.unregister("provide-client-params.s3.ListObjectsV2", unique_id="two")


def test_a_fingerprint_changes_with_the_bytes_alone(s3: Any, s3_url: str):
    put(s3, "week/a.jpg", "week/b.jpg")
    first = {f.uri: f for f in sources.listing(source(s3_url))}
    put(s3, "week/a.jpg")  # the same bytes, written again
    s3.put_object(Bucket="images", Key="week/b.jpg", Body=b"others")
    second = {f.uri: f for f in sources.listing(source(s3_url))}
    assert first["bucket:a.jpg"].fingerprint == second["bucket:a.jpg"].fingerprint != ""
    assert first["bucket:b.jpg"].fingerprint != second["bucket:b.jpg"].fingerprint
    s3.copy_object(Bucket="images", Key="week/copy.jpg", CopySource="images/week/a.jpg")
    # the same bytes under a new name are a new file
    assert len({f.fingerprint for f in sources.listing(source(s3_url))}) == 3
    with pytest.raises(Refused) as caught:  # what was listed is not there any more: never other bytes under its ETag
        first["bucket:b.jpg"].read(10_000)
    assert (caught.value.reason, caught.value.is_lasting) == ("unreachable", False)


def test_half_of_all_requests_fail_and_nothing_is_lost(s3: Any, flaky: Flaky, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.01)
    put(s3, *(f"week/{n}.jpg" for n in range(8)))
    found = list(sources.listing(source(flaky.url)))
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda f: f.read(10_000), found))
    assert read == [bytes_for(f"week/{n}.jpg") for n in range(8)]
    assert sum(flaky.failed[f] for f in ("503", "hang up", "broken")) >= 8 <= flaky.failed["fine"]


def test_an_endpoint_that_is_down_is_for_a_later_try(s3: Any, flaky: Flaky, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.001)
    flaky.is_down = True
    with pytest.raises(TransientError, match="run the stage again"):
        list(sources.listing(source(flaky.url)))


def test_what_a_person_must_correct(s3: Any, s3_url: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="NoSuchBucket"):
        list(sources.listing(source(s3_url, "s3://nowhere/week")))
    with pytest.raises(ConfigError, match="names no bucket"):
        list(sources.listing(source(s3_url, "s3:///week")))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    s3_source.client_of.cache_clear()
    with pytest.raises(ConfigError, match="aws_default"):
        list(sources.listing(source(s3_url)))
    s3_source.client_of.cache_clear()
