"""Changes of whole trees of ten thousand files: how many requests they are, and what the bucket holds in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.base import NO_ETAGS
from backends.errors import StorageError, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from tests.core.tree import Tree, open_tree, stored
from tests.support.faulty import FaultyStorage

FILES = 10_000


async def filled(storage: MemoryStorage, directory: str) -> None:
    for number in range(FILES):
        await storage.put(f"{directory}/f{number:04d}", b"%d" % number)


async def remove_all(tree: Tree, directory: str) -> None:
    for name in await tree.names(directory):
        await tree.unlink(f"{directory}/{name}")
    await tree.rmdir(directory)


async def test_a_tree_is_deleted_in_batches(autojump_clock: MockClock, tmp_path: Path) -> None:
    inner = MemoryStorage()
    await filled(inner, "d")
    storage = FaultyStorage(inner)
    async with open_tree(storage, tmp_path) as tree:
        await remove_all(tree, "d")
        await tree.publish_all()
    assert await stored(storage) == {}
    assert len(storage.calls_of(Verb.DELETE)) + len(storage.calls_of(Verb.DELETE_MANY)) < 100


async def test_what_somebody_else_changed_is_left_out_of_a_batch(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = FaultyStorage(MemoryStorage())
    for name in ("a", "b", "c"):
        await storage.put(f"d/{name}", b"")
    async with open_tree(storage, tmp_path) as tree:
        for name in ("a", "b", "c"):
            await tree.find(f"d/{name}")
        await storage.put("d/b", b"theirs")
        storage.calls.clear()
        for name in ("a", "b", "c"):
            await tree.unlink(f"d/{name}")
        await tree.publish_all()
        assert await stored(storage) == {"d/": b"", "d/b": b"theirs"}
        assert [call.verb for call in storage.calls_of(Verb.DELETE_MANY)] == [Verb.DELETE_MANY]
        assert storage.calls_of(Verb.DELETE) == []


async def test_a_batch_that_fails_is_deleted_later(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = FaultyStorage(MemoryStorage())
    for name in ("a", "b", "kept"):
        await storage.put(f"d/{name}", b"")
    async with open_tree(storage, tmp_path) as tree:
        for name in ("a", "b"):
            await tree.find(f"d/{name}")  # so that both are gone before the first is deleted
        storage.fail(Unavailable, verb=Verb.DELETE_MANY)
        await tree.unlink("d/a")
        await tree.unlink("d/b")
        gate = storage.hold(Verb.DELETE_MANY)
        with trio.fail_after(60):
            await gate.reached.wait()
        assert await tree.names("d") == ["kept"]
        gate.open()
        with pytest.raises(Unavailable):
            await tree.publish_all()
        await tree.publish_all()
    assert await stored(storage) == {"d/kept": b""}


class NeverUnderNeither(MemoryStorage):
    """Looks, whenever an object goes from `old/`, whether it is under `new/` already."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[str] = []

    async def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._look([key])
        await super().delete(key, if_match=if_match)

    async def delete_many(
        self, keys: Iterable[str], *, if_match: Mapping[str, str] = NO_ETAGS
    ) -> Mapping[str, StorageError]:
        wanted = list(keys)
        self._look(wanted)
        return await super().delete_many(wanted, if_match=if_match)

    def _look(self, keys: Iterable[str]) -> None:
        self.lost += [key for key in keys if key.replace("old/", "new/") not in self._objects]


async def test_a_renamed_tree_is_never_under_neither_name(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = NeverUnderNeither()
    await filled(storage, "old")
    async with open_tree(storage, tmp_path) as tree:
        await tree.rename("old", "new")
        await tree.publish_all()
    assert storage.lost == []
    objects = await stored(storage)
    assert objects.pop("new/") == b""
    assert objects == {f"new/f{number:04d}": b"%d" % number for number in range(FILES)}
