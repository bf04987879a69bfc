"""Random work on a whole tree, held against a model of it: what is read, and what is in the bucket afterwards.

The store fails now and then, by losing calls and by losing answers; the retries of a mount are in between.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.base import KIB, ObjectStorage
from backends.errors import Unavailable
from backends.intercepted import InterceptedStorage, Request, T
from backends.retrying import RetryingStorage
from fusefs.attribute_changes import AttributeChanges
from fusefs.errors import FilesystemError
from fusefs.filesystem import RENAME_EXCHANGE
from fusefs.inodes import Directory
from fusefs.link_lists import LINK_KEY, metadata_of
from tests.core.small_parts import SmallPartsStorage, tree_options
from tests.core.tree import Tree, TreeOptions, open_tree, stored, stored_metadata
from tests.support.faulty import FaultyStorage

PATHS: Final = ("a", "b", "c", "d", "e", "d/a", "d/b", "d/e", "e/a", "e/d", "d/e/a", "e/d/a")
MAX_SIZE: Final = 40 * KIB
REVALIDATE_SECONDS: Final = TreeOptions().revalidate_seconds


@dataclass(eq=False)
class Node:
    """What the model knows of an inode: `content` is None for a directory, and a link's target for a link."""

    kind: int
    content: bytearray | None = None
    mode: int = 0o644


@dataclass
class Model:
    """Paths and open files, with the rules of POSIX as far as the steps need them."""

    nodes: dict[str, Node] = field(default_factory=dict)
    opened: dict[int, Node] = field(default_factory=dict)

    def is_directory(self, path: str) -> bool:
        return not path or (path in self.nodes and self.nodes[path].kind == stat.S_IFDIR)

    def is_file(self, path: str) -> bool:
        return path in self.nodes and self.nodes[path].kind == stat.S_IFREG

    def choices(self, kind: str) -> list[str]:
        """Return the paths that there are to choose from: of files, entries, or names that are free."""
        if kind == "free":
            return [path for path in PATHS if self.may_add(path)]
        return [path for path in PATHS if (self.is_file(path) if kind == "file" else path in self.nodes)]

    def has_parent(self, path: str) -> bool:
        return self.is_directory(path.rpartition("/")[0])

    def below(self, path: str) -> list[str]:
        return [other for other in self.nodes if other.startswith(f"{path}/")]

    def may_add(self, path: str) -> bool:
        return self.has_parent(path) and path not in self.nodes

    def may_rename(self, path: str, new_path: str) -> bool:
        if path not in self.nodes or not self.has_parent(new_path):
            return False
        if path == new_path:
            return True
        if new_path.startswith(f"{path}/"):
            return False
        if new_path not in self.nodes:
            return True
        if self.is_directory(path) != self.is_directory(new_path):
            return False
        return not self.below(new_path)

    def may_exchange(self, path: str, new_path: str) -> bool:
        related = new_path.startswith(f"{path}/") or path.startswith(f"{new_path}/")
        return path in self.nodes and new_path in self.nodes and not related

    def move(self, path: str, new_path: str) -> None:
        if self.nodes[path] is self.nodes.get(new_path):
            return  # two names of one file stay what they are
        self.nodes.pop(new_path, None)
        for other in [path, *self.below(path)]:
            self.nodes[new_path + other[len(path) :]] = self.nodes.pop(other)

    def exchange(self, path: str, new_path: str) -> None:
        if path != new_path:
            self.move(path, "\0")
            self.move(new_path, path)
            self.move("\0", new_path)


@dataclass(frozen=True)
class Pick:
    """A path, or an open file, to be chosen when its step comes: most random paths would name nothing."""

    kind: str
    index: int


@dataclass
class Run:
    """One tree, and the model that it must be equal to."""

    tree: Tree
    faulty: FaultyStorage
    model: Model = field(default_factory=Model)
    handles: dict[int, int] = field(default_factory=dict)
    stamp: int = 0
    #: Files with several names of which somebody else has removed some: their lists stay, and say too much.
    lists_of_others: int = 0

    def picked(self, argument: object) -> object:
        """Return the path or slot that a `Pick` stands for now; anything else as it is."""
        if not isinstance(argument, Pick):
            return argument
        among = sorted(self.handles) if argument.kind == "opened" else self.model.choices(argument.kind)
        if among:
            return among[argument.index % len(among)]
        return 0 if argument.kind == "opened" else PATHS[argument.index % len(PATHS)]

    async def attempt(self, allowed: bool, call: Coroutine[Any, Any, Any]) -> bool:
        """Make a call that must succeed exactly if the model allows it."""
        try:
            await call
        except FilesystemError:
            assert not allowed
        else:
            assert allowed
        return allowed

    def new_bytes(self, length: int) -> bytes:
        """Return bytes that no other write has."""
        self.stamp += 1
        return Random(self.stamp).randbytes(length)

    async def write_file(self, path: str, length: int) -> None:
        model = self.model
        allowed = model.is_file(path) or model.may_add(path)
        data = self.new_bytes(length)
        if await self.attempt(allowed, self._write_file(path, data)):
            model.nodes.setdefault(path, Node(stat.S_IFREG, bytearray())).content[:] = data  # type: ignore[index]

    async def _write_file(self, path: str, data: bytes) -> None:
        if not self.model.has_parent(path):
            raise FilesystemError
        await self.tree.write_file(path, data)

    async def open(self, slot: int, path: str, create: bool) -> None:
        if slot in self.handles:
            return
        if create and self.model.may_add(path):
            self.model.nodes[path] = Node(stat.S_IFREG, bytearray())
            self.handles[slot] = await self.tree.create(path)
        elif self.model.is_file(path):
            self.handles[slot] = await self.tree.open(path)
        else:
            return
        self.model.opened[slot] = self.model.nodes[path]

    async def write(self, slot: int, offset: int, length: int) -> None:
        if slot not in self.handles or not length:
            return
        content = self.model.opened[slot].content
        assert content is not None
        data = self.new_bytes(length)
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + length] = data
        await self.tree.write(self.handles[slot], offset, data)

    async def read(self, slot: int, offset: int, length: int) -> None:
        if slot in self.handles:
            content = self.model.opened[slot].content
            assert content is not None
            data = await self.tree.filesystem.read(self.handles[slot], offset, length)
            assert data == bytes(content[offset : offset + length])

    async def truncate(self, path: str, size: int) -> None:
        if not self.model.is_file(path):
            return
        content = self.model.nodes[path].content
        assert content is not None
        del content[size:]
        content.extend(bytes(size - len(content)))
        inode = await self.tree.find(path)
        await self.tree.filesystem.setattr(inode.number, AttributeChanges(size=size))

    async def fsync(self, slot: int) -> None:
        if slot not in self.handles:
            return
        with trio.fail_after(600):
            await self.tree.filesystem.fsync(self.handles[slot])
        node = self.model.opened[slot]
        for path, other in self.model.nodes.items():
            if other is node:
                assert (await self.tree.storage.get_range(path)).data == self._content(node)

    async def close(self, slot: int) -> None:
        if slot in self.handles:
            del self.model.opened[slot]
            await self.tree.close(self.handles.pop(slot))

    async def mkdir(self, path: str) -> None:
        if self.model.has_parent(path) and await self.attempt(
            self.model.may_add(path), self.tree.mkdir(path)
        ):
            self.model.nodes[path] = Node(stat.S_IFDIR, None, 0o755)

    async def symlink(self, path: str, target: bytes) -> None:
        if self.model.may_add(path):
            self.model.nodes[path] = Node(stat.S_IFLNK, bytearray(target), 0o777)
            await self.tree.symlink(path, target)

    async def link(self, path: str, new_path: str) -> None:
        node = self.model.nodes.get(path)
        if node is not None and self.model.has_parent(new_path):
            allowed = node.kind != stat.S_IFDIR and self.model.may_add(new_path)
            if await self.attempt(allowed, self.tree.link(path, new_path)):
                self.model.nodes[new_path] = node

    async def unlink(self, path: str) -> None:
        if path in self.model.nodes and await self.attempt(
            not self.model.is_directory(path), self.tree.unlink(path)
        ):
            del self.model.nodes[path]

    async def rmdir(self, path: str) -> None:
        if path in self.model.nodes:
            allowed = self.model.is_directory(path) and not self.model.below(path)
            if await self.attempt(allowed, self.tree.rmdir(path)):
                del self.model.nodes[path]

    async def remove_elsewhere(self, path: str) -> None:
        """Let somebody else remove a directory with all below it, none of it open, that the bucket has."""
        gone = {each: self.model.nodes[each] for each in self.model.below(path)}
        if path not in self.model.nodes or not self.model.is_directory(path):
            return
        if any(node in self.model.opened.values() for node in gone.values()):
            return
        await self.tree.publish_all()
        self.lists_of_others += self._linked(gone.values())
        for each in (path, *gone):
            del self.model.nodes[each]
        keys = [key for key in await stored(self.tree.storage) if key.startswith(f"{path}/")]
        assert not await self.tree.storage.delete_many(keys)
        await trio.sleep(REVALIDATE_SECONDS + 1)
        await self.tree.names(path.rpartition("/")[0])

    def _linked(self, among: Collection[Node]) -> int:
        """Return how many files have several names, of those that have one among some."""
        names = Counter(self.model.nodes.values())
        return sum(count > 1 and node in among for node, count in names.items())

    async def rename(self, path: str, new_path: str) -> None:
        if self.model.has_parent(path) and self.model.has_parent(new_path):
            allowed = self.model.may_rename(path, new_path)
            if await self.attempt(allowed, self.tree.rename(path, new_path)):
                self.model.move(path, new_path)

    async def exchange(self, path: str, new_path: str) -> None:
        if self.model.has_parent(path) and self.model.has_parent(new_path):
            allowed = self.model.may_exchange(path, new_path)
            if await self.attempt(allowed, self.tree.rename(path, new_path, RENAME_EXCHANGE)):
                self.model.exchange(path, new_path)

    async def chmod(self, path: str, mode: int) -> None:
        if path in self.model.nodes and self.model.nodes[path].kind != stat.S_IFLNK:
            self.model.nodes[path].mode = mode
            inode = await self.tree.find(path)
            await self.tree.filesystem.setattr(inode.number, AttributeChanges(mode=mode))

    async def touch(self, path: str) -> None:
        if path in self.model.nodes:
            inode = await self.tree.find(path)
            await self.tree.filesystem.setattr(inode.number, AttributeChanges(mtime_ns=self.stamp))

    async def evict(self) -> None:
        self.tree.sources.budget.make_room(goal_bytes=0)
        await self.tree.packer.pack_all()

    async def fail(self, call: int, answer_lost: bool) -> None:
        self.faulty.fail(Unavailable, call=call, answer_lost=answer_lost)

    async def wait(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def settle(self) -> None:
        """Publish everything; then the bucket is the model, and nothing of ours is left but what open files need."""
        await self.tree.publish_all()
        assert await stored(self.tree.storage) == self._expected()
        ours = [key for key in await stored(self.tree.storage, ours=True) if key.startswith(".fusefs/")]
        unlinked = [node for node in self.model.opened.values() if node not in self.model.nodes.values()]
        lists = [key for key in ours if key.startswith(".fusefs/links/")]
        linked = self._linked(self.model.nodes.values())
        assert linked <= len(lists) <= linked + self.lists_of_others
        rest = [key for key in ours if not key.startswith((".fusefs/orphans/", ".fusefs/links/"))]
        assert rest in ([], [".fusefs/root"])
        assert len([key for key in ours if key.startswith(".fusefs/orphans/")]) <= len(set(map(id, unlinked)))
        metadata = await stored_metadata(self.tree.storage)
        for path, node in self.model.nodes.items():
            inode = await self.tree.find(path)
            assert inode.attributes.mode == node.kind | node.mode
            if not isinstance(
                inode, Directory
            ):  # whose times move with their entries, and that costs no request
                unlisted = {LINK_KEY: ""} if self.lists_of_others else {}
                assert {**metadata[path], **unlisted} == {**metadata_of(inode), **unlisted}
            else:
                assert metadata[f"{path}/"]["mode"] == str(inode.attributes.mode)
        assert not self.tree.publisher.pending_inodes()

    def _expected(self) -> dict[str, bytes]:
        return {
            (f"{path}/" if node.kind == stat.S_IFDIR else path): self._content(node)
            for path, node in self.model.nodes.items()
        }

    @staticmethod
    def _content(node: Node) -> bytes:
        return bytes(node.content or b"")

    async def check_tree(self) -> None:
        for path, node in self.model.nodes.items():
            if node.kind == stat.S_IFREG:
                assert await self.tree.read_file(path) == self._content(node)
            elif node.kind == stat.S_IFDIR:
                names = [p[len(path) + 1 :] for p in self.model.below(path) if "/" not in p[len(path) + 1 :]]
                assert await self.tree.names(path) == sorted(names)
        for slot, node in self.model.opened.items():
            data = await self.tree.filesystem.read(self.handles[slot], 0, MAX_SIZE * 2)
            assert data == self._content(node)


def _picked(kind: str) -> st.SearchStrategy[Pick]:
    return st.builds(Pick, st.just(kind), st.integers(0, len(PATHS) - 1))


paths = st.sampled_from(PATHS)
files = _picked("file")
entries = _picked("entry")
free = _picked("free")
opened = _picked("opened")
slots = st.integers(0, 3)
sizes = st.one_of(st.integers(0, 64), st.integers(0, MAX_SIZE))


def _step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *arguments)


step = st.one_of(
    _step("write_file", paths, sizes),
    _step("write_file", files, sizes),
    _step("open", slots, paths, st.booleans()),
    _step("open", slots, files, st.booleans()),
    _step("write", opened, sizes, sizes),
    _step("write", opened, sizes, sizes),
    _step("read", opened, sizes, sizes),
    _step("truncate", files, sizes),
    _step("fsync", opened),
    _step("close", opened),
    _step("mkdir", paths),
    _step("mkdir", st.sampled_from(["d", "e", "d/e", "e/d"])),
    _step("symlink", free, st.sampled_from([b"a", b"../x"])),
    _step("link", entries, free | paths),
    _step("unlink", entries),
    _step("rmdir", entries),
    _step("remove_elsewhere", st.sampled_from(["d", "e", "d/e", "e/d"])),
    _step("rename", entries, paths),
    _step("rename", entries, entries | free),
    _step("exchange", entries, entries),
    _step("chmod", entries, st.sampled_from([0o600, 0o755])),
    _step("touch", entries),
    _step("evict"),
    _step("fail", st.integers(1, 6), st.booleans()),
    _step("wait", st.sampled_from([0.0, 0.01, 0.06, 1.1, 31.0])),
    _step("settle"),
)
#: Most lists are short where nothing keeps them from it, and a long way finds more.
steps = st.lists(step, max_size=60) | st.lists(step, min_size=40, max_size=120)


class SlowStorage(InterceptedStorage):
    """Answers after up to `seconds`, so that much is under way at the same time."""

    def __init__(self, inner: ObjectStorage, seconds: float) -> None:
        super().__init__(inner)
        self._seconds = seconds
        self._rng = Random(0)

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        await trio.sleep(self._rng.uniform(0, self._seconds))
        result = await send()
        await trio.sleep(self._rng.uniform(0, self._seconds))
        return result


async def _run(directory: Path, work: list[tuple[Any, ...]], latency: float) -> None:
    faulty = FaultyStorage(SlowStorage(SmallPartsStorage(), latency))
    storage = RetryingStorage(faulty, rng=Random(0))
    async with open_tree(storage, directory, tree_options()) as tree:
        run = Run(tree, faulty)
        for name, *arguments in work:
            await getattr(run, name)(*map(run.picked, arguments))
        await run.check_tree()
        await run.settle()
        for slot in list(run.handles):
            await run.close(slot)
        await run.settle()
        assert not [key for key in await stored(storage, ours=True) if "orphans" in key]
        await run.check_tree()
    async with open_tree(storage, directory / "again", tree_options()) as tree:
        run = Run(tree, faulty, run.model)
        await run.check_tree()


@settings(
    max_examples=int(os.environ.get("FUSEFS_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(work=steps, latency=st.sampled_from([0.0, 0.03, 0.4]))
def test_the_bucket_becomes_what_the_tree_is(
    small_parts: None, work: list[tuple[Any, ...]], latency: float
) -> None:
    """Whatever is done, and whichever calls of the store fail, the tree reads as the model and the bucket follows."""
    with TemporaryDirectory() as directory:
        trio.run(_run, Path(directory), work, latency, clock=trio.testing.MockClock(autojump_threshold=0))
