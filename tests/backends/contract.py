"""What every store promises, as tests: a class is run against a store by subclassing.

    class TestMyStorage(StorageContract):
        @pytest.fixture
        async def storage(self) -> AsyncIterator[ObjectStorage]:
            ...yield an empty, probed store...

The words of `backends.base` are the promise; each test holds one of them. A server that is known to behave
otherwise is described with data in its subclass: `expected_capabilities` for what it lacks, `deviations` for what
it does differently, `refused_keys` and `renamed_keys` for keys that it cannot hold. A test then asserts what such
a store really does.

Few tests need parts of 5 MiB, and they share the bytes: the suite stays quick against a server on the same host.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Final

import pytest
import trio

from backends.base import (
    CREATE_ONLY,
    MIB,
    OVERWRITE,
    Capabilities,
    Data,
    IfMatch,
    ListPage,
    MultipartUpload,
    ObjectStorage,
    Part,
    PutMode,
    iterate_pages,
)
from backends.errors import (
    ConcurrentRequest,
    EntityTooSmall,
    InvalidKey,
    InvalidMetadata,
    InvalidPart,
    InvalidRequest,
    NotFound,
    NotSupported,
    PreconditionFailed,
    RangeNotSatisfiable,
    UploadNotFound,
)

#: Conditions whose capability is missing are ignored without a word, instead of being looked at before acting.
IGNORES_MISSING_CONDITIONS: Final = "ignores missing conditions"
#: Conditional completions are honoured one after the other; several that race may win together (SeaweedFS 4.48).
COMPLETIONS_RACE: Final = "completions race"
#: Parts below the minimum are accepted anywhere (JuiceFS gateway).
ACCEPTS_SMALL_PARTS: Final = "accepts small parts"
#: The body of an object whose key ends with a slash is thrown away (SeaweedFS 4.48).
DROPS_MARKER_BODIES: Final = "drops marker bodies"
#: The ETag of a put is not the MD5 of its bytes (server-side encryption with a key service).
OPAQUE_ETAGS: Final = "opaque etags"

KNOWN_DEVIATIONS: Final = frozenset(
    {IGNORES_MISSING_CONDITIONS, COMPLETIONS_RACE, ACCEPTS_SMALL_PARTS, DROPS_MARKER_BODIES, OPAQUE_ETAGS}
)

#: Keys that have broken file systems, URLs, XML and shells. Each is put into an empty store, and all together.
NASTY_KEYS: Final[tuple[str, ...]] = (
    "plain",
    "with space",
    " leading and trailing ",
    "two  spaces",
    "plus+plus",
    "percent%2Fescaped",
    "percent%",
    "%2E%2E",
    "question?mark#hash&amp;=;,:@$!",
    "quotes'and\"more`",
    "back\\slash\\",
    "brackets[]{}()<>|^~*",
    "line\nfeed\ttab\rreturn",
    "\x01\x1b\x7f control",
    "umlaut-äöü-ß",
    "composed-é",
    "decomposed-e\u0301",
    "日本語/キー",
    "right-to-left-שלום",
    "emoji-😀/👩‍👩‍👧",
    "order-\uff5e",
    "order-😀",
    "UPPER/lower",
    "upper/LOWER",
    "/leading",
    "//two-leading",
    "trailing/",
    "trailing//",
    "empty//segment",
    "empty///segments",
    "/",
    "//",
    ".",
    "./dot",
    "a/.",
    "a/./b",
    "a/..",
    "a/../b",
    "...",
    ".hidden/.file",
    ".fusefs/reserved",
    ".fusefs-store/uploads",
    ".fusefs-store",
    "file",
    "file/below",
    "file/below/further",
    "file-",
    "file.txt",
    "~",
    "-rf",
    "s" * 255,
    "s" * 256,
    "é" * 200,
    "segments/" + "d" * 300 + "/" + "f" * 300,
    "CON",
    "con.txt.",
)

#: Keys that S3 refuses: they climb out of the bucket, or hold what no request can carry.
REFUSED_KEYS: Final = frozenset({"", "..", "../up", "a/../../b", "nul\0byte", "lone\ud800surrogate"})

#: The bytes of one part of the least legal size; every test that needs such a part uses these.
PART_DATA: Final = random.Random(5).randbytes(5 * MIB)
TAIL_DATA: Final = b"the last part may be small"

METADATA: Final[Mapping[str, str]] = {
    "mode": "33188",
    "empty": "",
    "spaces": "  leading, trailing and  double  ",
    "unicode": "Grüße, 世界 😀",
    "controls": "line\nfeed\ttab",
    "looks-encoded": "=?UTF-8?B?R3LDvMOfZQ==?= %41 %C3%BC",
    "with.dot_and-dash": "x",
}


class StorageContract:
    """The promises of `ObjectStorage`. A subclass provides the fixture `storage`: an empty, probed store."""

    expected_capabilities: ClassVar[Capabilities] = Capabilities()
    deviations: ClassVar[frozenset[str]] = frozenset()
    #: Of `NASTY_KEYS`: those that this store answers with `InvalidKey`.
    refused_keys: ClassVar[frozenset[str]] = frozenset()
    #: Of `NASTY_KEYS`: those that this store takes for another one, and that one (SeaweedFS collapses `//`).
    renamed_keys: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def honours(self, capability: bool) -> bool:
        """Whether a condition is looked at at all: by the store, or before acting where it cannot."""
        return capability or IGNORES_MISSING_CONDITIONS not in self.deviations

    def kept(self, key: str, body: bytes) -> bytes:
        """What is left of `body` under `key`."""
        return b"" if key.endswith("/") and DROPS_MARKER_BODIES in self.deviations else body

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

    # Conditional puts

    async def test_create_only_never_overwrites(self, storage: ObjectStorage) -> None:
        await storage.put("k", b"first", mode=CREATE_ONLY)
        if self.honours(self.expected_capabilities.create_only):
            with pytest.raises(PreconditionFailed):
                await storage.put("k", b"second", mode=CREATE_ONLY)
            assert (await storage.get_range("k")).data == b"first"
        else:
            await storage.put("k", b"second", mode=CREATE_ONLY)
            assert (await storage.get_range("k")).data == b"second"

    async def test_create_only_succeeds_again_after_a_delete(self, storage: ObjectStorage) -> None:
        await storage.put("k", b"first", mode=CREATE_ONLY)
        await storage.delete("k")
        await storage.put("k", b"second", mode=CREATE_ONLY)
        assert (await storage.get_range("k")).data == b"second"

    async def test_if_match_writes_over_its_version_only(self, storage: ObjectStorage) -> None:
        first = await storage.put("k", b"first")
        second = await storage.put("k", b"second", mode=IfMatch(first))
        if self.honours(self.expected_capabilities.if_match):
            with pytest.raises(PreconditionFailed):
                await storage.put("k", b"third", mode=IfMatch(first))
            assert (await storage.head("k")).etag == second
        else:
            third = await storage.put("k", b"third", mode=IfMatch(first))
            assert (await storage.head("k")).etag == third

    async def test_if_match_on_a_missing_key_fails_as_a_condition(self, storage: ObjectStorage) -> None:
        """S3 answers 404 here; for the caller it is the same as any other foreign change."""
        etag = await storage.put("k", b"first")
        await storage.delete("k")
        if self.honours(self.expected_capabilities.if_match):
            with pytest.raises(PreconditionFailed):
                await storage.put("k", b"second", mode=IfMatch(etag))
            with pytest.raises(NotFound):
                await storage.head("k")
        else:
            await storage.put("k", b"second", mode=IfMatch(etag))
            assert (await storage.get_range("k")).data == b"second"

    @pytest.mark.parametrize("overwriting", [False, True], ids=["create-only", "if-match"])
    async def test_of_eight_conditional_writers_exactly_one_wins(
        self, storage: ObjectStorage, overwriting: bool
    ) -> None:
        mode: PutMode = IfMatch(await storage.put("k", b"base")) if overwriting else CREATE_ONLY
        bodies = [f"writer {number}".encode() for number in range(8)]
        winners = await race(lambda number: storage.put("k", bodies[number], mode=mode), len(bodies))
        capabilities = self.expected_capabilities
        if self.honours(capabilities.if_match if overwriting else capabilities.create_only):
            assert len(winners) == 1
            assert (await storage.get_range("k")).data == bodies[winners[0]]
        else:
            assert len(winners) == 8

    async def test_of_eight_unconditional_writers_all_succeed_and_one_body_stays(
        self, storage: ObjectStorage
    ) -> None:
        bodies = [bytes([number]) * 1_000 for number in range(8)]
        winners = await race(lambda number: storage.put("k", bodies[number], mode=OVERWRITE), len(bodies))
        assert len(winners) == 8
        assert (await storage.get_range("k")).data in bodies

    async def test_a_counter_kept_with_if_match_loses_no_update(self, storage: ObjectStorage) -> None:
        """Four tasks add one five times each, by read, add and compare-and-swap."""
        await storage.put("counter", b"0")

        async def add_five() -> None:
            for _ in range(5):
                while not await try_to_add_one(storage):
                    pass

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(add_five)
        count = int((await storage.get_range("counter")).data)
        assert count == 20 if self.honours(self.expected_capabilities.if_match) else count <= 20

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

    # Keys

    @pytest.mark.parametrize("key", NASTY_KEYS, ids=ascii)
    async def test_a_nasty_key_is_kept_as_it_is_or_refused(self, storage: ObjectStorage, key: str) -> None:
        if key in self.refused_keys:
            with pytest.raises(InvalidKey):
                await storage.put(key, b"content")
            assert await all_keys(storage) == []
            return
        etag = await storage.put(key, b"content", metadata={"mode": "1"}, mode=CREATE_ONLY)
        info = await storage.head(key)
        body = self.kept(key, b"content")
        assert (info.key, info.etag, info.size, info.metadata) == (key, etag, len(body), {"mode": "1"})
        assert (await storage.get_range(key)).data == body
        assert await all_keys(storage) == [self.renamed_keys.get(key, key)]
        await storage.copy(key, key, metadata={"mode": "2"})
        assert await storage.delete_many([key]) == {}
        assert await all_keys(storage) == []

    async def test_nasty_keys_live_side_by_side_in_the_order_of_their_bytes(
        self, storage: ObjectStorage
    ) -> None:
        keys = [key for key in NASTY_KEYS if key not in self.refused_keys and key not in self.renamed_keys]
        for key in keys:
            await storage.put(key, key.encode())
        assert await all_keys(storage) == sorted(keys, key=str.encode)
        for key in keys:
            assert (await storage.get_range(key)).data == self.kept(key, key.encode())
        assert await storage.delete_many(keys) == {}
        assert await all_keys(storage) == []

    async def test_the_longest_key_is_kept_and_a_longer_one_refused(self, storage: ObjectStorage) -> None:
        limit = storage.limits.max_key_length
        for key in (long_key(limit), long_key(limit - 3) + "é/"):
            if len(key.encode()) <= limit:
                await storage.put(key, b"content")
                assert (await storage.head(key)).key == key
                assert await all_keys(storage) == [key]
                await storage.delete(key)
        with pytest.raises(InvalidKey):
            await storage.put(long_key(limit + 1), b"")
        with pytest.raises(InvalidKey):
            await storage.create_multipart(long_key(limit + 1))

    @pytest.mark.parametrize("key", sorted(REFUSED_KEYS), ids=ascii)
    async def test_keys_that_s3_refuses_are_refused(self, storage: ObjectStorage, key: str) -> None:
        await storage.put("source", b"")
        with pytest.raises(InvalidKey):
            await storage.put(key, b"")
        with pytest.raises(InvalidKey):
            await storage.copy("source", key)
        with pytest.raises(InvalidKey):
            await storage.create_multipart(key)
        assert await all_keys(storage) == ["source"]

    async def test_an_object_and_the_keys_below_it_come_and_go_in_any_order(
        self, storage: ObjectStorage
    ) -> None:
        """`x` beside `x/y` is where a file system has a file or a directory, never both."""
        await storage.put("x", b"file")
        await storage.put("x/y", b"below")
        await storage.put("x/", b"marker")
        assert await all_keys(storage) == ["x", "x/", "x/y"]
        await storage.put("x", b"file again")
        await storage.delete("x/y")
        await storage.delete("x/")
        assert await all_keys(storage) == ["x"]
        await storage.put("x/y", b"below again")
        await storage.delete("x")
        assert await all_keys(storage) == ["x/y"]
        await storage.put("x", b"third")
        assert (await storage.get_range("x")).data == b"third"
        assert (await storage.get_range("x/y")).data == b"below again"

    # Copies

    async def test_a_copy_keeps_content_and_metadata(self, storage: ObjectStorage) -> None:
        await storage.put("source", b"content", metadata=METADATA)
        etag = await storage.copy("source", "dir/target")
        target = await storage.head("dir/target")
        assert (target.etag, target.size, target.metadata) == (etag, 7, METADATA)
        assert (await storage.get_range("dir/target", if_match=etag)).data == b"content"
        assert (await storage.head("source")).metadata == METADATA

    @pytest.mark.parametrize("metadata", [{"new": "1"}, {}], ids=["other", "none"])
    async def test_a_copy_can_replace_the_metadata(
        self, storage: ObjectStorage, metadata: dict[str, str]
    ) -> None:
        await storage.put("source", b"content", metadata={"old": "1"})
        await storage.copy("source", "target", metadata=metadata)
        assert (await storage.head("target")).metadata == metadata

    async def test_a_copy_onto_itself_changes_metadata_only(self, storage: ObjectStorage) -> None:
        before = await storage.put("k", b"content", metadata={"old": "1"})
        after = await storage.copy("k", "k", if_match=before, metadata={"new": "2"})
        info = await storage.head("k")
        assert (info.etag, info.metadata) == (after, {"new": "2"})
        assert (await storage.get_range("k")).data == b"content"

    async def test_a_copy_onto_itself_that_changes_nothing_is_refused(self, storage: ObjectStorage) -> None:
        await storage.put("k", b"content", metadata={"old": "1"})
        with pytest.raises(InvalidRequest):
            await storage.copy("k", "k")
        assert (await storage.head("k")).metadata == {"old": "1"}

    async def test_a_copy_of_a_stale_version_is_refused(self, storage: ObjectStorage) -> None:
        stale = await storage.put("source", b"first")
        await storage.put("source", b"second")
        with pytest.raises(PreconditionFailed):
            await storage.copy("source", "target", if_match=stale)
        assert await all_keys(storage) == ["source"]

    async def test_a_copy_honours_the_mode_of_its_target(self, storage: ObjectStorage) -> None:
        await storage.put("source", b"new")
        await storage.copy("source", "target", mode=CREATE_ONLY)
        old = await storage.put("target", b"old")
        if not self.honours(self.expected_capabilities.conditional_copy):
            await storage.copy("source", "target", mode=CREATE_ONLY)
            assert (await storage.get_range("target")).data == b"new"
            return
        for refused in (CREATE_ONLY, IfMatch("0" * 32)):
            with pytest.raises(PreconditionFailed):
                await storage.copy("source", "target", mode=refused)
        assert (await storage.get_range("target")).data == b"old"
        await storage.copy("source", "target", mode=IfMatch(old))
        assert (await storage.get_range("target")).data == b"new"

    # Deletes

    async def test_deleting_twice_is_no_error(self, storage: ObjectStorage) -> None:
        await storage.put("k", b"")
        await storage.delete("k")
        await storage.delete("k")
        with pytest.raises(NotFound):
            await storage.head("k")

    async def test_deleting_leaves_neighbours_alone(self, storage: ObjectStorage) -> None:
        for key in ("a", "a/b", "a/b/c", "ab"):
            await storage.put(key, b"")
        await storage.delete("a/b")
        await storage.delete("a/missing/deeper")
        assert await all_keys(storage) == ["a", "a/b/c", "ab"]

    async def test_a_conditional_delete_removes_its_version_only(self, storage: ObjectStorage) -> None:
        stale = await storage.put("k", b"first")
        current = await storage.put("k", b"second")
        if self.honours(self.expected_capabilities.conditional_delete):
            with pytest.raises(PreconditionFailed):
                await storage.delete("k", if_match=stale)
            assert (await storage.head("k")).etag == current
            await storage.delete("k", if_match=current)
            with pytest.raises(PreconditionFailed):
                await storage.delete("k", if_match=current)
        else:
            await storage.delete("k", if_match=stale)
        with pytest.raises(NotFound):
            await storage.head("k")

    async def test_delete_many_takes_missing_keys_and_none_at_all(self, storage: ObjectStorage) -> None:
        await put_all(storage, ["a", "b", "c"])
        assert await storage.delete_many([]) == {}
        assert await storage.delete_many(key for key in ("a", "missing", "c")) == {}
        assert await all_keys(storage) == ["b"]

    # Listings

    async def test_a_listing_carries_no_metadata(self, storage: ObjectStorage) -> None:
        etag = await storage.put("k", b"content", metadata={"mode": "1"})
        page = await storage.list_prefix()
        head = await storage.head("k")
        [info] = page.objects
        assert (info.key, info.etag, info.size, info.metadata) == ("k", etag, 7, None)
        assert abs(info.last_modified_ns - head.last_modified_ns) < 1_000_000_000
        assert (page.prefixes, page.next_token) == ((), None)

    async def test_an_empty_store_lists_nothing(self, storage: ObjectStorage) -> None:
        page = await storage.list_prefix()
        assert page == ListPage(objects=(), prefixes=(), next_token=None)
        assert page == await storage.list_prefix("missing/", delimiter="/")

    async def test_a_delimiter_rolls_keys_up(self, storage: ObjectStorage) -> None:
        await put_all(storage, ["a", "a/b", "a/c/d", "b/", "b/c", "b-", "c//d", "e"])
        assert await names(storage, "b", "") == ["b-", "b/", "b/c"]
        assert await names(storage, "", "/") == ["a", "a/", "b-", "b/", "c/", "e"]
        assert await names(storage, "a/", "/") == ["a/b", "a/c/"]
        assert await names(storage, "a", "/") == ["a", "a/"]
        assert await names(storage, "b/", "/") == ["b/", "b/c"]
        assert await names(storage, "c/", "/") == ["c//"]
        assert await names(storage, "a/c", "/") == ["a/c/"]
        assert await names(storage, "x/", "/") == []

    async def test_a_delimiter_may_be_any_text(self, storage: ObjectStorage) -> None:
        await put_all(storage, ["a--b", "a--c", "a-b", "b--", "c"])
        assert await names(storage, "", "--") == ["a--", "a-b", "b--", "c"]
        assert await names(storage, "a-", "-") == ["a--", "a-b"]

    async def test_a_prefix_need_not_end_at_a_segment(self, storage: ObjectStorage) -> None:
        await put_all(storage, ["dir/abc", "dir/abd/x", "dir/b", "dirt", "di"])
        assert await names(storage, "dir/ab") == ["dir/abc", "dir/abd/x"]
        assert await names(storage, "dir") == ["dir/abc", "dir/abd/x", "dir/b", "dirt"]
        assert await names(storage, "dir/abc") == ["dir/abc"]
        assert await names(storage, "dir/abc/") == []

    async def test_start_after_leaves_out_everything_up_to_a_name(self, storage: ObjectStorage) -> None:
        await put_all(storage, ["a", "b/1", "b/2", "c", "d/1"])
        assert await names(storage, "", start_after="a") == ["b/1", "b/2", "c", "d/1"]
        assert await names(storage, "", start_after="aa") == ["b/1", "b/2", "c", "d/1"]
        assert await names(storage, "", start_after="b/1") == ["b/2", "c", "d/1"]
        assert await names(storage, "b/", start_after="b/1") == ["b/2"]
        assert await names(storage, "b/", start_after="a") == ["b/1", "b/2"]
        assert await names(storage, "b/", start_after="c") == []
        assert await names(storage, "", start_after="d/1") == []

    async def test_start_after_leaves_out_a_rolled_up_prefix_too(self, storage: ObjectStorage) -> None:
        await put_all(storage, ["a", "b/1", "b/2", "c", "d/1"])
        assert await names(storage, "", "/", start_after="a") == ["b/", "c", "d/"]
        assert await names(storage, "", "/", start_after="b/") == ["c", "d/"]
        assert await names(storage, "", "/", start_after="b") == ["b/", "c", "d/"]
        assert await names(storage, "", "/", start_after="d/") == []

    @pytest.mark.parametrize("page_size", [1, 2, 3, 7])
    @pytest.mark.parametrize("delimiter", ["", "/"])
    async def test_pages_of_any_size_make_the_same_listing(
        self, storage: ObjectStorage, page_size: int, delimiter: str
    ) -> None:
        """Together the pages hold every name once, in order; none is larger than asked for."""
        await put_all(storage, ["a", "b/1", "b/2", "b/3/x", "b0", "c/", "c/1"])
        whole = await names(storage, "", delimiter)
        pages = await all_pages(storage, delimiter=delimiter, page_size=page_size)
        assert [name for page in pages for name in page_names(page)] == whole
        assert all(len(page_names(page)) <= page_size for page in pages)

    async def test_more_than_a_thousand_names(self, storage: ObjectStorage) -> None:
        """Pages that hold only prefixes, pages of keys, and a deletion that is more than one request."""
        keys = [f"many/{number:04}/x" for number in range(1_003)]
        await put_all(storage, keys)
        rolled_up = await all_pages(storage, "many/", delimiter="/")
        assert [len(page.objects) for page in rolled_up] == [0] * len(rolled_up)
        assert [name for page in rolled_up for name in page.prefixes] == [key[:-1] for key in keys]
        assert len(rolled_up) > 1
        assert (await storage.list_prefix("", delimiter="/")).prefixes == ("many/",)
        assert await all_keys(storage) == keys
        assert await storage.delete_many(keys) == {}
        assert await all_keys(storage) == []

    # Uploads in parts

    async def test_an_upload_appears_whole_and_only_when_it_is_completed(
        self, storage: ObjectStorage
    ) -> None:
        upload = await storage.create_multipart("dir/big", metadata=METADATA)
        assert upload.key == "dir/big"
        first = await upload.upload_part(1, PART_DATA)
        last = await upload.upload_part(2, TAIL_DATA)
        assert (first.number, first.size, last.number, last.size) == (1, len(PART_DATA), 2, len(TAIL_DATA))
        with pytest.raises(NotFound):
            await storage.head("dir/big")
        assert await all_keys(storage) == []
        etag = await upload.complete([first, last])
        assert '"' not in etag + first.etag + last.etag
        info = await storage.head("dir/big")
        assert (info.etag, info.size, info.metadata) == (etag, len(PART_DATA) + len(TAIL_DATA), METADATA)
        assert (await storage.get_range("dir/big")).data == PART_DATA + TAIL_DATA
        seam = await storage.get_range("dir/big", len(PART_DATA) - 3, 6, if_match=etag)
        assert seam.data == PART_DATA[-3:] + TAIL_DATA[:3]
        assert await storage.list_multipart_uploads() == []

    async def test_a_completed_upload_replaces_the_object_before_it(self, storage: ObjectStorage) -> None:
        upload = await storage.create_multipart("k", metadata={"new": "1"})
        part = await upload.upload_part(1, b"new")
        await storage.put("k", b"old", metadata={"old": "1"})
        assert (await storage.get_range("k")).data == b"old"
        await upload.complete([part])
        assert (await storage.get_range("k")).data == b"new"
        assert (await storage.head("k")).metadata == {"new": "1"}

    async def test_part_numbers_may_have_gaps_up_to_ten_thousand(self, storage: ObjectStorage) -> None:
        """Uploaded in any order; the object has them in the order of their numbers."""
        upload = await storage.create_multipart("k")
        last = await upload.upload_part(10_000, TAIL_DATA)
        first = await upload.upload_part(7, PART_DATA)
        await upload.complete([first, last])
        assert (await storage.get_range("k")).data == PART_DATA + TAIL_DATA

    @pytest.mark.parametrize("number", [0, -1, 10_001])
    async def test_part_numbers_outside_the_limits_are_refused(
        self, storage: ObjectStorage, number: int
    ) -> None:
        await storage.put("source", b"content")
        upload = await storage.create_multipart("k")
        with pytest.raises(InvalidRequest):
            await upload.upload_part(number, b"data")
        if self.expected_capabilities.copy_part:
            with pytest.raises(InvalidRequest):
                await upload.copy_part(number, "source", 0, 1)
        await upload.abort()

    async def test_a_small_part_that_is_not_the_last_is_refused(self, storage: ObjectStorage) -> None:
        upload = await storage.create_multipart("k")
        parts = [await upload.upload_part(1, PART_DATA[:-1]), await upload.upload_part(2, TAIL_DATA)]
        if ACCEPTS_SMALL_PARTS in self.deviations:
            await upload.complete(parts)
            assert (await storage.get_range("k")).data == PART_DATA[:-1] + TAIL_DATA
            return
        with pytest.raises(EntityTooSmall):
            await upload.complete(parts)
        with pytest.raises(NotFound):
            await storage.head("k")
        await upload.abort()

    async def test_a_part_uploaded_again_counts_in_its_last_form(self, storage: ObjectStorage) -> None:
        upload = await storage.create_multipart("k")
        stale = await upload.upload_part(1, b"first form")
        current = await upload.upload_part(1, b"last form")
        with pytest.raises(InvalidPart):
            await upload.complete([stale])
        await upload.complete([current])
        assert (await storage.get_range("k")).data == b"last form"

    async def test_parts_that_are_not_named_are_left_out(self, storage: ObjectStorage) -> None:
        upload = await storage.create_multipart("k")
        await upload.upload_part(1, b"left out")
        await upload.complete([await upload.upload_part(2, b"taken")])
        assert (await storage.get_range("k")).data == b"taken"

    async def test_parts_may_be_uploaded_at_the_same_time(self, storage: ObjectStorage) -> None:
        upload = await storage.create_multipart("k")
        parts: dict[int, Part] = {}

        async def send(number: int, data: bytes) -> None:
            parts[number] = await upload.upload_part(number, data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, 1, PART_DATA)
            nursery.start_soon(send, 2, TAIL_DATA)
        await upload.complete([parts[1], parts[2]])
        assert (await storage.get_range("k")).data == PART_DATA + TAIL_DATA

    @pytest.mark.parametrize("problem", ["absent", "wrong etag", "wrong order", "twice"])
    async def test_parts_that_do_not_fit_are_refused(self, storage: ObjectStorage, problem: str) -> None:
        upload = await storage.create_multipart("k")
        first = await upload.upload_part(1, b"one")
        second = await upload.upload_part(2, b"two")
        wanted: dict[str, Sequence[Part]] = {
            "absent": [Part(number=3, etag=first.etag, size=3)],
            "wrong etag": [Part(number=1, etag=second.etag, size=3)],
            "wrong order": [second, first],
            "twice": [first, first],
        }
        with pytest.raises(InvalidPart):
            await upload.complete(wanted[problem])
        assert await all_keys(storage) == []
        await upload.abort()

    async def test_an_upload_without_parts_cannot_be_completed(self, storage: ObjectStorage) -> None:
        upload = await storage.create_multipart("k")
        with pytest.raises(InvalidRequest):
            await upload.complete([])
        await upload.abort()

    async def test_an_empty_part_makes_an_empty_object(self, storage: ObjectStorage) -> None:
        upload = await storage.create_multipart("k")
        await upload.complete([await upload.upload_part(1, b"")])
        assert (await storage.get_range("k")).data == b""

    async def test_abort_leaves_no_parts(self, storage: ObjectStorage) -> None:
        upload = await storage.create_multipart("k")
        part = await upload.upload_part(1, b"data")
        await upload.abort()
        assert await storage.list_multipart_uploads() == []
        assert await all_keys(storage) == []
        with pytest.raises(UploadNotFound):
            await upload.upload_part(2, b"data")
        with pytest.raises(UploadNotFound):
            await upload.complete([part])
        await upload.abort()

    async def test_a_completed_upload_is_over(self, storage: ObjectStorage) -> None:
        """Aborting it afterwards is no error and does not touch the object."""
        upload = await storage.create_multipart("k")
        await upload.complete([await upload.upload_part(1, b"data")])
        with pytest.raises(UploadNotFound):
            await upload.upload_part(2, b"more")
        await upload.abort()
        assert (await storage.get_range("k")).data == b"data"

    async def test_uploads_are_listed_by_prefix_and_resumed_by_id(self, storage: ObjectStorage) -> None:
        begun = [await storage.create_multipart(key) for key in ("a/one", "a/two", "b/one")]
        part = await begun[0].upload_part(1, b"data")
        listed = await storage.list_multipart_uploads("a/")
        assert {(each.key, each.upload_id) for each in listed} == {
            (each.key, each.upload_id) for each in begun[:2]
        }
        assert all(each.initiated_ns > 0 for each in listed)
        assert len(await storage.list_multipart_uploads()) == 3
        await storage.resume_multipart("a/one", begun[0].upload_id).complete([part])
        await storage.resume_multipart("a/two", begun[1].upload_id).abort()
        assert [each.key for each in await storage.list_multipart_uploads()] == ["b/one"]
        assert (await storage.get_range("a/one")).data == b"data"
        await begun[2].abort()

    async def test_two_uploads_of_one_key_do_not_meet(self, storage: ObjectStorage) -> None:
        first, second = await storage.create_multipart("k"), await storage.create_multipart("k")
        first_part = await first.upload_part(1, b"first")
        second_part = await second.upload_part(1, b"second")
        await second.complete([second_part])
        assert (await storage.get_range("k")).data == b"second"
        await first.complete([first_part])
        assert (await storage.get_range("k")).data == b"first"

    async def test_an_upload_that_never_was_is_not_found(self, storage: ObjectStorage) -> None:
        """Nothing is asked when it is resumed; its first use tells."""
        real = await storage.create_multipart("k")
        part = await real.upload_part(1, b"data")
        await real.abort()
        resumed = storage.resume_multipart("k", real.upload_id)
        assert (resumed.key, resumed.upload_id) == ("k", real.upload_id)
        with pytest.raises(UploadNotFound):
            await resumed.complete([part])

    async def test_a_completion_can_demand_that_nothing_is_there(self, storage: ObjectStorage) -> None:
        upload = await small_upload(storage, "k", b"new")
        await storage.put("k", b"old")
        if not self.honours(self.expected_capabilities.conditional_complete):
            await upload.complete_all(mode=CREATE_ONLY)
            assert (await storage.get_range("k")).data == b"new"
            return
        with pytest.raises(PreconditionFailed):
            await upload.complete_all(mode=CREATE_ONLY)
        assert (await storage.get_range("k")).data == b"old"
        await storage.delete("k")
        await upload.complete_all(mode=CREATE_ONLY)
        assert (await storage.get_range("k")).data == b"new"

    async def test_a_completion_can_demand_a_version(self, storage: ObjectStorage) -> None:
        """The upload lives on after a condition that did not hold."""
        stale = await storage.put("k", b"first")
        upload = await small_upload(storage, "k", b"new")
        current = await storage.put("k", b"second")
        if not self.honours(self.expected_capabilities.conditional_complete):
            await upload.complete_all(mode=IfMatch(stale))
            assert (await storage.get_range("k")).data == b"new"
            return
        with pytest.raises(PreconditionFailed):
            await upload.complete_all(mode=IfMatch(stale))
        assert (await storage.get_range("k")).data == b"second"
        await upload.complete_all(mode=IfMatch(current))
        assert (await storage.get_range("k")).data == b"new"

    async def test_a_completion_that_demands_a_version_needs_the_object(self, storage: ObjectStorage) -> None:
        upload = await small_upload(storage, "missing", b"new")
        if not self.honours(self.expected_capabilities.conditional_complete):
            await upload.complete_all(mode=IfMatch("0" * 32))
            assert (await storage.get_range("missing")).data == b"new"
            return
        with pytest.raises(PreconditionFailed):
            await upload.complete_all(mode=IfMatch("0" * 32))
        assert await all_keys(storage) == []
        await upload.upload.abort()

    async def test_of_eight_conditional_completions_exactly_one_wins(self, storage: ObjectStorage) -> None:
        bodies = [f"writer {number}".encode() for number in range(8)]
        uploads = [await small_upload(storage, "k", body) for body in bodies]
        winners = await race(lambda number: uploads[number].complete_all(mode=CREATE_ONLY), len(uploads))
        if self.expected_capabilities.conditional_complete and COMPLETIONS_RACE not in self.deviations:
            assert len(winners) == 1
        assert (await storage.get_range("k")).data in [bodies[winner] for winner in winners]
        for number, each in enumerate(uploads):
            if number not in winners:
                await each.upload.abort()

    # Copied parts

    async def test_parts_can_be_copied_from_objects(self, storage: ObjectStorage) -> None:
        etag = await storage.put("source", PART_DATA + TAIL_DATA)
        upload = await storage.create_multipart("target")
        if not self.expected_capabilities.copy_part:
            with pytest.raises(NotSupported):
                await upload.copy_part(1, "source", 0, len(PART_DATA), if_match=etag)
            await upload.abort()
            return
        head = await upload.copy_part(1, "source", 0, len(PART_DATA), if_match=etag)
        tail = await upload.copy_part(3, "source", len(PART_DATA) + 4, len(TAIL_DATA) - 4)
        assert (head.number, head.size, tail.number, tail.size) == (1, 5 * MIB, 3, len(TAIL_DATA) - 4)
        assert '"' not in head.etag
        await upload.complete([head, tail])
        assert (await storage.get_range("target")).data == PART_DATA + TAIL_DATA[4:]

    async def test_an_upload_can_copy_from_the_object_that_it_replaces(self, storage: ObjectStorage) -> None:
        if not self.expected_capabilities.copy_part:
            return
        etag = await storage.put("k", PART_DATA)
        upload = await storage.create_multipart("k")
        parts = [
            await upload.copy_part(1, "k", 0, len(PART_DATA), if_match=etag),
            await upload.upload_part(2, TAIL_DATA),
        ]
        await upload.complete(parts)
        assert (await storage.get_range("k", len(PART_DATA) - 1)).data == PART_DATA[-1:] + TAIL_DATA

    async def test_a_part_of_a_stale_or_missing_source_is_refused(self, storage: ObjectStorage) -> None:
        if not self.expected_capabilities.copy_part:
            return
        stale = await storage.put("source", b"first")
        await storage.put("source", b"second")
        upload = await storage.create_multipart("target")
        with pytest.raises(PreconditionFailed):
            await upload.copy_part(1, "source", 0, 5, if_match=stale)
        with pytest.raises(NotFound):
            await upload.copy_part(1, "missing", 0, 5)
        await upload.abort()

    @pytest.mark.parametrize(("start", "length"), [(0, 11), (5, 6), (10, 1), (20, 1)])
    async def test_a_part_from_outside_its_source_is_refused(
        self, storage: ObjectStorage, start: int, length: int
    ) -> None:
        """A range that is only partly inside is as wrong as one wholly outside: no short parts."""
        if not self.expected_capabilities.copy_part:
            return
        await storage.put("source", b"0123456789")
        upload = await storage.create_multipart("target")
        with pytest.raises(RangeNotSatisfiable):
            await upload.copy_part(1, "source", start, length)
        await upload.abort()

    async def test_a_copied_part_of_an_ended_upload_is_refused(self, storage: ObjectStorage) -> None:
        if not self.expected_capabilities.copy_part:
            return
        await storage.put("source", b"content")
        upload = await storage.create_multipart("target")
        await upload.abort()
        with pytest.raises(UploadNotFound):
            await upload.copy_part(1, "source", 0, 7)

    # Concurrency

    async def test_a_call_cancelled_before_it_began_has_done_nothing(self, storage: ObjectStorage) -> None:
        await storage.put("k", b"before")
        with trio.CancelScope() as scope:
            scope.cancel()
            await storage.put("k", b"after")
        assert scope.cancelled_caught
        assert (await storage.get_range("k")).data == b"before"

    async def test_a_reader_sees_one_version_or_the_other(self, storage: ObjectStorage) -> None:
        """While it is overwritten, every read gives bytes and ETag of one and the same put."""
        bodies = {await storage.put("k", bytes([n]) * 20_000): bytes([n]) * 20_000 for n in range(4)}
        done = trio.Event()

        async def write() -> None:
            for body in [*bodies.values()] * 3:
                await storage.put("k", body)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while not done.is_set():
                seen = await storage.get_range("k")
                assert bodies[seen.etag] == seen.data


class SmallUpload:
    """An upload with its only part in place."""

    def __init__(self, upload: MultipartUpload, parts: Sequence[Part]) -> None:
        self.upload: Final = upload
        self.parts: Final = parts

    async def complete_all(self, *, mode: PutMode) -> str:
        return await self.upload.complete(self.parts, mode=mode)


async def small_upload(storage: ObjectStorage, key: str, data: bytes) -> SmallUpload:
    """Begin an upload of `data` in one part."""
    upload = await storage.create_multipart(key)
    return SmallUpload(upload, [await upload.upload_part(1, data)])


async def put_all(storage: ObjectStorage, keys: Iterable[str]) -> None:
    """Put empty objects, some at a time."""
    limiter = trio.CapacityLimiter(8)

    async def put(key: str) -> None:
        async with limiter:
            await storage.put(key, b"")

    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(put, key)


async def race(attempt: Callable[[int], Awaitable[object]], count: int) -> list[int]:
    """Make all attempts at the same time and return the numbers of those that succeeded; others lost a condition.

    A `ConcurrentRequest` is asked again, as its docstring says.
    """
    winners: list[int] = []

    async def run(number: int) -> None:
        while True:
            try:
                await attempt(number)
            except ConcurrentRequest:
                continue
            except PreconditionFailed:
                return
            winners.append(number)
            return

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(run, number)
    return winners


async def try_to_add_one(storage: ObjectStorage) -> bool:
    """Read the counter and write the next value over that version; whether nobody else was faster."""
    before = await storage.get_range("counter")
    try:
        await storage.put("counter", str(int(before.data) + 1).encode(), mode=IfMatch(before.etag))
    except (PreconditionFailed, ConcurrentRequest):
        return False
    return True


async def all_pages(
    storage: ObjectStorage, prefix: str = "", *, delimiter: str = "", page_size: int = 1_000
) -> list[ListPage]:
    """Every page of a listing, each of at most `page_size` names."""
    pages = [await storage.list_prefix(prefix, delimiter=delimiter, page_size=page_size)]
    while pages[-1].next_token is not None:
        pages.append(
            await storage.list_prefix(
                prefix, delimiter=delimiter, page_token=pages[-1].next_token, page_size=page_size
            )
        )
    return pages


def page_names(page: ListPage) -> list[str]:
    """Keys and prefixes of a page, together in order."""
    return sorted([*(info.key for info in page.objects), *page.prefixes], key=str.encode)


async def names(
    storage: ObjectStorage, prefix: str, delimiter: str = "", *, start_after: str = ""
) -> list[str]:
    """Keys and prefixes of a whole listing."""
    pages = iterate_pages(storage, prefix, delimiter=delimiter, start_after=start_after)
    return [name async for page in pages for name in page_names(page)]


async def all_keys(storage: ObjectStorage) -> list[str]:
    """Every key in the order that the store lists them in."""
    return [info.key async for page in iterate_pages(storage) for info in page.objects]


def long_key(length: int) -> str:
    """A key of `length` bytes in segments that any file system could hold."""
    return ("k" * 99 + "/") * (length // 100) + "k" * (length % 100)
