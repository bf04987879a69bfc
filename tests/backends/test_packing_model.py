"""A store that packs small objects and one in memory have the same, whatever two processes do to the first one.

But for what was deleted together with others: that may be there again for another process, and is the same then.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable
from typing import Final
from unittest import mock

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from backends.base import CREATE_ONLY, OVERWRITE, IfMatch, ObjectStorage, iterate_pages
from backends.errors import StorageError
from backends.memory import MemoryStorage
from backends.packing_bucket import Packing
from tests.core.hosts import PromptDirectory

PACKING: Final = Packing(prefix="log/", sizes=(2, 6_000))
KEYS: Final = st.sampled_from(
    ["log/1/1", "log/1/2", "log/1/3", "log/1/4", "log/2/1", "log/2/2", "log/x", "other"]
)
BODIES: Final = st.sampled_from([b"", b"1", b"22", b"333" * 1_000, b"4" * 6_000, b"5" * 6_001])
PROCESSES: Final = st.integers(0, 1)

Call = Callable[[ObjectStorage], Awaitable[object]]


class SameObjects(RuleBasedStateMachine):
    """Every step is made in memory, and by one of two processes; then that one has to see the same."""

    def __init__(self) -> None:
        super().__init__()
        self.small_packs = mock.patch("backends.packs.PACK_BYTES", 3 * 4_096)
        self.small_packs.start()
        self.root = tempfile.mkdtemp(prefix="fusefs-model-")
        self.memory = MemoryStorage()
        self.processes = [self.opened(), self.opened()]
        #: Bytes that were deleted together with others.
        self.dropped: set[tuple[str, bytes]] = set()

    def opened(self) -> PromptDirectory:
        return PromptDirectory(self.root, packing=PACKING)

    def teardown(self) -> None:
        self.small_packs.stop()
        shutil.rmtree(self.root)

    def act(self, process: int, call: Call) -> None:
        storage = self.processes[process]
        self.take_note_of_what_is_back(storage)
        expected, found = (trio.run(outcome, call, store) for store in (self.memory, storage))
        assert expected == found
        assert trio.run(contents, storage) == trio.run(contents, self.memory)

    def take_note_of_what_is_back(self, storage: ObjectStorage) -> None:
        expected = trio.run(contents, self.memory)
        found = trio.run(contents, storage)
        back = found.items() - expected.items()
        assert expected.items() <= found.items()
        assert back <= self.dropped
        for key, _ in back:
            trio.run(storage.delete, key)

    @rule(process=PROCESSES, key=KEYS, body=BODIES)
    def append(self, process: int, key: str, body: bytes) -> None:
        self.act(process, lambda store: store.put(key, body, mode=CREATE_ONLY))

    @rule(process=PROCESSES, key=KEYS, body=BODIES, metadata=st.sampled_from([{}, {"mode": "1"}]))
    def put(self, process: int, key: str, body: bytes, metadata: dict[str, str]) -> None:
        self.act(process, lambda store: store.put(key, body, metadata=metadata, mode=OVERWRITE))

    @rule(process=PROCESSES, key=KEYS, is_right=st.booleans())
    def put_over(self, process: int, key: str, is_right: bool) -> None:
        async def put(store: ObjectStorage) -> str:
            etag = (await store.head(key)).etag
            return await store.put(key, b"over", mode=IfMatch(etag if is_right else "0" * 32))

        self.act(process, put)

    @rule(process=PROCESSES, source=KEYS, to=KEYS)
    def copy(self, process: int, source: str, to: str) -> None:
        self.act(process, lambda store: store.copy(source, to, mode=CREATE_ONLY))

    @rule(process=PROCESSES, key=KEYS)
    def delete(self, process: int, key: str) -> None:
        self.act(process, lambda store: store.delete(key))

    @rule(process=PROCESSES, keys=st.lists(KEYS, max_size=4))
    def delete_many(self, process: int, keys: list[str]) -> None:
        there = trio.run(contents, self.memory)
        self.dropped.update((key, there[key]) for key in keys if key in there)
        self.act(process, lambda store: store.delete_many(keys))

    @rule(process=PROCESSES, key=KEYS, start=st.integers(0, 5), length=st.integers(1, 5))
    def get_range(self, process: int, key: str, start: int, length: int) -> None:
        async def read(store: ObjectStorage) -> tuple[bytes, int]:
            result = await store.get_range(key, start, length)
            return result.data, result.object_size

        self.act(process, read)

    @rule(process=PROCESSES)
    def restart(self, process: int) -> None:
        trio.run(self.processes[process].aclose)
        self.processes[process] = self.opened()

    @rule(process=PROCESSES)
    def be_killed(self, process: int) -> None:
        self.processes[process] = self.opened()


async def contents(storage: ObjectStorage) -> dict[str, bytes]:
    keys = [info.key async for page in iterate_pages(storage) for info in page.objects]
    return {key: (await storage.get_range(key)).data for key in keys}


async def outcome(call: Call, store: ObjectStorage) -> object:
    """The result of a call, or the class of its failure; ETags are not the same."""
    try:
        result = await call(store)
    except StorageError as error:
        return type(error)
    return None if isinstance(result, str) else result


TestSameObjects = SameObjects.TestCase
TestSameObjects.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
