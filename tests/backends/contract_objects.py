"""The contract, part 1: an object, its bytes, its ranges and its metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import pytest

from backends.base import (
    Data,
    ObjectStorage,
)
from backends.errors import (
    InvalidMetadata,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
)
from tests.backends.contract_support import (
    KNOWN_DEVIATIONS,
    METADATA,
    NASTY_KEYS,
    OPAQUE_ETAGS,
    StoreDescription,
    all_keys,
)


class ObjectContract(StoreDescription):
    """Putting, reading and describing objects."""

    # What the subclass says of its store

    def test_only_known_deviations_are_declared(self) -> None:
        assert self.deviations <= KNOWN_DEVIATIONS
        assert self.refused_keys | set(self.renamed_keys) <= set(NASTY_KEYS)

    async def test_probe_finds_the_capabilities_and_leaves_nothing_behind(
        self, storage: ObjectStorage
    ) -> None:
        assert await storage.probe() == self.expected_capabilities
        assert storage.capabilities == self.expected_capabilities
        assert await all_keys(storage) == []
        assert await storage.list_multipart_uploads() == []

    async def test_a_read_only_probe_writes_nothing(self, storage: ObjectStorage) -> None:
        await storage.probe(read_only=True)
        assert await all_keys(storage) == []

    # Objects

    async def test_an_object_comes_back_whole(self, storage: ObjectStorage) -> None:
        etag = await storage.put("dir/name", b"content", metadata={"mode": "33188"})
        info = await storage.head("dir/name")
        assert (info.key, info.etag, info.size) == ("dir/name", etag, 7)
        assert info.metadata == {"mode": "33188"}
        whole = await storage.get_range("dir/name")
        assert (whole.data, whole.etag, whole.object_size) == (b"content", etag, 7)

    async def test_etags_have_no_quotes_and_are_the_same_everywhere(self, storage: ObjectStorage) -> None:
        etag = await storage.put("k", b"content")
        assert '"' not in etag
        assert etag != ""
        page = await storage.list_prefix()
        assert {etag, (await storage.head("k")).etag, page.objects[0].etag} == {etag}
        if OPAQUE_ETAGS not in self.deviations:
            assert etag == hashlib.md5(b"content").hexdigest()

    async def test_other_content_has_another_etag(self, storage: ObjectStorage) -> None:
        first = await storage.put("k", b"one")
        assert await storage.put("k", b"two") != first

    async def test_an_empty_object_is_an_object(self, storage: ObjectStorage) -> None:
        etag = await storage.put("empty", b"")
        assert (await storage.head("empty")).size == 0
        whole = await storage.get_range("empty")
        assert (whole.data, whole.etag, whole.object_size) == (b"", etag, 0)
        with pytest.raises(RangeNotSatisfiable):
            await storage.get_range("empty", 0, 1)
        assert [(each.key, each.size) for each in (await storage.list_prefix()).objects] == [("empty", 0)]

    async def test_overwriting_replaces_content_and_metadata(self, storage: ObjectStorage) -> None:
        await storage.put("k", b"long content", metadata={"old": "1"})
        await storage.put("k", b"short", metadata={"new": "2"})
        assert (await storage.get_range("k")).data == b"short"
        assert (await storage.head("k")).metadata == {"new": "2"}

    async def test_last_modified_never_goes_back(self, storage: ObjectStorage) -> None:
        await storage.put("first", b"1")
        await storage.put("second", b"2")
        first, second = await storage.head("first"), await storage.head("second")
        assert 0 < first.last_modified_ns <= second.last_modified_ns

    @pytest.mark.parametrize(
        "wrap",
        [bytes, lambda buffer: buffer, lambda buffer: memoryview(buffer)[2:-2]],
        ids=["bytes", "bytearray", "memoryview"],
    )
    async def test_the_body_belongs_to_the_caller_again_after_the_call(
        self, storage: ObjectStorage, wrap: Callable[[bytearray], Data]
    ) -> None:
        """Any buffer will do, and changing it afterwards changes nothing in the store."""
        buffer = bytearray(b"0123456789")
        body = wrap(buffer)
        expected = bytes(body)
        upload = await storage.create_multipart("parts")
        etag = await storage.put("k", body)
        part = await upload.upload_part(1, body)
        buffer[:] = b"xxxxxxxxxx"
        await upload.complete([part])
        assert (await storage.get_range("k", if_match=etag)).data == expected
        assert (await storage.get_range("parts")).data == expected

    @pytest.mark.parametrize("action", ["head", "get_range", "copy"])
    async def test_what_is_not_there_is_not_found(self, storage: ObjectStorage, action: str) -> None:
        await storage.put("missing/below", b"")
        await storage.put("missing-beside", b"")
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "head": lambda: storage.head("missing"),
            "get_range": lambda: storage.get_range("missing"),
            "copy": lambda: storage.copy("missing", "target"),
        }
        with pytest.raises(NotFound):
            await calls[action]()

    # Ranges

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [
            (0, 1, b"0"),
            (0, 10, b"0123456789"),
            (3, 4, b"3456"),
            (9, 1, b"9"),
            (5, None, b"56789"),
            (8, 100, b"89"),
            (0, 11, b"0123456789"),
        ],
    )
    async def test_a_range_ends_with_the_object(
        self, storage: ObjectStorage, start: int, length: int | None, expected: bytes
    ) -> None:
        etag = await storage.put("k", b"0123456789")
        result = await storage.get_range("k", start, length)
        assert (result.data, result.etag, result.object_size) == (expected, etag, 10)

    @pytest.mark.parametrize(("start", "length"), [(10, 1), (10, None), (11, 5), (1 << 40, 1)])
    async def test_a_range_that_begins_at_or_after_the_end_is_refused(
        self, storage: ObjectStorage, start: int, length: int | None
    ) -> None:
        await storage.put("k", b"0123456789")
        with pytest.raises(RangeNotSatisfiable):
            await storage.get_range("k", start, length)

    async def test_a_read_can_be_pinned_to_a_version(self, storage: ObjectStorage) -> None:
        first = await storage.put("k", b"first")
        assert (await storage.get_range("k", 1, 2, if_match=first)).data == b"ir"
        await storage.put("k", b"second")
        with pytest.raises(PreconditionFailed):
            await storage.get_range("k", 1, 2, if_match=first)
        with pytest.raises(PreconditionFailed):
            await storage.get_range("k", if_match=first)

    # Metadata

    @pytest.mark.parametrize(("name", "value"), METADATA.items(), ids=METADATA.keys())
    async def test_metadata_comes_back_as_it_was_given(
        self, storage: ObjectStorage, name: str, value: str
    ) -> None:
        await storage.put("k", b"", metadata={name: value})
        assert (await storage.head("k")).metadata == {name: value}

    async def test_many_metadata_come_back_together(self, storage: ObjectStorage) -> None:
        await storage.put("k", b"", metadata=METADATA)
        assert (await storage.head("k")).metadata == METADATA

    async def test_no_metadata_is_an_empty_mapping(self, storage: ObjectStorage) -> None:
        await storage.put("k", b"")
        assert (await storage.head("k")).metadata == {}

    async def test_the_mapping_belongs_to_the_caller_again_after_the_call(
        self, storage: ObjectStorage
    ) -> None:
        metadata = {"mode": "1"}
        await storage.put("k", b"", metadata=metadata)
        metadata["mode"] = "2"
        assert (await storage.head("k")).metadata == {"mode": "1"}

    async def test_metadata_up_to_the_limit_is_kept_and_over_it_refused(self, storage: ObjectStorage) -> None:
        limit = storage.limits.max_metadata_size
        metadata = {"first": "a" * 1_000, "second": "b" * (limit - 1_000 - len("firstsecond"))}
        await storage.put("k", b"kept", metadata=metadata)
        assert (await storage.head("k")).metadata == metadata
        with pytest.raises(InvalidMetadata):
            await storage.put("k", b"refused", metadata={**metadata, "x": "y"})
        with pytest.raises(InvalidMetadata):
            await storage.create_multipart("k", metadata={"x": "y" * (limit + 1)})
        with pytest.raises(InvalidMetadata):
            await storage.copy("k", "other", metadata={"x": "y" * (limit + 1)})
        assert (await storage.get_range("k")).data == b"kept"

    @pytest.mark.parametrize("name", ["Upper", "", "with space", "ümlaut", "colon:", "new\nline"])
    async def test_names_that_no_header_can_carry_are_refused(
        self, storage: ObjectStorage, name: str
    ) -> None:
        with pytest.raises(InvalidMetadata):
            await storage.put("k", b"", metadata={name: "value"})
