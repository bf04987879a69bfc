"""Mounts that are lost at one of their calls, and what the next one has to find, from the bucket alone.

It must show the tree as it was at one moment of its history, not before what was acknowledged last. After that all is
published: then the bucket is that tree, and nothing of ours is left in it.
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import trio

from backends.base import ObjectStorage
from backends.errors import UploadNotFound
from fusefs.extended_attributes import OBJECTS_PREFIX
from fusefs.keys import RESERVED_PREFIX
from fusefs.link_lists import LISTS_PREFIX
from fusefs.placement import ROOT_MARKER
from fusefs.publisher import PublishOptions
from fusefs.stored_lease import LEASE_KEY
from tests.core.history import Entry, History, State, state_of
from tests.core.logs import batches, log_objects
from tests.core.mortal import Death, MortalStorage
from tests.core.refusing import Refusals, RefusingStorage
from tests.core.small_parts import SmallPartsStorage, tree_options
from tests.core.tree import Tree, TreeOptions, open_tree, stored
from tests.support.every_call import at_every_call

PATIENCE_SECONDS: Final = 3_600.0
"""On trio's clock: what has not ended by then hangs."""

QUIET_SECONDS: Final = 90.0
"""After which nothing is under way any more."""

OPTIONS: Final = replace(tree_options(), logged=True, publish=PublishOptions(interval_seconds=5.0))

LOG_ALONE: Final = replace(OPTIONS, publish=PublishOptions(delay_seconds=1e9, interval_seconds=1e9))
"""Of a mount that publishes nothing before somebody asks for it."""


async def filled(
    make: Callable[[], SmallPartsStorage], before: Mapping[str, bytes]
) -> tuple[SmallPartsStorage, History]:
    """Return a bucket of one kind with objects that no mount has seen."""
    storage = make()
    for key, data in before.items():
        await storage.put(key, data, metadata={"mode": str(0o100644)})
    return storage, History(before)


async def twin(storage: SmallPartsStorage, history: History) -> tuple[SmallPartsStorage, History]:
    """Return another bucket, as one is now, and a history that goes on from there."""
    same = History({})
    same.resume(history.states[-1])
    return storage.twin(), same


async def live(
    storage: ObjectStorage,
    history: History,
    act: Callable[[History], Coroutine[Any, Any, None]],
    call: int,
    death: Death,
    where: Path,
    *,
    refusing: Refusals | None = None,
    options: TreeOptions = OPTIONS,
) -> bool:
    """Let a mount die at a call; return whether it did before it had nothing more to do.

    What is refused to it never reaches the store, and does not count.
    """
    mortal = MortalStorage(storage)
    mortal.die_at(call, death)
    way = mortal if refusing is None else RefusingStorage(mortal, refusing)
    has_died = True
    async with mortal.life.lived(), open_tree(way, where, options) as tree:
        history.attend(tree)
        with trio.fail_after(PATIENCE_SECONDS):
            await act(history)
            if refusing is None:
                await tree.publish_all()
            await trio.sleep(QUIET_SECONDS)
        has_died = mortal.dead.is_set()
        await mortal.life.end()
    history.uploads += [(upload.key, upload.upload_id) for upload in await storage.list_multipart_uploads()]
    return has_died


async def die_at_every_call(
    begin: Callable[[], Awaitable[tuple[SmallPartsStorage, History]]],
    act: Callable[[History], Coroutine[Any, Any, None]],
    death: Death,
    where: Path,
    *,
    over: Callable[[ObjectStorage], ObjectStorage] = lambda bucket: bucket,
) -> int:
    """Let a mount die at each of its calls, every time on a bucket as `begin` leaves it, and let the next one look.

    `over` is between the dying mount and the bucket. Returns how many calls there were to die at.
    """

    async def die_and_look(call: int) -> bool:
        storage, history = await begin()
        has_died = await live(over(storage), history, act, call, death, where / f"{call}")
        await check(storage, history, where / f"{call}-next")
        return has_died

    return await at_every_call(die_and_look)


async def look(history: History) -> None:
    """Find the state of a mount that has just begun right, or raise; it is what is to be published."""
    state = await state_of(history.tree)
    assert history.allows(state), difference(history, state)
    history.resume(state)


async def check(storage: SmallPartsStorage, history: History, where: Path) -> None:
    """The next mount shows a state that is allowed, publishes it, and leaves nothing else behind."""
    async with open_tree(storage, where, OPTIONS) as tree:
        await settle(storage, history, tree)
    await check_bucket(storage, history, where)


async def settle(storage: SmallPartsStorage, history: History, tree: Tree) -> None:
    """Let a mount that has just begun show a state that is allowed, and publish it."""
    history.attend(tree)
    await look(history)
    for key, upload_id in history.uploads:  # as a mount does that finds the notes of the one before
        with suppress(UploadNotFound):
            await storage.resume_multipart(key, upload_id).abort()
    await tree.publish_all()
    await trio.sleep(QUIET_SECONDS)
    await look(history)


async def check_bucket(storage: SmallPartsStorage, history: History, where: Path) -> None:
    """The bucket has the last state, and nothing else."""
    left = await left_in(storage)
    lists = [key for key in left if key.startswith(LISTS_PREFIX)]
    groups = {
        (path, *entry.names)[0] for path, entry in history.states[-1].items() if entry.names[:1] > (path,)
    }
    assert (left, len(lists)) == (lists, len(groups))
    assert {key: data for key, data in (await stored(storage)).items() if not key.endswith("/")} == {
        path: entry.data for path, entry in history.states[-1].items() if not stat.S_ISDIR(entry.mode)
    }
    async with open_tree(storage, where / "last", replace(OPTIONS, logged=False)) as tree:
        history.attend(tree)
        await look(history)


async def left_in(storage: SmallPartsStorage) -> list[str]:
    """Return what there is in the bucket that nobody needs when everything is published."""
    uploads = [f"upload {upload.key}" for upload in await storage.list_multipart_uploads()]
    ours = [key for key in await stored(storage, ours=True) if key.startswith(RESERVED_PREFIX)]
    kept = {ROOT_MARKER, LEASE_KEY, *await log_objects(storage)} - set(await batches(storage))
    return uploads + [key for key in ours if key not in kept and not key.startswith(OBJECTS_PREFIX)]


def difference(history: History, state: State) -> str:
    """Return how a state differs from each that is allowed."""
    lines = []
    for number, allowed in enumerate(history.states):
        differing = sorted(path for path in state.keys() | allowed if state.get(path) != allowed.get(path))
        told = [
            f"{path}: {_brief(state.get(path))} and not {_brief(allowed.get(path))}" for path in differing
        ]
        lines.append(f"{number}{'' if number >= history.acknowledged else ' (too old)'}: {told}")
    return "the tree is none of these:\n" + "\n".join(lines)


def _brief(entry: Entry | None) -> str:
    if entry is None:
        return "nothing"
    return f"{entry.mode:o} {len(entry.data)} bytes {entry.data[:9]!r} {zlib.crc32(entry.data):x} {entry.xattr[:10]!r}"
