"""Random names, directories and links are pending when the store dies: `publish_all` ends, and succeeds later."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import trio
import trio.testing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backends.errors import Unavailable
from fusefs.errors import FilesystemError
from fusefs.filesystem import RENAME_EXCHANGE
from fusefs.inodes import Directory, Inode
from tests.core.test_dead_store import PATIENCE, Host, host
from tests.core.tree import Tree, stored

NAMES: Final = ("a", "b", "d")
PATHS: Final = ["/".join(names) for depth in (1, 2, 3) for names in itertools.product(NAMES, repeat=depth)]

LONGEST: Final = 4 * PATIENCE + 1
"""An attempt on a name whose owner is gone by now, one that looks what became of it, one of the next owner, and one of
who waits for that to leave; it does not grow with the tree."""

paths = st.sampled_from(PATHS)
step = st.one_of(
    st.tuples(st.just("write_file"), paths, st.just(b"bytes")),
    st.tuples(st.just("mkdir"), paths),
    st.tuples(st.just("mkdir"), st.sampled_from(["a", "b", "d", "d/d", "d/d/d"])),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("rename"), paths, paths),
    st.tuples(st.just("exchange"), paths, paths),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 7.0, 31.0, 61.0])),
)

#: Most lists are short where nothing keeps them from it.
lists = st.lists(step, max_size=25) | st.lists(step, min_size=20, max_size=40)


async def _is_in_directory(tree: Tree, path: str) -> bool:
    inode: Inode = tree.root
    for name in path.encode().split(b"/")[:-1]:
        if isinstance(inode, Directory):
            inode = await tree.namespace.lookup(inode, name)
    return isinstance(inode, Directory)


async def _do(tree: Tree, name: str, *arguments: Any) -> None:
    with suppress(FilesystemError, Unavailable):  # a file that has failed says so when it is closed
        if not all([await _is_in_directory(tree, path) for path in arguments if isinstance(path, str)]):
            return
        if name == "wait":
            await trio.sleep(*arguments)
        elif name == "exchange":
            path, new_path = arguments
            await tree.rename(path, new_path, RENAME_EXCHANGE)
        else:
            await getattr(tree, name)(*arguments)


async def _objects_of(tree: Tree, directory: str = "") -> set[str]:
    """Return the keys that the objects of the tree should have."""
    found: set[str] = set()
    for name in await tree.names(directory):
        path = f"{directory}{name}"
        if isinstance(await tree.find(path), Directory):
            found |= {f"{path}/"} | await _objects_of(tree, f"{path}/")
        else:
            found.add(path)
    return found


async def _ends(mount: Host) -> None:
    with suppress(Unavailable), trio.fail_after(LONGEST):
        await mount.tree.publisher.publish_all()


async def _run(directory: Path, before: list[Any], during: list[Any], logged: bool) -> None:
    async with host(directory, logged=logged) as mount:
        for name, *arguments in before:
            await _do(mount.tree, name, *arguments)
        await mount.tree.publish_all()
        await _objects_of(mount.tree)  # so that all names are known
        mount.cut()
        for name, *arguments in during:
            await _do(mount.tree, name, *arguments)
        for _ in range(3):
            await _ends(mount)
            await trio.sleep(17)
        mount.faulty.heal()
        await trio.testing.wait_all_tasks_blocked()  # a last request may have failed at this very moment
        await mount.tree.publish_all()
        assert set(await stored(mount.bucket)) == await _objects_of(mount.tree)


@settings(
    max_examples=int(os.environ.get("FUSEFS_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(before=lists, during=lists, logged=st.booleans())
@example(  # an attempt that looks what became of the last one is followed by the one that publishes
    before=[("mkdir", "a"), ("mkdir", "b")],
    during=[("write_file", "b/a", b"bytes"), ("mkdir", "a/a"), ("wait", 0.1), ("rename", "b", "d")],
    logged=False,
)
def test_publish_all_ends_whatever_is_pending(before: list[Any], during: list[Any], logged: bool) -> None:
    """And all is published when the store is back."""
    with TemporaryDirectory() as directory:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(_run, Path(directory), before, during, logged, clock=clock)
