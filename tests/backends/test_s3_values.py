"""How values look on the wire, and the options that contradict each other."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import InvalidMetadata
from backends.s3_options import S3Options
from backends.s3_values import Checksum, decode_metadata, encode_metadata, nanoseconds, unquote_etag

VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)


@given(VALUES)
def test_any_value_comes_back(value: str) -> None:
    assert decode_metadata(encode_metadata({"name": value})) == {"name": value}


@given(VALUES)
def test_what_is_sent_survives_a_header(value: str) -> None:
    """ASCII, not empty, nothing that a server may trim, fold or decode."""
    [sent] = encode_metadata({"name": value}).values()
    assert sent.isascii()
    assert sent.isprintable()
    assert sent == " ".join(sent.split())
    assert sent != ""
    assert not sent.startswith("=?")


@pytest.mark.parametrize("etag", ['"65f1-2"', "65f1-2", 'W/"65f1-2"'])
def test_an_etag_is_the_same_with_and_without_quotes_and_if_a_proxy_made_it_weak(etag: str) -> None:
    assert unquote_etag(etag) == "65f1-2"


@pytest.mark.parametrize(
    "value", ["33188", "1700000000.123456789", "a b", "~!@#$%^&*()_+{}|:<>?", '"quoted"']
)
def test_plain_values_are_sent_as_they_are(value: str) -> None:
    """s3fs reads and writes the same metadata."""
    assert encode_metadata({"name": value}) == {"name": value}


def test_values_of_others_come_back_as_they_are() -> None:
    foreign = {
        "a": "data:;base64,not base64!",
        "b": "data:;base64,/w==",
        "c": "=?UTF-8?B?w6k=?=",
        "d": "data:;base64,é",
    }
    assert decode_metadata(foreign) == foreign


def test_what_gets_too_long_by_encoding_is_refused() -> None:
    with pytest.raises(InvalidMetadata):
        encode_metadata({"name": "é" * 900})


def test_times_keep_their_microseconds() -> None:
    assert nanoseconds(datetime(2026, 11, 23, 5, 6, 7, 123_457, tzinfo=UTC)) == 1_795_410_367_123_457_000


@pytest.mark.parametrize(
    ("checksum", "expected"),
    [
        (Checksum.CRC32, {"ChecksumCRC32": "y/Q5Jg=="}),
        (Checksum.MD5, {"ContentMD5": "JfnnlDI7RTiF9RgfG2JNCw=="}),
        (Checksum.NONE, {}),
    ],
)
def test_checksums_are_those_of_s3(checksum: Checksum, expected: dict[str, str]) -> None:
    """The check value of CRC-32 is CBF43926, big-endian."""
    assert checksum.arguments(b"123456789") == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bucket": ""}, "bucket"),
        ({"access_key": "a"}, "secret_key"),
        ({"session_token": "t"}, "session_token"),
        ({"anonymous": True, "profile": "p"}, "anonymous"),
        ({"anonymous": True, "access_key": "a", "secret_key": "s"}, "anonymous"),
        ({"kms_key_id": "k"}, "kms_key_id"),
        ({"kms_key_id": "k", "server_side_encryption": "AES256"}, "kms_key_id"),
        ({"max_connections": 0}, "max_connections"),
        ({"connect_timeout_seconds": 0}, "connect_timeout_seconds"),
        ({"read_timeout_seconds": -1}, "read_timeout_seconds"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(S3Options(bucket="pail"), **changes)


def test_secrets_do_not_show() -> None:
    options = S3Options(bucket="pail", access_key="AKIA1", secret_key="hush1", session_token="token1")
    shown = repr(options)
    assert not any(secret in shown for secret in ("AKIA1", "hush1", "token1"))
