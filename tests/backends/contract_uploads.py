"""The contract, part 4: objects that go up in parts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from backends.base import (
    CREATE_ONLY,
    MIB,
    IfMatch,
    ObjectStorage,
    Part,
)
from backends.errors import (
    EntityTooSmall,
    InvalidPart,
    InvalidRequest,
    NotFound,
    NotSupported,
    PreconditionFailed,
    RangeNotSatisfiable,
    UploadNotFound,
)
from tests.backends.contract_support import (
    ACCEPTS_SMALL_PARTS,
    COMPLETIONS_RACE,
    METADATA,
    PART_DATA,
    TAIL_DATA,
    StoreDescription,
    all_keys,
    race,
    small_upload,
)


class UploadContract(StoreDescription):
    """Multipart uploads, and parts copied inside the store."""

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
