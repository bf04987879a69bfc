"""Failures that pass are waited out, and a conflict with our own first attempt is none."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random

import pytest
import trio
from trio.testing import MockClock

from backends.base import CREATE_ONLY, MIB, OVERWRITE, IfMatch, ObjectStorage, PutMode, UploadInfo
from backends.errors import (
    AccessDenied,
    ChecksumMismatch,
    ConcurrentRequest,
    NotFound,
    PreconditionFailed,
    StorageError,
    Throttled,
    Unavailable,
    UploadNotFound,
)
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from backends.retrying import RetryingStorage, RetryPolicy
from tests.backends.contract import PART_DATA, StorageContract
from tests.support.faulty import FaultyStorage

METADATA = {"mode": "33188"}


class TestRetryingStorage(StorageContract):
    """The whole contract."""

    @pytest.fixture
    def storage(self) -> ObjectStorage:
        return RetryingStorage(MemoryStorage())


class OpaqueEtags(MemoryStorage):
    """A store whose ETags say nothing about the bytes, as with a key service; equal bytes have different ones."""

    def _store(self, key: str, data: bytes, etag: str, metadata: Mapping[str, str]) -> str:
        suffix = etag[32:]
        return super()._store(key, data, f"{next(self._upload_ids):032x}{suffix}", metadata)


@pytest.fixture(params=[MemoryStorage, OpaqueEtags])
def memory(request: pytest.FixtureRequest) -> MemoryStorage:
    kind: type[MemoryStorage] = request.param
    return kind()


@pytest.fixture
def faulty(memory: MemoryStorage) -> FaultyStorage:
    return FaultyStorage(memory)


@pytest.fixture
def storage(faulty: FaultyStorage) -> RetryingStorage:
    return RetryingStorage(faulty, rng=Random(1))


# What is asked again


@pytest.mark.parametrize("error", [Unavailable, Throttled, ChecksumMismatch, ConcurrentRequest])
async def test_a_failure_that_passes_is_waited_out(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage, error: type[StorageError]
) -> None:
    faulty.fail(error, times=3)
    await storage.put("k", b"1")
    assert len(faulty.calls) == 4
    assert storage.statistics().repeated == 3


async def test_a_final_failure_is_raised_at_once(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage
) -> None:
    faulty.fail(AccessDenied)
    with pytest.raises(AccessDenied):
        await storage.put("k", b"1")
    assert len(faulty.calls) == 1


async def call_everything(storage: ObjectStorage) -> None:
    await storage.probe()
    etag = await storage.put("k", b"12345", mode=CREATE_ONLY, metadata=METADATA)
    await storage.head("k")
    await storage.get_range("k", 1, 3)
    copied = await storage.copy("k", "c", if_match=etag, mode=CREATE_ONLY)
    await storage.list_prefix("k")
    upload = await storage.create_multipart("m", metadata=METADATA)
    await storage.list_multipart_uploads("m")
    parts = [await upload.upload_part(1, PART_DATA), await upload.copy_part(2, "k", 0, 5)]
    await upload.complete(parts, mode=CREATE_ONLY)
    await storage.resume_multipart("m", upload.upload_id).abort()
    await storage.delete("c", if_match=copied)
    assert not await storage.delete_many(["gone"])


@pytest.mark.parametrize("answer_lost", [False, True], ids=["lost call", "lost answer"])
async def test_any_call_may_fail_once_and_nothing_is_different(
    memory: MemoryStorage, autojump_clock: MockClock, answer_lost: bool
) -> None:
    """Every call of a scenario that uses all verbs fails in turn, before or after it took effect."""
    for call in range(1, len(Verb) + 1):
        store = type(memory)()
        faulty = FaultyStorage(store)
        faulty.fail(Unavailable, call=call, answer_lost=answer_lost)
        await call_everything(RetryingStorage(faulty))
        assert not faulty.faults_left
        page = await store.list_prefix()
        assert [(info.key, info.size) for info in page.objects] == [("k", 5), ("m", 5 * MIB + 5)]
    assert call == len(Verb)


# How long, and how often


@pytest.mark.parametrize(
    ("ask", "seconds"),
    [
        (lambda storage: storage.head("k"), RetryPolicy().timeout_seconds),
        (lambda storage: storage.probe(), RetryPolicy().probe_timeout_seconds),
    ],
    ids=["any call", "probe"],
)
async def test_the_last_error_is_raised_when_the_time_is_over(
    storage: RetryingStorage,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    ask: Callable[[ObjectStorage], Awaitable[object]],
    seconds: float,
) -> None:
    faulty.fail(Unavailable, times=math.inf)
    began = trio.current_time()
    with pytest.raises(Unavailable):
        await ask(storage)
    assert trio.current_time() - began == pytest.approx(seconds)
    assert storage.statistics().timed_out == 1


async def test_a_store_that_takes_a_probe_and_says_nothing_is_asked_once(
    storage: RetryingStorage,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever mounts has waited longer than he should by then. Any other call is made once more."""

    async def time_out(*_: object, **__: object) -> None:
        await trio.sleep(2 * RetryPolicy().timeout_seconds)
        raise Unavailable("nothing was said")

    monkeypatch.setattr(MemoryStorage, "probe", time_out)
    monkeypatch.setattr(MemoryStorage, "head", time_out)
    with pytest.raises(Unavailable):
        await storage.probe()
    with pytest.raises(Unavailable):
        await storage.head("k")
    assert [call.verb for call in faulty.calls] == [Verb.PROBE, Verb.HEAD, Verb.HEAD]


class LongestPauses(Random):
    """Always draws the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.mark.parametrize(
    ("error", "pauses"),
    [(Unavailable, [1, 3, 9, 20, 20]), (Throttled, [5, 15, 45, 50, 50])],
)
async def test_pauses_grow_up_to_a_limit(
    faulty: FaultyStorage, autojump_clock: MockClock, error: type[StorageError], pauses: list[float]
) -> None:
    policy = RetryPolicy(
        first_pause_seconds=1,
        max_pause_seconds=20,
        throttled_first_pause_seconds=5,
        throttled_max_pause_seconds=50,
        pause_growth=3,
    )
    storage = RetryingStorage(faulty, policy, rng=LongestPauses())
    for failures in range(1, len(pauses) + 1):
        faulty.fail(error, times=failures)
        began = trio.current_time()
        await storage.list_prefix()
        assert trio.current_time() - began == pytest.approx(sum(pauses[:failures]))


async def test_pauses_are_drawn_from_nothing_to_the_bound(
    faulty: FaultyStorage, autojump_clock: MockClock
) -> None:
    """So that many callers do not come back at the same moment."""
    storage = RetryingStorage(faulty, RetryPolicy(first_pause_seconds=8), rng=Random(7))
    durations = []
    for _ in range(50):
        faulty.fail(Unavailable)
        began = trio.current_time()
        await storage.list_prefix()
        durations.append(trio.current_time() - began)
    assert min(durations) < 1
    assert max(durations) > 7
    assert max(durations) <= 8


async def test_a_pause_can_be_cancelled(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage
) -> None:
    faulty.fail(Unavailable, times=math.inf)
    with trio.move_on_after(5) as scope:
        await storage.head("k")
    assert scope.cancelled_caught


async def test_a_very_long_outage_does_not_overflow_the_pauses(
    faulty: FaultyStorage, autojump_clock: MockClock
) -> None:
    storage = RetryingStorage(faulty, RetryPolicy(timeout_seconds=1e6))
    faulty.fail(Unavailable, times=2_000)
    await storage.list_prefix()


# Many keys at once


class RefusingToDelete(MemoryStorage):
    """Fails to delete some keys of a batch, as often as it was told for each."""

    def __init__(self, failures: dict[str, list[StorageError]]) -> None:
        super().__init__()
        self.failures = failures
        self.batches: list[list[str]] = []

    async def delete_many(self, keys: object, **options: object) -> Mapping[str, StorageError]:
        assert isinstance(keys, list)
        self.batches.append(keys)
        failed = {key: self.failures[key].pop(0) for key in keys if self.failures.get(key)}
        await super().delete_many([key for key in keys if key not in failed])
        return failed


async def test_only_keys_whose_failure_passes_are_deleted_again(autojump_clock: MockClock) -> None:
    denied = AccessDenied()
    inner = RefusingToDelete({"denied": [denied], "late": [Throttled(), Unavailable()]})
    for key in ("denied", "late", "fine"):
        await inner.put(key, b"")
    assert await RetryingStorage(inner).delete_many(["denied", "late", "fine"]) == {"denied": denied}
    assert inner.batches == [["denied", "late", "fine"], ["late"], ["late"]]


async def test_keys_that_never_could_be_deleted_are_named(autojump_clock: MockClock) -> None:
    inner = RefusingToDelete({"late": [Unavailable() for _ in range(1_000)]})
    failed = await RetryingStorage(inner).delete_many(["late", "fine"])
    assert [(key, type(error)) for key, error in failed.items()] == [("late", Unavailable)]


# Conflicts with ourselves, and with others


async def with_lost_answer(
    faulty: FaultyStorage, call: Callable[[], Awaitable[str]], error: type[StorageError] = Unavailable
) -> str:
    """Make a call whose first answer is lost, and check that what it returns is what is there."""
    faulty.fail(error, answer_lost=True)
    etag = await call()
    assert etag == (await faulty.head("k")).etag
    return etag


async def mode_for(storage: ObjectStorage, kind: str) -> PutMode:
    return CREATE_ONLY if kind == "create" else IfMatch(await storage.put("k", b"replaced"))


KINDS = pytest.mark.parametrize("kind", ["create", "replace"])


@KINDS
async def test_a_put_that_landed_is_ours(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage, kind: str
) -> None:
    mode = await mode_for(storage, kind)
    await with_lost_answer(faulty, lambda: storage.put("k", b"ours", metadata=METADATA, mode=mode))
    assert storage.statistics().found_done == 1


@KINDS
async def test_a_put_that_landed_is_ours_though_the_store_asked_for_fewer(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage, kind: str
) -> None:
    """MinIO says SlowDownWrite where a write has missed its quorum; as many drives as a read needs may have it."""
    mode = await mode_for(storage, kind)
    await with_lost_answer(faulty, lambda: storage.put("k", b"ours", metadata=METADATA, mode=mode), Throttled)


@KINDS
async def test_a_put_over_a_foreign_one_is_a_conflict(
    storage: RetryingStorage,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    memory: MemoryStorage,
    kind: str,
) -> None:
    """Although its own first attempt failed without an answer."""
    mode = await mode_for(storage, kind)
    for data, metadata in ((b"else", METADATA), (b"ours", {}), (b"longer", METADATA)):
        await memory.put("k", data, metadata=metadata)
        faulty.fail(Unavailable)
        with pytest.raises(PreconditionFailed):
            await storage.put("k", b"ours", metadata=METADATA, mode=mode)
    await memory.delete("k")
    if kind == "replace":
        faulty.fail(Unavailable)
        with pytest.raises(PreconditionFailed):
            await storage.put("k", b"ours", metadata=METADATA, mode=mode)


async def test_a_refused_attempt_leaves_no_doubt(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    """The store has said that it did nothing, so the same bytes are somebody else's."""
    await memory.put("k", b"same")
    faulty.fail(ConcurrentRequest)
    with pytest.raises(PreconditionFailed):
        await storage.put("k", b"same", mode=CREATE_ONLY)


async def test_a_conflict_at_the_first_attempt_needs_no_look(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    await memory.put("k", b"same")
    with pytest.raises(PreconditionFailed):
        await storage.put("k", b"same", mode=CREATE_ONLY)
    assert [call.verb for call in faulty.calls] == [Verb.PUT]


@KINDS
@pytest.mark.parametrize("metadata", [None, METADATA])
async def test_a_copy_that_landed_is_ours(
    storage: RetryingStorage,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    kind: str,
    metadata: Mapping[str, str] | None,
) -> None:
    source = await storage.put("source", PART_DATA * 2, metadata={"from": "source"})
    mode = await mode_for(storage, kind)
    await with_lost_answer(
        faulty, lambda: storage.copy("source", "k", if_match=source, metadata=metadata, mode=mode)
    )
    expected = {"from": "source"} if metadata is None else metadata
    assert (await storage.head("k")).metadata == expected


async def test_a_copy_of_nothing_that_landed_is_ours(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage
) -> None:
    await storage.put("source", b"")
    await with_lost_answer(faulty, lambda: storage.copy("source", "k", mode=CREATE_ONLY))


async def test_a_copy_onto_itself_that_landed_is_ours(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage
) -> None:
    """Its own first attempt may have changed the ETag that it is conditional on."""
    upload = await storage.create_multipart("k")
    etag = await upload.complete([await upload.upload_part(1, b"12345")])
    await with_lost_answer(faulty, lambda: storage.copy("k", "k", if_match=etag, metadata=METADATA))
    faulty.fail(Unavailable)
    with pytest.raises(PreconditionFailed):
        await storage.copy("k", "k", if_match=etag, metadata={"another": "wish"})


@pytest.mark.parametrize(
    ("theirs", "metadata"),
    [(b"other", {}), (b"longer than ours", {}), (b"bytes", METADATA)],
    ids=["other bytes", "other size", "other metadata"],
)
async def test_a_copy_over_a_foreign_object_is_a_conflict(
    storage: RetryingStorage,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    memory: MemoryStorage,
    theirs: bytes,
    metadata: Mapping[str, str],
) -> None:
    await storage.put("source", b"bytes")
    await memory.put("k", theirs, metadata=metadata)
    faulty.fail(Unavailable)
    with pytest.raises(PreconditionFailed):
        await storage.copy("source", "k", mode=CREATE_ONLY)


async def test_a_copy_of_a_source_that_has_changed_is_a_conflict(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    """The target cannot be compared with a version that is gone."""
    etag = await storage.put("source", b"bytes")
    await memory.put("source", b"newer")
    await memory.put("k", b"newer")
    faulty.fail(Unavailable)
    with pytest.raises(PreconditionFailed):
        await storage.copy("source", "k", if_match=etag, mode=CREATE_ONLY)
    await memory.delete("source")
    faulty.fail(Unavailable)
    with pytest.raises(NotFound):
        await storage.copy("source", "k", if_match=etag)


@pytest.mark.parametrize("theirs", [0, 1])
async def test_an_upload_that_began_without_an_answer_is_aborted(
    storage: RetryingStorage,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    memory: MemoryStorage,
    theirs: int,
) -> None:
    """Unless somebody else has begun one of the same key meanwhile: they cannot be told apart, and are left."""
    for _ in range(theirs):
        await memory.create_multipart("k")
    faulty.fail(Unavailable, answer_lost=True)
    upload = await storage.create_multipart("k")
    left = [each.upload_id for each in await memory.list_multipart_uploads("k")]
    assert upload.upload_id in left
    assert len(left) == (1 if theirs == 0 else 3)


async def test_uploads_are_left_where_the_store_does_not_tell_when_they_began(
    autojump_clock: MockClock,
) -> None:
    """One that somebody else began long ago would look the same."""
    memory = MemoryStorage(clock_ns=lambda: 0)
    faulty = FaultyStorage(memory)
    faulty.fail(Unavailable, answer_lost=True)
    await RetryingStorage(faulty).create_multipart("k")
    assert len(await memory.list_multipart_uploads("k")) == 2


async def test_a_deletion_that_landed_is_ours(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage
) -> None:
    etag = await storage.put("k", b"")
    faulty.fail(Unavailable, answer_lost=True)
    await storage.delete("k", if_match=etag)


async def test_a_deletion_of_a_foreign_version_is_a_conflict(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    etag = await storage.put("k", b"ours")
    await memory.put("k", b"theirs")
    faulty.fail(Unavailable)
    with pytest.raises(PreconditionFailed):
        await storage.delete("k", if_match=etag)
    assert (await storage.get_range("k")).data == b"theirs"


@pytest.mark.parametrize("kind", ["create", "replace", "overwrite"])
async def test_a_completion_that_landed_is_ours(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage, kind: str
) -> None:
    mode = OVERWRITE if kind == "overwrite" else await mode_for(storage, kind)
    upload = await storage.create_multipart("k", metadata=METADATA)
    parts = [await upload.upload_part(1, PART_DATA), await upload.upload_part(5, b"tail")]
    await with_lost_answer(faulty, lambda: upload.complete(parts, mode=mode))


@pytest.mark.parametrize("memory", [MemoryStorage], indirect=True)
async def test_a_resumed_completion_that_landed_is_ours(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage
) -> None:
    """Where ETags can be computed: the metadata of the upload is not known here."""
    begun = await storage.create_multipart("k", metadata=METADATA)
    upload = storage.resume_multipart("k", begun.upload_id)
    part = await upload.upload_part(1, b"only")
    await with_lost_answer(faulty, lambda: upload.complete([part]))


async def test_a_completion_that_landed_is_ours_although_the_upload_is_there_still(
    autojump_clock: MockClock,
) -> None:
    """A store was killed when it had made the object and not removed the upload; an abort may destroy the bytes."""

    class Store(MemoryStorage):
        async def list_multipart_uploads(self, prefix: str = "") -> Sequence[UploadInfo]:
            return [UploadInfo(key="k", upload_id=upload.upload_id, initiated_ns=0)]

    store = Store()
    faulty = FaultyStorage(store)
    storage = RetryingStorage(faulty)
    upload = await storage.create_multipart("k", metadata=METADATA)
    part = await upload.upload_part(1, b"ours")
    faulty.fail(Unavailable, answer_lost=True)
    etag = await upload.complete([part], mode=CREATE_ONLY)
    assert (await store.head("k")).etag == etag
    assert Verb.ABORT not in [call.verb for call in faulty.calls]


async def test_a_completion_over_a_foreign_object_is_a_conflict(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    """Even over one of the same size and metadata; the upload lives on."""
    upload = await storage.create_multipart("k", metadata=METADATA)
    part = await upload.upload_part(1, b"ours")
    await memory.put("k", b"else", metadata=METADATA)
    faulty.fail(Unavailable)
    with pytest.raises(PreconditionFailed):
        await upload.complete([part], mode=CREATE_ONLY)
    assert len(await storage.list_multipart_uploads()) == 1


async def complete_in(storage: ObjectStorage, data: bytes, metadata: Mapping[str, str]) -> str:
    upload = await storage.create_multipart("k", metadata=metadata)
    return await upload.complete([await upload.upload_part(1, data)])


@pytest.mark.parametrize(
    "theirs",
    [None, (b"else", {}), (b"longer", METADATA)],
    ids=["nothing", "other metadata", "other size"],
)
async def test_an_aborted_upload_is_not_complete(
    storage: RetryingStorage,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    memory: MemoryStorage,
    theirs: tuple[bytes, Mapping[str, str]] | None,
) -> None:
    """Somebody collected it during an outage, and what is under the key is not what it would have become."""
    upload = await storage.create_multipart("k", metadata=METADATA)
    part = await upload.upload_part(1, b"ours")
    await memory.resume_multipart("k", upload.upload_id).abort()
    if theirs is not None:
        await complete_in(memory, *theirs)
    faulty.fail(Unavailable)
    with pytest.raises(UploadNotFound):
        await upload.complete([part])


async def test_an_aborted_upload_did_not_become_what_it_was_to_replace(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage, memory: MemoryStorage
) -> None:
    """A file that is rewritten in place keeps its size, and may keep its metadata."""
    base = await complete_in(memory, b"base", METADATA)
    upload = await storage.create_multipart("k", metadata=METADATA)
    part = await upload.upload_part(1, b"ours")
    await memory.resume_multipart("k", upload.upload_id).abort()
    faulty.fail(Unavailable)
    with pytest.raises(UploadNotFound):
        await upload.complete([part], mode=IfMatch(base))


@pytest.mark.parametrize("verb", [Verb.UPLOAD_PART, Verb.COPY_PART, Verb.COMPLETE])
async def test_an_upload_that_is_gone_is_not_waited_for(
    storage: RetryingStorage,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    memory: MemoryStorage,
    verb: Verb,
) -> None:
    """Ceph answers 500 for an upload that somebody has aborted: after some failures the store is asked for it."""
    await storage.put("source", PART_DATA)
    upload = await storage.create_multipart("k", metadata=METADATA)
    part = await upload.upload_part(1, b"ours")
    calls: dict[Verb, Callable[[], Awaitable[object]]] = {
        Verb.UPLOAD_PART: lambda: upload.upload_part(1, b"ours"),
        Verb.COPY_PART: lambda: upload.copy_part(1, "source", 0, 5),
        Verb.COMPLETE: lambda: upload.complete([part]),
    }
    faulty.fail(Unavailable, verb=verb, times=math.inf)
    await memory.resume_multipart("k", upload.upload_id).abort()
    with pytest.raises(UploadNotFound):
        await calls[verb]()
    assert len(faulty.calls_of(verb)) < 5


async def test_an_upload_that_is_still_there_is_waited_for(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage
) -> None:
    """So it is where the store does not answer the question."""
    upload = await storage.create_multipart("k")
    faulty.fail(Unavailable, verb=Verb.UPLOAD_PART, times=9)
    faulty.fail(Unavailable, verb=Verb.LIST_MULTIPART_UPLOADS, times=2)
    await upload.upload_part(1, b"ours")
    assert len(faulty.calls_of(Verb.LIST_MULTIPART_UPLOADS)) == 7


# What is told


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends(
    storage: RetryingStorage,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two lines, although sixteen tasks wait for its end."""
    faulty.fail(Unavailable, times=100)
    with caplog.at_level(logging.DEBUG):
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(storage.put, f"k{number}", b"")
            await trio.sleep(1)
            assert storage.statistics().unavailable
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "fails" in caplog.messages[0]
    assert "answers again" in caplog.messages[1]
    assert not storage.statistics().unavailable


async def test_a_store_that_fails_now_and_then_does_not_fill_the_log(
    storage: RetryingStorage,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(30):
        faulty.fail(Unavailable)
        await storage.list_prefix()
    assert len(caplog.records) == 2
    await trio.sleep(60)
    faulty.fail(Unavailable)
    await storage.list_prefix()
    assert len(caplog.records) == 4


async def test_a_busy_key_is_not_an_outage(
    storage: RetryingStorage,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    caplog: pytest.LogCaptureFixture,
) -> None:
    faulty.fail(ConcurrentRequest, times=5)
    await storage.list_prefix()
    assert caplog.records == []


async def test_a_refusal_ends_an_outage(
    storage: RetryingStorage, autojump_clock: MockClock, faulty: FaultyStorage
) -> None:
    faulty.fail(Unavailable)
    with pytest.raises(NotFound):
        await storage.head("missing")
    assert not storage.statistics().unavailable
