"""The differential test: random calls on a mount and a plain directory, which must stay the same after each of them."""

from __future__ import annotations

import errno
import functools
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from fusefs.filesystem import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.arena import DEFAULT_DIRECTORY_MODE, Arena, Cache
from tests.support.mounts import wait_until
from tests.support.twins import Difference, Handle, Side, rename, write_back

WRITEBACK_NS: Final = 5_000_000_000
"""How long after a write(2) its pages may reach the daemon, which then takes that time for the file's."""

LOG_LINES: Final = 20
"""Of the mount's log, to be shown with a failure."""

MAX_HANDLES: Final = 6
MIB: Final = 1024 * 1024
MAX_SIZE: Final = 20 * MIB

CONFIGURATION: Final = """\
[mount]
cache_size = "16 MiB"
publish_delay = "100 ms"
publish_interval = "500 ms"
revalidate_interval = "300 ms"
"""
"""Of the mounts under test: everything that happens in the background happens often, and the cache is too small."""

#: Few, so that they get in each other's way. Some are directories now and files later.
PATHS = st.sampled_from(["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "e", "e/a", "e/d", "e/d/a"])
TARGETS = st.sampled_from(["a", "b", "d", "d/a", "e", "missing"])
FILE_MODES = st.sampled_from([0o600, 0o644, 0o755, 0o640])
DIRECTORY_MODES = st.sampled_from([0o700, 0o755, 0o1777, 0o2755])

_SMALL = st.integers(0, 5_000)
_PAGES = st.sampled_from([4_095, 4_096, 4_097, 65_536, 131_073])
_LARGE = st.integers(0, MAX_SIZE)
#: Beside the ends of parts: of 5 MiB on S3, of 8 MiB in a directory.
_EDGES = st.builds(
    lambda part, by: part * MIB + by, st.sampled_from([5, 8, 10, 15, 16]), st.integers(-3, 3) | st.just(4_096)
)


def _mostly_small(*others: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    """Sizes and offsets: large ones cost time, and once in a while is enough."""
    return st.one_of(*[_SMALL] * 8, *[_PAGES] * 4, *others)


SIZES = _mostly_small(_EDGES, _LARGE)
LENGTHS = _mostly_small(st.integers(0, 300_000), st.integers(5 * MIB - 3, 7 * MIB))
BODIES = st.tuples(st.integers(0, 255), LENGTHS)
"""Seed and length of bytes; see `body`."""


@functools.lru_cache(maxsize=256)
def _block(number: int) -> bytes:
    # A prime length: what is read from a wrong offset shows.
    return random.Random(number).randbytes(4_093)


def body(seed_and_length: tuple[int, int]) -> bytes:
    """Return the bytes that a pair of `BODIES` stands for."""
    number, length = seed_and_length
    block = _block(number)
    return (block * (length // len(block) + 1))[:length]


def step(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """A rule after which the trees are compared, within the time limit; a failure tells the steps that led to it."""

    def decorate(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def limited(machine: Differential, **values: Any) -> None:
            shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
            machine.steps.append(f"{function.__name__}({shown})")
            machine.failed = True
            try:
                with machine.arena.time_limit():
                    machine.twins.begin_step()
                    function(machine, **values)
                    machine.twins.compare_trees()
            except Exception as error:
                error.add_note(machine.story())
                raise
            machine.failed = False

        return rule(**strategies)(limited)  # type: ignore[call-overload]

    return decorate


class Differential(RuleBasedStateMachine):
    """The operations; `which` chooses among the open files."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.arena = arena
        self.steps: list[str] = []
        self.failed = True
        self.name, self.twins = arena.begin()
        self.failed = False

    def teardown(self) -> None:
        """Compare everything once more, after a remount, unless a step has failed already."""
        try:
            if not self.failed:
                self.failed = True
                with self.arena.time_limit():
                    self.twins.close_all()
                    self.twins.compare_contents()
                    self.remount_and_compare()
                self.arena.end(self.twins)
                self.failed = False
        except Exception as error:
            error.add_note(self.story())
            raise
        finally:
            if self.failed:
                self.arena.restart(self.twins)

    def story(self) -> str:
        """What led here, and what the mount had to say."""
        log = self.arena.mount.log.splitlines()[-LOG_LINES:]
        return "\n".join([f"the steps in {self.name}:", *self.steps, "the end of the log:", *log])

    def handle(self, which: int) -> Handle:
        return self.twins.handles[which % len(self.twins.handles)]

    has_handles = precondition(lambda self: bool(self.twins.handles))
    can_open = precondition(lambda self: len(self.twins.handles) < MAX_HANDLES)

    # Files by path

    @step(
        path=PATHS,
        access=st.sampled_from([os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY]),
        more=st.sampled_from([0, os.O_TRUNC, os.O_EXCL, os.O_APPEND, os.O_NOFOLLOW]),
        mode=FILE_MODES,
    )
    def create(self, path: str, access: int, more: int, mode: int) -> None:
        if len(self.twins.handles) == MAX_HANDLES:
            self.twins.close(self.twins.handles[0])
        self.twins.open(path, access | more | os.O_CREAT, mode)
        self.twins.compare_file(path)

    @can_open
    @step(
        path=PATHS,
        flags=st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_APPEND]),
    )
    def open(self, path: str, flags: int) -> None:
        self.twins.open(path, flags)
        self.twins.compare_file(path)

    @step(path=PATHS, content=BODIES)
    def write_file(self, path: str, content: tuple[int, int]) -> None:
        self.twins.ask(lambda side: (side / path).write_bytes(body(content)))
        self.twins.compare_file(path)

    @step(path=PATHS, content=BODIES)
    def append_to_file(self, path: str, content: tuple[int, int]) -> None:
        def append(side: Side) -> int:
            with (side / path).open("ab") as writer:
                return writer.write(body(content))

        self.twins.ask(append)
        self.twins.compare_file(path)

    @step(source=PATHS, to=PATHS, content=BODIES)
    def replace_file(self, source: str, to: str, content: tuple[int, int]) -> None:
        """What careful programs do: a new file, fsync, and a rename over the old one."""

        def replace(side: Side) -> None:
            with (side / source).open("wb") as writer:
                writer.write(body(content))
                writer.flush()
                os.fsync(writer.fileno())
            os.replace(side / source, side / to)

        self.twins.ask(replace)
        self.twins.compare_file(to)

    @step(path=PATHS, size=SIZES)
    def truncate(self, path: str, size: int) -> None:
        plain = self.twins.plain / path
        if plain.is_file() and plain.stat().st_size == size:
            self.twins.forget_times(path)  # ext4 takes it for a change, and the kernel's FUSE does not
        self.twins.ask(lambda side: os.truncate(side / path, size))
        self.twins.compare_file(path)

    @step(path=PATHS, at=SIZES, content=BODIES, synced=st.booleans())
    def map_and_write(self, path: str, at: int, content: tuple[int, int], synced: bool) -> None:
        plain = self.twins.plain / path
        if plain.is_file() and (size := plain.stat().st_size):
            self.twins.map_and_write(path, at % size, body(content), synced=synced)
            self.twins.compare_file(path)

    @step(path=PATHS, content=BODIES)
    def map_past_the_end(self, path: str, content: tuple[int, int]) -> None:
        """What Prometheus does with its newest chunks, and with writes through the mapping too."""
        plain = self.twins.plain / path
        if plain.is_file() and plain.stat().st_size and content[1]:
            self.twins.map_past_the_end(path, body(content))
            self.twins.compare_file(path)

    @step(path=PATHS)
    def read_past_the_page_cache(self, path: str) -> None:
        self.twins.compare_file(path, direct=True)

    @step()
    def compare_everything(self) -> None:
        self.twins.compare_contents()

    # Files that are open

    @has_handles
    @step(which=st.integers(0, MAX_HANDLES), offset=SIZES, content=BODIES)
    def pwrite(self, which: int, offset: int, content: tuple[int, int]) -> None:
        handle = self.handle(which)
        self.twins.ask_handle(handle, lambda descriptor: os.pwrite(descriptor, body(content), offset))
        self.twins.compare_handle(handle)

    @has_handles
    @step(which=st.integers(0, MAX_HANDLES), content=BODIES)
    def write(self, which: int, content: tuple[int, int]) -> None:
        handle = self.handle(which)
        self.twins.ask_handle(handle, lambda descriptor: os.write(descriptor, body(content)))
        self.twins.compare_handle(handle)

    @has_handles
    @step(which=st.integers(0, MAX_HANDLES), size=SIZES)
    def ftruncate(self, which: int, size: int) -> None:
        handle = self.handle(which)
        self.twins.ask_handle(handle, lambda descriptor: os.ftruncate(descriptor, size))
        self.twins.compare_handle(handle)

    @has_handles
    @step(which=st.integers(0, MAX_HANDLES), offset=SIZES, length=LENGTHS)
    def pread(self, which: int, offset: int, length: int) -> None:
        self.twins.ask_handle(self.handle(which), lambda descriptor: os.pread(descriptor, length, offset))

    @has_handles
    @step(which=st.integers(0, MAX_HANDLES))
    def fsync(self, which: int) -> None:
        self.twins.ask_handle(self.handle(which), os.fsync)

    @has_handles
    @step(
        which=st.integers(0, MAX_HANDLES), writes=st.lists(st.tuples(SIZES, BODIES), min_size=1, max_size=6)
    )
    def write_during_fsync(self, which: int, writes: list[tuple[int, tuple[int, int]]]) -> None:
        """Two threads: what is written while an upload runs must not be lost, nor make a mixture of it."""

        def both(descriptor: int) -> None:
            syncing = threading.Thread(target=os.fsync, args=[descriptor])
            syncing.start()
            try:
                for offset, content in writes:
                    os.pwrite(descriptor, body(content), offset)
                    write_back(descriptor)
            finally:
                syncing.join()

        handle = self.handle(which)
        self.twins.ask_handle(handle, both)
        self.twins.compare_handle(handle)

    @has_handles
    @step(which=st.integers(0, MAX_HANDLES))
    def drop_page_cache(self, which: int) -> None:
        handle = self.handle(which)
        self.twins.ask_handle(handle, write_back)
        self.twins.compare_handle(handle)

    @has_handles
    @step(which=st.integers(0, MAX_HANDLES))
    def close(self, which: int) -> None:
        self.twins.close(self.handle(which))

    # Names

    @step(source=PATHS, to=PATHS, flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, source: str, to: str, flags: int) -> None:
        self.twins.ask(lambda side: rename(side / source, side / to, flags))
        self.twins.compare_file(to)

    @step(source=PATHS, to=PATHS)
    def link(self, source: str, to: str) -> None:
        self.twins.ask(lambda side: os.link(side / source, side / to, follow_symlinks=False))
        self.twins.compare_file(to)

    @step(path=PATHS)
    def unlink(self, path: str) -> None:
        self.twins.ask(lambda side: (side / path).unlink())
        for handle in self.twins.handles:
            if handle.path == path:
                self.twins.compare_handle(handle)

    @step(path=PATHS, mode=DIRECTORY_MODES)
    def mkdir(self, path: str, mode: int) -> None:
        self.twins.ask(lambda side: (side / path).mkdir(self._directory_mode(mode)))

    @step(path=PATHS)
    def rmdir(self, path: str) -> None:
        self.twins.ask(lambda side: (side / path).rmdir())

    @step(path=PATHS, to=TARGETS)
    def symlink(self, path: str, to: str) -> None:
        self.twins.ask(lambda side: (side / path).symlink_to(to))
        self.twins.compare_file(path)

    @step(path=PATHS)
    def fsync_directory(self, path: str) -> None:
        def sync(side: Side) -> None:
            descriptor = os.open(side / path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

        self.twins.ask(sync)

    # Attributes

    def _directory_mode(self, mode: int) -> int:
        return DEFAULT_DIRECTORY_MODE if self.arena.store_is_tree else mode

    @step(path=PATHS, mode=FILE_MODES, directory_mode=DIRECTORY_MODES)
    def chmod(self, path: str, mode: int, directory_mode: int) -> None:
        def change(side: Side) -> None:
            (side / path).chmod(self._directory_mode(directory_mode) if (side / path).is_dir() else mode)

        self.twins.ask(change)

    @step(path=PATHS, times=st.tuples(*[st.integers(0, 4_000_000_000_000_000_000)] * 2))
    def utimens(self, path: str, times: tuple[int, int]) -> None:
        def change(side: Side) -> tuple[int, int]:
            os.utime(side / path, ns=times)
            found = os.stat(side / path)
            return found.st_atime_ns, found.st_mtime_ns

        self.twins.ask(change)

    # The mount

    @precondition(lambda self: len(self.steps) % 8 == 7)
    @step(foreign=st.lists(st.tuples(PATHS, BODIES), max_size=2), cache=st.sampled_from(Cache))
    def remount(self, foreign: list[tuple[str, tuple[int, int]]], cache: Cache) -> None:
        """Unmount, and mount again; before that somebody else replaces published files."""
        self.twins.close_all()
        self.twins.compare_contents()
        replaced = {self._real_path(path): body(content) for path, content in foreign}
        for path, data in replaced.items():
            self._replace_by_somebody_else(path, data)
        self.remount_and_compare(cache)

    @step(path=PATHS, content=BODIES)
    def foreign_overwrite(self, path: str, content: tuple[int, int]) -> None:
        """Somebody else replaces a published file under the mount, which sees it when it lists again."""
        path = self._real_path(path)
        plain = self.twins.plain / path
        if not plain.is_file() or plain.stat().st_nlink > 1 or self._is_open(path):
            return
        self._replace_by_somebody_else(path, body(content))
        mounted = self.twins.mounted / path

        def is_seen() -> bool:
            os.listdir(mounted.parent)
            try:
                return mounted.read_bytes() == body(content)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                return False  # it was opened before the mount knew

        wait_until(is_seen, "somebody else's bytes")

    @precondition(lambda self: len(self.steps) % 8 == 7)
    @step()
    def crash(self) -> None:
        """Lose the daemon when everything is fsynced: nothing else may be lost with it."""
        for handle in self.twins.handles:
            self.twins.ask_handle(handle, os.fsync)
        for path in list(self.twins.paths()):
            if not (self.twins.plain / path).is_symlink():
                self.twins.ask(lambda side, path=path: _fsync(side / path))  # type: ignore[misc]
        self.arena.mount.kill()
        self.twins.abandon_handles()
        self.arena.mount.mount()
        self.twins.forget_times()  # fsync does not wait for times alone
        self.twins.compare_trees()
        self.twins.compare_contents()

    def remount_and_compare(self, cache: Cache = Cache.EMPTY) -> None:
        """Compare the bucket while there is no mount, and then a mount that knows only the bucket and its cache."""
        self.arena.mount.umount()
        self.compare_bucket()
        self.arena.mount_with(cache)
        self.twins.forget_times_of_directories()  # what is done in a directory is not published with it
        self.twins.compare_trees(slack_ns=WRITEBACK_NS)
        self.twins.compare_contents()

    def compare_bucket(self) -> None:
        """The bucket has the files, symbolic links and directories of the plain side as objects, and nothing else."""
        found = self.arena.objects.sizes()
        expected = self._expected_objects()
        ours = {key for key in found if key.startswith(f"{self.name}/")}
        if ours != expected.keys():
            missing, unknown = sorted(expected.keys() - ours), sorted(ours - expected.keys())
            raise Difference(f"the bucket lacks {missing}, and has {unknown} beyond the tree")
        for key, content in expected.items():
            if self.arena.objects.read(key) != content:
                raise Difference(
                    f"the object {key} has other bytes, {found[key]} of them, not {len(content)}"
                )
        conflicts = [key for key in found if key.startswith(".fusefs/conflicts/")]
        if conflicts:
            raise Difference(f"there are conflicts with nobody: {conflicts}")
        if self.arena.objects.unfinished_uploads():
            raise Difference(f"uploads were left behind: {self.arena.objects.unfinished_uploads()}")

    def _expected_objects(self) -> dict[str, bytes]:
        expected = {f"{self.name}/": b""}
        for path in sorted(self.twins.plain.root.rglob("*")):
            key = f"{self.name}/{path.relative_to(self.twins.plain.root)}"
            if path.is_symlink():
                expected[key] = os.fsencode(os.readlink(path))
            elif path.is_dir():
                expected[f"{key}/"] = b""
            else:
                expected[key] = path.read_bytes()
        return expected

    def _is_open(self, path: str) -> bool:
        number = os.stat(self.twins.plain / path).st_ino
        return any(os.fstat(handle.plain).st_ino == number for handle in self.twins.handles)

    def _real_path(self, path: str) -> str:
        root = self.twins.plain.root
        return os.path.relpath(os.path.realpath(root / path), root)

    def _replace_by_somebody_else(self, path: str, data: bytes) -> None:
        """Put an object in place of a file that has nothing left to publish, and no other name."""
        plain = self.twins.plain / path
        if plain.is_file() and plain.stat().st_nlink == 1:
            key = f"{self.name}/{path}"
            self.twins.ask(lambda side: (side / path).chmod(0o644))  # what an object without attributes has
            now_ns = time.time_ns()
            self.twins.ask(lambda side: os.utime(side / path, ns=(now_ns, now_ns)))
            # Times go with the last publication of all that was done.
            wait_until(
                lambda: self.arena.objects.metadata(key).get("mtime", "").endswith(str(now_ns)[-9:]), key
            )
            self.arena.objects.put(key, data)
            plain.write_bytes(data)
            self.twins.forget_times(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def run(arena: Arena, *, random_seed: int, runs: int, steps: int, shrink: bool = False) -> None:
    """Run the machine `runs` times in one arena. Raises `Difference` with the steps that led to it.

    `shrink` looks for a shorter way to it first, for some minutes.
    """

    @seed(random_seed)
    def machine() -> Differential:
        return Differential(arena)

    options = settings(
        max_examples=runs,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    run_state_machine_as_test(machine, settings=options)  # type: ignore[arg-type]
