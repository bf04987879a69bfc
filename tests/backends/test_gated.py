"""A store that is asked for changes only while its process may write."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
import trio
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from trio.testing import MockClock

from backends.base import ObjectStorage
from backends.errors import Fenced, StorageError, Suspended, Unavailable
from backends.gated import CHANGING, GatedStorage
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from backends.retrying import RetryingStorage, RetryPolicy
from backends.s3 import S3Storage
from backends.s3_options import S3Options
from tests.backends.contract import StorageContract
from tests.backends.s3_helpers import Wire
from tests.support.faulty import FaultyStorage


class TestGatedStorage(StorageContract):
    """The whole contract, while the process may write."""

    @pytest.fixture
    def storage(self) -> ObjectStorage:
        return GatedStorage(MemoryStorage(), lambda: None)


@dataclass
class Gate:
    """Refuses with `error`, until that is taken away."""

    error: type[StorageError] | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error("not now")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def inner() -> FaultyStorage:
    return FaultyStorage(MemoryStorage())


@pytest.fixture
def storage(inner: FaultyStorage, gate: Gate) -> GatedStorage:
    return GatedStorage(inner, gate.check)


CALLS: dict[Verb, Callable[[ObjectStorage], Awaitable[object]]] = {
    Verb.PROBE: lambda storage: storage.probe(),
    Verb.HEAD: lambda storage: storage.head("key"),
    Verb.GET_RANGE: lambda storage: storage.get_range("key"),
    Verb.PUT: lambda storage: storage.put("key", b"2"),
    Verb.COPY: lambda storage: storage.copy("key", "copy"),
    Verb.DELETE: lambda storage: storage.delete("key"),
    Verb.DELETE_MANY: lambda storage: storage.delete_many(["key"]),
    Verb.LIST_PREFIX: lambda storage: storage.list_prefix(),
    Verb.CREATE_MULTIPART: lambda storage: storage.create_multipart("key"),
    Verb.LIST_MULTIPART_UPLOADS: lambda storage: storage.list_multipart_uploads(),
    Verb.UPLOAD_PART: lambda storage: storage.resume_multipart("key", "id").upload_part(1, b"1"),
    Verb.COPY_PART: lambda storage: storage.resume_multipart("key", "id").copy_part(1, "key", 0, 1),
    Verb.COMPLETE: lambda storage: storage.resume_multipart("key", "id").complete([]),
    Verb.ABORT: lambda storage: storage.resume_multipart("key", "id").abort(),
}
READING = {Verb.PROBE, Verb.HEAD, Verb.GET_RANGE, Verb.LIST_PREFIX, Verb.LIST_MULTIPART_UPLOADS}


def test_each_verb_changes_something_or_reads() -> None:
    assert set(CALLS) == set(Verb)
    assert set(Verb) - CHANGING == READING


@pytest.mark.parametrize("verb", sorted(CHANGING))
async def test_no_change_is_sent(verb: Verb, storage: GatedStorage, inner: FaultyStorage, gate: Gate) -> None:
    gate.error = Fenced
    with pytest.raises(Fenced):
        await CALLS[verb](storage)
    assert inner.calls == []


@pytest.mark.parametrize("verb", sorted(READING))
async def test_reading_goes_on(verb: Verb, storage: GatedStorage, inner: FaultyStorage, gate: Gate) -> None:
    await storage.put("key", b"1")
    gate.error = Fenced
    await CALLS[verb](storage)
    assert [call.verb for call in inner.calls] == [Verb.PUT, verb]


async def test_what_is_suspended_waits(
    storage: GatedStorage,
    inner: FaultyStorage,
    gate: Gate,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And it is no outage of the store."""
    gate.error = Suspended
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RetryingStorage(storage).put, "key", b"1")
        await trio.sleep(60)
        assert inner.calls == []
        gate.error = None
    assert [call.verb for call in inner.calls] == [Verb.PUT]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("error", [Suspended, Fenced])
async def test_an_earlier_attempt_leaves_it_in_doubt(
    error: type[StorageError],
    storage: GatedStorage,
    inner: FaultyStorage,
    gate: Gate,
    autojump_clock: MockClock,
) -> None:
    """What may have been done is not told as what was not."""
    inner.fail(Unavailable, answer_lost=True)
    retrying = RetryingStorage(storage, RetryPolicy(first_pause_seconds=60, timeout_seconds=30))
    async with trio.open_nursery() as nursery:

        async def put() -> None:
            with pytest.raises(error) as failure:
                await retrying.put("key", b"1")
            assert failure.value.is_in_doubt

        nursery.start_soon(put)
        await trio.testing.wait_all_tasks_blocked()
        gate.error = error


async def test_what_was_never_sent_is_not_in_doubt(
    storage: GatedStorage, gate: Gate, autojump_clock: MockClock
) -> None:
    gate.error = Suspended
    with pytest.raises(Suspended) as failure:
        await RetryingStorage(storage).put("key", b"1")
    assert not failure.value.is_in_doubt


class _Stuck(Wire):
    """A way to a server on which the first request goes on until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = threading.Event()
        self.let_go = threading.Event()

    def _before_send(self, request: AWSPreparedRequest, **event: object) -> AWSResponse | None:
        answer = super()._before_send(request, **event)
        self.has_begun.set()
        self.let_go.wait(10)
        return answer


@pytest.mark.parametrize("error", [Suspended, Fenced])
async def test_what_waits_for_a_connection_asks_when_it_has_one(
    error: type[StorageError], gate: Gate
) -> None:
    """Where the network is away others may have all of them, for longer than a term."""
    wire = _Stuck()
    options = S3Options(
        bucket="bucket",
        endpoint="http://127.0.0.1:1",
        access_key="key",
        secret_key="secret",
        max_connections=1,
    )
    backend = S3Storage(options, client_factory=wire.factory)
    wire.answer(etag='"1"')
    wire.answer(204)
    storage = GatedStorage(backend, gate.check)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.put, "key", b"1")
        await trio.to_thread.run_sync(wire.has_begun.wait, 10)

        async def delete() -> None:
            with pytest.raises(error):
                await storage.delete("other")

        nursery.start_soon(delete)
        await trio.testing.wait_all_tasks_blocked()
        gate.error = error
        wire.let_go.set()
    assert [request.method for request in wire.requests] == ["PUT"]
    await backend.aclose()
