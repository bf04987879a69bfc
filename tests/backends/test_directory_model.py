"""The store in a directory and the one in memory answer the same, whatever is asked of them in whatever order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backends.base import CREATE_ONLY, OVERWRITE, IfMatch, ObjectStorage, Part, PutMode
from backends.directory import DirectoryStorage
from backends.errors import StorageError
from backends.memory import MemoryStorage
from tests.backends.contract import all_pages

#: Few, and in each other's way: files and directories of one name, empty segments, names that need escapes.
KEYS = st.sampled_from(
    ["x", "x/", "x/y", "x/y/z", "x//y", "/x", "%", "%_", "x%=", "..", ".", "d" * 300, "d" * 300 + "/x"]
)
BODIES = st.binary(max_size=4)
METADATA = st.dictionaries(st.sampled_from(["mode", "uid"]), st.text(max_size=4), max_size=2)
DELIMITERS = st.sampled_from(["", "/", "//", "y"])

Call = Callable[[ObjectStorage], Awaitable[Any]]


class SameAnswers(RuleBasedStateMachine):
    """Every step is made on both stores; results and classes of failures are compared, and then the listings."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp(prefix="fusefs-model-")
        self.memory = MemoryStorage(clock_ns=lambda: 1_000)
        self.reopen()
        self.etags = ["0" * 32]
        #: Keys and ids of one upload, in both stores.
        self.uploads: list[tuple[str, str, str]] = []

    def teardown(self) -> None:
        trio.run(self.directory.aclose)
        shutil.rmtree(self.root)

    def reopen(self) -> None:
        self.directory = DirectoryStorage(self.root, clock_ns=lambda: 1_000)

    def ask(self, call: Call) -> Any:
        """Make the call on both stores and return what both answered."""
        answers = [trio.run(outcome, call, store) for store in (self.memory, self.directory)]
        assert answers[0] == answers[1]
        return answers[0]

    def mode(self, kind: int) -> PutMode:
        return (OVERWRITE, CREATE_ONLY, IfMatch(self.etags[-1]), IfMatch(self.etags[0]))[kind]

    @rule(key=KEYS, body=BODIES, metadata=METADATA, mode=st.integers(0, 3))
    def put(self, key: str, body: bytes, metadata: dict[str, str], mode: int) -> None:
        condition = self.mode(mode)
        self.remember(self.ask(lambda store: store.put(key, body, metadata=metadata, mode=condition)))

    @rule(source=KEYS, to=KEYS, metadata=st.none() | METADATA, mode=st.integers(0, 3))
    def copy(self, source: str, to: str, metadata: dict[str, str] | None, mode: int) -> None:
        condition = self.mode(mode)
        self.remember(self.ask(lambda store: store.copy(source, to, metadata=metadata, mode=condition)))

    @rule(key=KEYS, conditional=st.booleans())
    def delete(self, key: str, conditional: bool) -> None:
        etag = self.etags[-1] if conditional else None
        self.ask(lambda store: store.delete(key, if_match=etag))

    @rule(keys=st.lists(KEYS, max_size=4))
    def delete_many(self, keys: list[str]) -> None:
        self.ask(lambda store: failures_of(store, keys))

    @rule(key=KEYS)
    def head(self, key: str) -> None:
        self.ask(lambda store: store.head(key))

    @rule(key=KEYS, start=st.integers(-1, 5), length=st.none() | st.integers(0, 5))
    def get_range(self, key: str, start: int, length: int | None) -> None:
        self.ask(lambda store: store.get_range(key, start, length))

    @rule(key=KEYS, metadata=METADATA)
    def begin_upload(self, key: str, metadata: dict[str, str]) -> None:
        async def begin(store: ObjectStorage) -> str:
            return (await store.create_multipart(key, metadata=metadata)).upload_id

        ids = [trio.run(outcome, begin, store) for store in (self.memory, self.directory)]
        if all(isinstance(each, str) for each in ids):
            self.uploads.append((key, ids[0], ids[1]))
        else:
            assert ids[0] == ids[1]

    @rule(numbers=st.lists(st.integers(0, 3), max_size=2), body=BODIES, mode=st.integers(0, 3))
    def upload_and_complete(self, numbers: list[int], body: bytes, mode: int) -> None:
        """Also with wrong numbers, no parts, small parts and conditions that fail; the upload may live on."""
        condition = self.mode(mode)

        async def finish(upload_id: str, store: ObjectStorage) -> str:
            upload = store.resume_multipart(key, upload_id)
            parts: list[Part] = [await upload.upload_part(number, body) for number in numbers]
            return await upload.complete(parts, mode=condition)

        if self.uploads:
            key, *ids = self.uploads[-1]
            stores = (self.memory, self.directory)
            answers = [
                trio.run(outcome, lambda store, each=each: finish(each, store), store)
                for each, store in zip(ids, stores, strict=True)
            ]
            assert answers[0] == answers[1]
            self.remember(answers[0])

    @rule()
    def abort_upload(self) -> None:
        if self.uploads:
            key, *ids = self.uploads.pop()
            for store, upload_id in zip((self.memory, self.directory), ids, strict=True):
                trio.run(store.resume_multipart(key, upload_id).abort)

    @rule()
    def restart(self) -> None:
        """The directory is opened by the next process."""
        trio.run(self.directory.aclose)
        self.reopen()

    @rule(
        prefix=st.sampled_from(["", "x", "x/", "x//", "d" * 300, "missing/"]),
        delimiter=DELIMITERS,
        size=st.integers(1, 4),
    )
    def list_pages(self, prefix: str, delimiter: str, size: int) -> None:
        self.ask(lambda store: all_pages(store, prefix, delimiter=delimiter, page_size=size))

    @invariant()
    def both_list_the_same(self) -> None:
        self.ask(lambda store: all_pages(store, page_size=2))
        self.ask(uploaded_keys)

    def remember(self, answer: object) -> None:
        if isinstance(answer, str):
            self.etags.append(answer)


async def outcome(call: Call, store: ObjectStorage) -> Any:
    """The result of a call, or the class of its failure."""
    try:
        return await call(store)
    except StorageError as error:
        return type(error)


async def failures_of(store: ObjectStorage, keys: list[str]) -> dict[str, type[StorageError]]:
    return {key: type(error) for key, error in (await store.delete_many(keys)).items()}


async def uploaded_keys(store: ObjectStorage) -> list[str]:
    return sorted(upload.key for upload in await store.list_multipart_uploads())


TestSameAnswers = SameAnswers.TestCase
TestSameAnswers.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
