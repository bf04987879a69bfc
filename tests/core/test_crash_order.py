"""What the bucket holds after each single call: whoever loses the host then finds every file whole, under one name.

Each scenario runs once to count its calls, and then once for every call of it, which fails in one of three ways: lost
on its way, done without an answer (both are repeated below the publisher), or refused for good (which the publisher
itself must make good). In the end the bucket is the tree, and nothing of ours is left in it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from backends.base import ObjectStorage
from backends.errors import StorageError, Unavailable
from backends.intercepted import Request, T
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs.attribute_changes import AttributeChanges
from fusefs.attributes import to_metadata
from fusefs.filesystem import RENAME_EXCHANGE
from tests.core.small_parts import PART, SmallPartsStorage, tree_options
from tests.core.tree import Tree, open_tree, stored, stored_metadata
from tests.support.every_call import at_every_call
from tests.support.faulty import FaultyStorage

Objects: TypeAlias = Mapping[str, bytes]

SMALL: Final = b"small and old"
NEW: Final = b"small and new"
LARGE: Final = Random(1).randbytes(3 * PART + 100)
MOVING: Final = ".fusefs/moving/"
FIRST_HANDLE: Final = 1


class Outlasting(Unavailable):
    """An outage that lasts longer than calls are repeated."""


@dataclass(frozen=True)
class Scenario:
    """Objects that are there, what is done to the tree, what every moment must keep, and what is there in the end."""

    before: Objects
    act: Callable[[Tree], Coroutine[Any, Any, None]]
    keeps: Callable[[Objects], object]
    after: Objects
    #: Bytes that an open handle still reads in the end; its content is waiting under `.fusefs/orphans/`.
    orphan: bytes | None = None


@dataclass
class Watched(FaultyStorage):
    """A failing store that looks at all objects after every call that changes something."""

    inner: SmallPartsStorage
    keeps: Callable[[Objects], object]
    #: After which calls something was missing. Raising here would be taken for a failure of the store.
    losses: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.inner)

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        try:
            return await super()._carry_out(request, send)
        finally:
            objects = self.inner.snapshot()
            if not self.keeps(objects):
                self.losses.append(f"{request}: { ({key: len(data) for key, data in objects.items()}) }")


async def create(tree: Tree) -> None:
    await tree.write_file("new", LARGE)


async def replace_by_rename(tree: Tree) -> None:
    await tree.write_file("temporary", NEW)
    await tree.publish_all()  # the worst case: the temporary name has been published
    await tree.rename("temporary", "config")


async def replace_at_once(tree: Tree) -> None:
    handle = await tree.create("temporary")
    await tree.write(handle, 0, LARGE)
    await tree.filesystem.fsync(handle)
    await tree.rename("temporary", "config")
    await tree.close(handle)


async def rotate(tree: Tree) -> None:
    await tree.rename("log.1", "log.2")
    await tree.rename("log", "log.1")
    await tree.write_file("log", NEW)


async def swap(tree: Tree) -> None:
    await tree.rename("a", "b", RENAME_EXCHANGE)


async def rename_directory(tree: Tree) -> None:
    handle = await tree.open("old/clean")
    changed = await tree.open("old/below/changed")
    await tree.write(changed, 0, NEW)
    await tree.rename("old", "new")
    await tree.write(handle, len(SMALL), NEW)
    await tree.close(handle)
    await tree.close(changed)


async def remove(tree: Tree) -> None:
    await tree.unlink("file")


async def remove_while_open(tree: Tree) -> None:
    await tree.open("file", os.O_RDONLY)  # the first handle of this tree, and so it is `FIRST_HANDLE`
    await tree.unlink("file")


async def rewrite(tree: Tree) -> None:
    await tree.write_file("file", NEW)


async def append(tree: Tree) -> None:
    handle = await tree.open("file")
    await tree.write(handle, len(LARGE), NEW)
    await tree.close(handle)


async def change_mode(tree: Tree) -> None:
    inode = await tree.find("file")
    await tree.filesystem.setattr(inode.number, AttributeChanges(mode=0o600))


def whole(*keys: str, among: tuple[bytes, ...]) -> Callable[[Objects], bool]:
    """Each of the keys has one of the contents."""
    return lambda objects: all(objects.get(key) in among for key in keys)


def somewhere(content: bytes, *keys: str) -> Callable[[Objects], bool]:
    """The content is under one of the keys, or under a key that begins with one that ends in a slash."""
    return lambda objects: any(
        found == content and (key in keys or any(k.endswith("/") and key.startswith(k) for k in keys))
        for key, found in objects.items()
    )


SCENARIOS: Final = {
    "create": Scenario({}, create, lambda now: now.get("new") in (None, LARGE), {"new": LARGE}),
    "replace by rename": Scenario(
        {"config": LARGE}, replace_by_rename, whole("config", among=(LARGE, NEW)), {"config": NEW}
    ),
    "replace at once": Scenario(
        {"config": SMALL}, replace_at_once, whole("config", among=(SMALL, LARGE)), {"config": LARGE}
    ),
    "rotate": Scenario(
        {"log": SMALL, "log.1": LARGE},
        rotate,
        lambda now: somewhere(SMALL, "log", "log.1")(now) and somewhere(LARGE, "log.1", "log.2")(now),
        {"log": NEW, "log.1": SMALL, "log.2": LARGE},
    ),
    "swap": Scenario(
        {"a": SMALL, "b": LARGE},
        swap,
        lambda now: somewhere(SMALL, "a", "b", MOVING)(now) and somewhere(LARGE, "a", "b", MOVING)(now),
        {"a": LARGE, "b": SMALL},
    ),
    "rename a directory": Scenario(
        {"old/clean": SMALL, "old/below/changed": LARGE},
        rename_directory,
        lambda now: (
            (somewhere(SMALL, "old/clean")(now) or somewhere(SMALL + NEW, "new/clean")(now))
            and (
                somewhere(LARGE, "old/below/changed")(now)
                or somewhere(NEW + LARGE[len(NEW) :], "new/below/changed")(now)
            )
        ),
        {
            "new/": b"",
            "new/clean": SMALL + NEW,
            "new/below/changed": NEW + LARGE[len(NEW) :],
        },
    ),
    "remove": Scenario({"file": LARGE}, remove, lambda now: now.get("file") in (None, LARGE), {}),
    "remove while open": Scenario(
        {"file": LARGE}, remove_while_open, somewhere(LARGE, "file", ".fusefs/orphans/"), {}, orphan=LARGE
    ),
    "rewrite": Scenario({"file": LARGE}, rewrite, whole("file", among=(LARGE, b"", NEW)), {"file": NEW}),
    "append": Scenario(
        {"file": LARGE}, append, whole("file", among=(LARGE, LARGE + NEW)), {"file": LARGE + NEW}
    ),
    "change the mode": Scenario({"file": LARGE}, change_mode, whole("file", among=(LARGE,)), {"file": LARGE}),
}

FAULTS: Final = {
    "call lost": (Unavailable, False),
    "answer lost": (Unavailable, True),
    "refused": (StorageError, False),
    "answer never came": (Outlasting, True),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_call_may_fail(
    name: str, fault: str, small_parts: None, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """At every moment each file is whole under a name it had; in the end the bucket is the tree."""
    await at_every_call(lambda call: run(SCENARIOS[name], *FAULTS[fault], call, tmp_path / str(call)))


async def run(
    scenario: Scenario, error: type[StorageError], answer_lost: bool, call: int, directory: Path
) -> bool:
    """Run a scenario with one failing call; returns False if it has fewer calls than that."""
    inner = SmallPartsStorage()
    for key, data in scenario.before.items():
        await inner.put(key, data)
    watched = Watched(inner, scenario.keeps)
    policy = RetryPolicy(timeout_seconds=0 if error is Outlasting else 300)
    storage = RetryingStorage(watched, policy, rng=Random(0))
    async with open_tree(storage, directory, tree_options()) as tree:
        for key in scenario.before:
            await tree.find(key)
        watched.fail(error, call=call, answer_lost=answer_lost)
        failed = await until_done(lambda: scenario.act(tree), repeat=False)
        struck = not watched.faults_left
        if (
            failed
        ):  # in the application's own call: it sees the error, and what it had begun is its own business
            assert not watched.losses
            return True
        await until_done(tree.publish_all)
        struck = struck or not watched.faults_left
        watched.heal()
        assert not watched.losses
        await check(tree, inner, scenario)
    return struck


async def until_done(call: Callable[[], Awaitable[object]], *, repeat: bool = True) -> bool:
    """Make a call, and again after its failure if `repeat`; return whether it failed."""
    with trio.fail_after(600):
        try:
            await call()
        except StorageError:
            if repeat:
                await call()
            return True
    return False


async def check(tree: Tree, inner: ObjectStorage, scenario: Scenario) -> None:
    assert await stored(inner) == scenario.after
    assert not tree.publisher.pending_inodes()
    for key, metadata in (await stored_metadata(inner)).items():
        if not key.endswith("/") and metadata:
            assert metadata == to_metadata((await tree.find(key)).attributes)
    ours = await stored(inner, ours=True)
    orphans = [data for key, data in ours.items() if key.startswith(".fusefs/orphans/")]
    assert orphans == ([] if scenario.orphan is None else [scenario.orphan])
    if scenario.orphan is not None:
        assert await tree.filesystem.read(FIRST_HANDLE, 0, len(scenario.orphan)) == scenario.orphan
        await tree.filesystem.release(FIRST_HANDLE)
        await tree.publish_all()
        ours = await stored(inner, ours=True)
    assert not [key for key in ours if key.startswith(".fusefs/") and key != ".fusefs/root"]
