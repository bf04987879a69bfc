"""The contract, part 3: keys of every kind, and listing them."""

from __future__ import annotations

import pytest

from backends.base import (
    CREATE_ONLY,
    ListPage,
    ObjectStorage,
)
from backends.errors import (
    InvalidKey,
)
from tests.backends.contract_support import (
    NASTY_KEYS,
    REFUSED_KEYS,
    StoreDescription,
    all_keys,
    all_pages,
    long_key,
    names,
    page_names,
    put_all,
)


class NameContract(StoreDescription):
    """What an object may be called, and the order and the pages in which names are listed."""

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
        for key in (long_key(limit), long_key(limit - 2) + "é"):
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
        failures = await storage.delete_many([key, "source"])
        assert {refused: type(error) for refused, error in failures.items()} == {key: InvalidKey}
        assert await all_keys(storage) == []

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
