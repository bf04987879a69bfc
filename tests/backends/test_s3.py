"""The S3 store keeps the contract on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import ClassVar

import pytest

from backends.base import CREATE_ONLY, IfMatch, ObjectStorage
from backends.errors import PreconditionFailed, Unavailable
from backends.intercepted import InterceptedStorage, Request, T
from backends.prefixed import PrefixedStorage
from backends.s3 import S3Storage
from backends.s3_options import S3Options
from tests.backends.contract import (
    COMPLETIONS_RACE,
    DROPS_MARKER_BODIES,
    NASTY_KEYS,
    StorageContract,
    all_keys,
    names,
    put_all,
)
from tests.backends.s3_helpers import options_of, shared_client
from tests.support.seaweedfs import SeaweedFS

#: Directories of this server, two of them taken for the prefix itself; they have tests of their own.
MARKERS = frozenset({"back\\slash\\", "trailing/", "trailing//", "/", "//"})


class AskedAgain(InterceptedStorage):
    """Repeats a call once that had no answer: the server resets connections now and then while it refuses a PUT."""

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        try:
            return await send()
        except Unavailable:
            return await send()


class TestS3StorageOnSeaweedFS(StorageContract):
    """SeaweedFS keeps objects as files of a tree; hence its own ways with slashes, dots and long names."""

    deviations = frozenset({COMPLETIONS_RACE, DROPS_MARKER_BODIES})
    refused_keys = frozenset(
        key
        for key in NASTY_KEYS
        if not {".", ".."}.isdisjoint(key.split("/"))
        or any(len(segment.encode()) > 255 for segment in key.split("/"))
    )
    renamed_keys: ClassVar[Mapping[str, str]] = {
        "back\\slash\\": "back/slash/",
        "/leading": "leading",
        "//two-leading": "two-leading",
        "trailing//": "trailing/",
        "empty//segment": "empty/segment",
        "empty///segments": "empty/segments",
        "/": "",
        "//": "",
    }

    @pytest.fixture
    async def storage(self, s3_server: SeaweedFS, s3_prefix: str) -> AsyncIterator[ObjectStorage]:
        # Beside the prefix: this server goes on listing a directory as a prefix for a while after its last object.
        probe_prefix = f"probes/{s3_prefix}"
        store = PrefixedStorage(AskedAgain(self.bucket(options_of(s3_server), probe_prefix)), s3_prefix)
        await store.probe()
        yield store
        await store.aclose()

    def bucket(self, options: S3Options, probe_prefix: str) -> S3Storage:
        return S3Storage(options, probe_prefix=probe_prefix, client_factory=shared_client)

    def kept(self, key: str, body: bytes) -> bytes:
        return super().kept(self.renamed_keys.get(key, key), body)

    @pytest.mark.parametrize("key", [key for key in NASTY_KEYS if key not in MARKERS], ids=ascii)
    async def test_a_nasty_key_is_kept_as_it_is_or_refused(self, storage: ObjectStorage, key: str) -> None:
        await super().test_a_nasty_key_is_kept_as_it_is_or_refused(storage, key)

    async def test_a_marker_of_a_directory_is_kept_without_metadata(self, storage: ObjectStorage) -> None:
        """This server keeps neither body nor metadata of a key that ends with a slash, and cannot copy it."""
        etag = await storage.put("marker/", b"", metadata={"mode": "1"}, mode=CREATE_ONLY)
        info = await storage.head("marker/")
        assert (info.etag, info.size, info.metadata) == (etag, 0, {})
        await storage.copy("marker/", "other/", metadata={"mode": "2"})
        assert await all_keys(storage) == ["marker/", "other/"]
        assert await storage.delete_many(["marker/", "other/"]) == {}
        assert await all_keys(storage) == []

    async def test_bytes_in_a_marker_are_gone_at_once(self, storage: ObjectStorage) -> None:
        """Whoever puts them there: so fusefs has none to lose. The ETag is theirs, and a condition notices a change."""
        etag = await storage.put("d/", b"bytes")
        assert (await storage.head("d/")).size == 0
        assert (await storage.get_range("d/")).data == b""
        with pytest.raises(PreconditionFailed):
            await storage.put("d/", b"", mode=IfMatch("0" * 32))
        await storage.put("d/", b"", mode=IfMatch(etag))

    async def test_a_directory_without_a_marker_has_an_etag_that_no_condition_meets(
        self, storage: ObjectStorage
    ) -> None:
        """HEAD answers for it as for an object, and a listing does not name it."""
        await storage.put("d/x", b"content")
        etag = (await storage.head("d/")).etag
        for mode in (CREATE_ONLY, IfMatch(etag)):
            with pytest.raises(PreconditionFailed):
                await storage.put("d/", b"", mode=mode)
        assert await all_keys(storage) == ["d/x"]
        await storage.put("d/", b"")
        assert await all_keys(storage) == ["d/", "d/x"]

    async def test_an_object_and_the_keys_below_it_come_and_go_in_any_order(
        self, storage: ObjectStorage
    ) -> None:
        """`x` beside `x/y` lives; the marker `x/` takes the place of `x`."""
        await put_all(storage, ["x/y", "x"])
        assert await all_keys(storage) == ["x", "x/y"]
        await storage.delete("x/y")
        assert await all_keys(storage) == ["x"]
        await storage.put("x/y", b"below again")
        await storage.delete("x")
        assert await all_keys(storage) == ["x/y"]
        await storage.put("x", b"second")
        assert (await storage.get_range("x")).data == b"second"
        assert (await storage.get_range("x/y")).data == b"below again"
        await storage.put("x/", b"")
        assert await all_keys(storage) == ["x/", "x/y"]

    async def test_a_delimiter_rolls_keys_up(self, storage: ObjectStorage) -> None:
        """As in the contract, without `c//d`."""
        await put_all(storage, ["a", "a/b", "a/c/d", "b/", "b/c", "b-", "e"])
        assert await names(storage, "b", "") == ["b-", "b/", "b/c"]
        assert await names(storage, "", "/") == ["a", "a/", "b-", "b/", "e"]
        assert await names(storage, "a/", "/") == ["a/b", "a/c/"]
        assert await names(storage, "a", "/") == ["a", "a/"]
        assert await names(storage, "b/", "/") == ["b/", "b/c"]
        assert await names(storage, "a/c", "/") == ["a/c/"]
        assert await names(storage, "x/", "/") == []

    async def test_start_after_leaves_out_a_rolled_up_prefix_too(self, storage: ObjectStorage) -> None:
        """As in the contract, but after `b` this server leaves `b/` out, too."""
        await put_all(storage, ["a", "b/1", "b/2", "c", "d/1"])
        assert await names(storage, "", "/", start_after="a") == ["b/", "c", "d/"]
        assert await names(storage, "", "/", start_after="b/") == ["c", "d/"]
        assert await names(storage, "", "/", start_after="b") == ["c", "d/"]
        assert await names(storage, "", "/", start_after="d/") == []

    async def test_a_part_uploaded_again_counts_in_its_last_form(self, storage: ObjectStorage) -> None:
        """This server keeps all forms of a part; the one whose ETag is named counts."""
        upload = await storage.create_multipart("k")
        await upload.upload_part(1, b"first form")
        await upload.complete([await upload.upload_part(1, b"last form")])
        assert (await storage.get_range("k")).data == b"last form"


class TestS3StorageThroughObstore(TestS3StorageOnSeaweedFS):
    """The same promises where small requests go past botocore."""

    def bucket(self, options: S3Options, probe_prefix: str) -> S3Storage:
        return S3Storage(options, probe_prefix=probe_prefix, client_factory=shared_client, quick=True)
