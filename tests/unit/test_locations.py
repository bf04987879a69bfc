"""URLs of stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusefs.errors import ConfigError
from fusefs.locations import BucketLocation, DirectoryLocation, Location, MemoryLocation, parse_url


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("s3://bucket", BucketLocation(bucket="bucket")),
        ("s3://bucket/", BucketLocation(bucket="bucket")),
        ("s3://bucket/a", BucketLocation(bucket="bucket", prefix="a/")),
        ("s3://bucket/a/b/", BucketLocation(bucket="bucket", prefix="a/b/")),
        ("s3://b-1.x/%41?b#c é", BucketLocation(bucket="b-1.x", prefix="%41?b#c é/")),
        ("file:///srv/bucket", DirectoryLocation(path=Path("/srv/bucket"))),
        ("file:///srv/%41 b/", DirectoryLocation(path=Path("/srv/%41 b"))),
        ("file:////srv//x/../bucket", DirectoryLocation(path=Path("/srv/bucket"))),
        ("memory://", MemoryLocation()),
    ],
)
def test_a_url_names_a_store(url: str, location: Location) -> None:
    """What follows the scheme is taken as it is written, `%` and `?` included."""
    assert parse_url(url) == location


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bucket",
        "/srv/bucket",
        "s3:/bucket",
        "http://bucket",
        "S3://bucket",
        "s3://",
        "s3:///prefix",
        "s3://ab",
        "s3://" + "a" * 64,
        "s3://Bucket",
        "s3://my_bucket",
        "s3://-bucket",
        "s3://bucket.",
        "s3://a..b",
        "s3://10.0.0.1/x",
        "s3://bucket\n",
        "s3://bucket//a",
        "s3://bucket/a//b",
        "s3://bucket/../a",
        "s3://bucket/a/.",
        "s3://bucket/\0",
        "s3://bucket/\udc80",
        "s3://bucket/" + "a/" * 512,
        "file://",
        "file://relative/path",
        "file://localhost/srv",
        "file:///",
        "file:////..",
        "file:///a\0b",
        "memory://x",
        "memory:///",
    ],
)
def test_what_names_no_store_is_one_line_with_an_example(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    message = str(caught.value)
    assert message.endswith("use s3://bucket/prefix, file:///directory or memory://")
    assert "\n" not in message


@pytest.mark.parametrize("secret", ["MDENG", "wJalr/MDENG", "/MDENG"])
def test_credentials_in_a_url_are_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(f"s3://AKIA:{secret}@bucket/prefix")
    assert "MDENG" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


def test_the_message_says_which_part_of_the_url_is_wrong() -> None:
    with pytest.raises(
        ConfigError, match=r'^"s3://Bucket": the bucket must be 3 to 63 .* \(got "Bucket"\); use s3:'
    ):
        parse_url("s3://Bucket")
    with pytest.raises(ConfigError, match=r'^"s3://bucket//a": the prefix must be .* \(got "/a"\); use s3:'):
        parse_url("s3://bucket//a")
