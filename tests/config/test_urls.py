"""Addresses of model servers: lists and commas, and what is refused without repeating a password."""

import pytest

from tasks.config import parse_params
from tasks.config.urls import check_server_urls, split_urls
from tasks.errors import ConfigError
from tests.support.parameters import raw_params


def with_url(key: str, value: object) -> dict:
    params = raw_params(None)
    params["caption"] = {**params["caption"], key: value}
    return params


def test_several_servers_are_a_list_or_separated_by_commas():
    expected = ["http://a:8000/v1", "https://b/v1"]
    for value in ("http://a:8000/v1, https://b/v1/", ["http://a:8000/v1", " https://b/v1"]):
        assert split_urls(parse_params(with_url("url", value)).caption.url) == expected


@pytest.mark.parametrize("key", ["url", "writer_url"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("http://user:pa55word@host/v1", "host host.*MEGAPAIRS_MODEL_API_KEY"),
        (["http://a/v1", "http://pa55word@host/v1"], "URL 2 .*holds a user or a password"),
        ("http://host/v1?key=pa55word", "has a query"),
        ("host:8000/v1", "expected http://host:port/v1"),
        ("file:///etc/passwd", "expected http://host:port/v1"),
        ("http:///v1", "expected http://host:port/v1"),
        ("http://host:99999/v1", "cannot be read"),
        ("http://[::1/v1", "cannot be read"),
    ],
)
def test_an_address_that_is_none_or_holds_a_password_is_refused(key: str, value: object, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_params(with_url(key, value))
    assert f"caption.{key}" in str(caught.value) and "pa55word" not in str(caught.value)


def test_the_text_stays_as_it_is():
    assert check_server_urls("http://[::1]:8000/v1,") == "http://[::1]:8000/v1,"
