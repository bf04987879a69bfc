"""The answer to ListObjectsV2 is read as botocore reads it, whatever a store writes; only quicker."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import botocore.parsers
import botocore.session
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.s3_list_answers import read_answer, read_at_once

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
MODEL = botocore.session.Session().get_service_model("s3").operation_model("ListObjectsV2")
assert MODEL.output_shape is not None
SHAPE = MODEL.output_shape

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1)
times = st.sampled_from(["2026-11-24T14:16:07Z", "2026-11-24T14:16:07.123Z", "1970-01-01T00:00:00.000Z"])
objects = st.lists(st.tuples(texts, st.integers(0, 2**43), times), max_size=5)


def answer(
    found: list[tuple[str, int, str]], prefixes: list[str], token: str | None, namespace: str
) -> bytes:
    root = ElementTree.Element("ListBucketResult", {"xmlns": namespace} if namespace else {})

    def add(parent: ElementTree.Element, name: str, text: str) -> None:
        ElementTree.SubElement(parent, name).text = text

    add(root, "Delimiter", "/")
    add(root, "IsTruncated", "true" if token is not None else "false")
    for key, size, time in found:
        entry = ElementTree.SubElement(root, "Contents")
        for name, text in {
            "LastModified": time,
            "Key": key,
            "ETag": '"tag"',
            "Size": str(size),
            "StorageClass": "STANDARD",
        }.items():
            add(entry, name, text)
    for prefix in prefixes:
        add(ElementTree.SubElement(root, "CommonPrefixes"), "Prefix", prefix)
    if token is not None:
        add(root, "NextContinuationToken", token)
    return ElementTree.tostring(root)


def read_by_botocore(body: bytes) -> dict[str, Any]:
    parser = botocore.parsers.create_parser("rest-xml")
    response = {"status_code": 200, "headers": {}, "body": body}
    parsed: dict[str, Any] = parser.parse(response, SHAPE)
    wanted = {"Key", "ETag", "Size", "LastModified"}
    return {
        "Contents": [
            {name: value for name, value in entry.items() if name in wanted}
            for entry in parsed.get("Contents", [])
        ],
        "CommonPrefixes": parsed.get("CommonPrefixes", []),
        **{
            name: parsed[name]
            for name in ("IsTruncated", "NextContinuationToken", "Delimiter")
            if name in parsed
        },
    }


@given(objects, st.lists(texts, max_size=3), st.none() | texts, st.sampled_from(["", NAMESPACE]))
def test_it_is_read_as_botocore_reads_it(
    found: list[tuple[str, int, str]], prefixes: list[str], token: str | None, namespace: str
) -> None:
    body = answer(found, prefixes, token, namespace)
    assert read_answer(body) == read_by_botocore(body)


def test_encoded_keys() -> None:
    body = (
        b"<ListBucketResult><EncodingType>url</EncodingType>"
        b"<Contents><Key>a%2Bb+c%01</Key><ETag>x</ETag><Size>1</Size>"
        b"<LastModified>2026-11-24T14:16:07Z</LastModified></Contents>"
        b"<CommonPrefixes><Prefix>d%0A/</Prefix></CommonPrefixes></ListBucketResult>"
    )
    found = read_answer(body)
    assert [entry["Key"] for entry in found["Contents"]] == ["a+b c\x01"]
    assert found["CommonPrefixes"] == [{"Prefix": "d\n/"}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<ListBucketResult>",
        b"<Error><Code>SlowDown</Code></Error>",
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>x</Size><ETag>e</ETag>"
        b"<LastModified>2026-11-24T14:16:07Z</LastModified></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>1</Size><ETag>e</ETag>"
        b"<LastModified>2026-11-24T14:16:07</LastModified></Contents></ListBucketResult>",
    ],
)
def test_what_is_no_such_answer_is_left_to_botocore(body: bytes) -> None:
    response = {"status_code": 200, "headers": {}, "body": body}
    answer: dict[str, Any] = {}
    read_at_once(operation_model=MODEL, response_dict=response, customized_response_dict=answer)
    assert (response["body"], answer) == (body, {})


def test_other_answers_are_left_to_botocore() -> None:
    model = botocore.session.Session().get_service_model("s3").operation_model("ListMultipartUploads")
    for status_code, operation in ((503, MODEL), (200, model)):
        response = {"status_code": status_code, "body": b"<ListBucketResult/>"}
        answer: dict[str, Any] = {}
        read_at_once(operation_model=operation, response_dict=response, customized_response_dict=answer)
        assert answer == {}
