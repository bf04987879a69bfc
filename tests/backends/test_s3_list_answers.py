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


@pytest.mark.parametrize(
    "key",
    [
        b"a&amp;#34;b",
        b"a&#34;&quot;b",
        b"a&#128;b",
        b"a&lt;Key&gt;b",
        b"a\r\nb",
        b"a<![CDATA[<Key>&amp;]]>b",
        b"a<!-- </Key> -->b",
    ],
)
def test_text_that_is_not_plain(key: bytes) -> None:
    """Beside an object that is, and with a common prefix between the two."""
    first, second = (
        b"<Contents><Key>%b</Key><ETag>&#34;e&#34;</ETag><Size>1</Size>"
        b"<LastModified>2026-11-24T14:16:07Z</LastModified></Contents>" % name
        for name in (b"plain", key)
    )
    body = b"<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>".join((first, second))
    body = b"<ListBucketResult>%b<IsTruncated>false</IsTruncated></ListBucketResult>" % body
    found = read_by_botocore(body)
    assert len(found["Contents"]) == 2
    assert read_answer(body) == found


@pytest.mark.parametrize("changed", [b'<Key a="b">a</Key>', b"<Key>a</Key><Owner><Key>b</Key></Owner>"])
def test_elements_that_are_not_plain(changed: bytes) -> None:
    body = (
        b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents>%b<ETag>e</ETag><Size>1</Size>"
        b"<LastModified>2026-11-24T14:16:07Z</LastModified></Contents></ListBucketResult>" % changed
    )
    assert read_answer(body) == read_by_botocore(body)


def test_an_object_in_a_comment_is_none() -> None:
    entry = (
        b"<Contents><Key>a</Key><ETag>e</ETag><Size>1</Size>"
        b"<LastModified>2026-11-24T14:16:07Z</LastModified></Contents>"
    )
    body = b"<ListBucketResult><IsTruncated>false</IsTruncated>%b<!--%b--></ListBucketResult>" % (
        entry,
        entry,
    )
    assert len(read_answer(body)["Contents"]) == 1


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
