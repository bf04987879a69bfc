"""The contract, part 2: conditions, copies, deletions, and many tasks at once."""

from __future__ import annotations

import pytest
import trio

from backends.base import (
    CREATE_ONLY,
    OVERWRITE,
    IfMatch,
    ObjectStorage,
    PutMode,
)
from backends.errors import (
    InvalidRequest,
    NotFound,
    PreconditionFailed,
)
from tests.backends.contract_support import (
    METADATA,
    StoreDescription,
    all_keys,
    put_all,
    race,
    try_to_add_one,
)


class ChangeContract(StoreDescription):
    """Changing what is there already."""

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

    async def test_a_batch_removes_the_versions_that_are_meant(self, storage: ObjectStorage) -> None:
        stale = await storage.put("changed", b"one")
        etags = {"changed": stale}
        await storage.put("changed", b"two")
        for key in ("same", "d/same", "unconditional"):
            etags[key] = await storage.put(key, key.encode())
        del etags["unconditional"]
        failures = await storage.delete_many([*etags, "unconditional", "missing"], if_match=etags)
        if self.honours(self.expected_capabilities.conditional_delete_many):
            assert {key: type(error) for key, error in failures.items()} == {"changed": PreconditionFailed}
            assert await all_keys(storage) == ["changed"]
            assert (await storage.get_range("changed")).data == b"two"
        else:
            assert failures == {}
            assert await all_keys(storage) == []

    async def test_delete_many_takes_missing_keys_and_none_at_all(self, storage: ObjectStorage) -> None:
        await put_all(storage, ["a", "b", "c"])
        assert await storage.delete_many([]) == {}
        assert await storage.delete_many(key for key in ("a", "missing", "c")) == {}
        assert await all_keys(storage) == ["b"]

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
