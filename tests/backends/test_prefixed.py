"""A prefix of a store keeps the contract, and touches nothing beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from backends.base import ObjectStorage
from backends.errors import InvalidKey, NotFound
from backends.memory import MemoryStorage
from backends.prefixed import PrefixedStorage
from tests.backends.contract import StorageContract

PREFIX = "team/données/"
NEIGHBOURS = ("a", "team/", "team/donné", "team/données", "team/données0", "z")


class TestPrefixedStorage(StorageContract):
    """The whole contract, with strangers before and after the prefix."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[ObjectStorage]:
        inner = MemoryStorage()
        for key in NEIGHBOURS:
            await inner.put(key, b"stranger")
        yield PrefixedStorage(inner, PREFIX)
        page = await inner.list_prefix()
        left = {info.key: info.size for info in page.objects if not info.key.startswith(PREFIX)}
        assert left == dict.fromkeys(NEIGHBOURS, len(b"stranger"))


class TestEmptyPrefix(StorageContract):
    """With an empty prefix it is the store itself."""

    @pytest.fixture
    def storage(self) -> ObjectStorage:
        return PrefixedStorage(MemoryStorage(), "")


@pytest.fixture
def inner() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def prefixed(inner: MemoryStorage) -> PrefixedStorage:
    return PrefixedStorage(inner, PREFIX)


async def test_objects_lie_under_the_prefix(inner: MemoryStorage, prefixed: PrefixedStorage) -> None:
    await prefixed.put("k", b"one")
    await prefixed.copy("k", "copied")
    upload = await prefixed.create_multipart("large")
    part = await upload.copy_part(1, "k", 0, 3)
    assert (upload.key, (await inner.list_multipart_uploads())[0].key) == ("large", PREFIX + "large")
    await upload.complete([part])
    page = await inner.list_prefix()
    assert [info.key for info in page.objects] == [PREFIX + name for name in ("copied", "k", "large")]


async def test_the_marker_of_the_prefix_is_not_an_object_of_it(
    inner: MemoryStorage, prefixed: PrefixedStorage
) -> None:
    """It would have the empty name, which no call takes."""
    await inner.put(PREFIX, b"")
    await inner.put(PREFIX + "k", b"")
    await inner.create_multipart(PREFIX)
    assert [info.key for info in (await prefixed.list_prefix()).objects] == ["k"]
    assert await prefixed.list_multipart_uploads() == []
    with pytest.raises(InvalidKey):
        await prefixed.head("")
    with pytest.raises(InvalidKey):
        await prefixed.delete("")
    failed = await prefixed.delete_many(["k", ""])
    assert [(key, type(error)) for key, error in failed.items()] == [("", InvalidKey)]
    assert [info.key for info in (await inner.list_prefix()).objects] == [PREFIX]


@pytest.mark.parametrize("key", ["..", "../neighbour", "a/../../neighbour"])
async def test_no_key_climbs_out_of_the_prefix(
    inner: MemoryStorage, prefixed: PrefixedStorage, key: str
) -> None:
    with pytest.raises(InvalidKey):
        await prefixed.put(key, b"")
    assert list(await prefixed.delete_many([key])) == [key]
    assert (await inner.list_prefix()).objects == ()


async def test_errors_name_the_key_in_the_bucket(prefixed: PrefixedStorage) -> None:
    with pytest.raises(NotFound, match=PREFIX + "missing"):
        await prefixed.head("missing")


async def test_failed_deletions_are_named_without_the_prefix(prefixed: PrefixedStorage) -> None:
    too_long = "k" * 1_024
    assert list(await prefixed.delete_many(["fine", too_long])) == [too_long]


def test_keys_are_shorter_by_the_bytes_of_the_prefix(inner: MemoryStorage) -> None:
    limits = PrefixedStorage(inner, PREFIX).limits
    assert limits.max_key_length == inner.limits.max_key_length - len(PREFIX.encode())


def test_a_prefix_ends_with_a_slash(inner: MemoryStorage) -> None:
    with pytest.raises(ValueError, match="slash"):
        PrefixedStorage(inner, "half-a-name")
