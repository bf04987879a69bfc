"""The differential test: random calls on a mount and a plain directory, which must stay the same after each of them."""

from __future__ import annotations

import errno
import functools
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from fusefs.filesystem import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.arena import DEFAULT_DIRECTORY_MODE, Arena, Cache
from tests.support.arguments import (
    BODIES,
    DIRECTORY_MODES,
    FILE_MODES,
    LENGTHS,
    MAX_HANDLES,
    OWNERS,
    PATHS,
    SIZES,
    TARGETS,
    WHICH,
    body,
    within,
)
from tests.support.moments import Moment, is_between, moment
from tests.support.mounts import wait_until
from tests.support.twins import (
    Difference,
    Handle,
    Side,
    check_is_lost,
    copy_range,
    is_synced,
    rename,
    sync_file_system,
    write_back,
)

WRITEBACK_NS: Final = 5_000_000_000
"""How long after a write(2) its pages may reach the daemon, which then takes that time for the file's."""

LOG_LINES: Final = 20
"""Of the mount's log, to be shown with a failure."""


def step(
    needs: Callable[[Differential], object] = lambda _: True, /, **strategies: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Any]:
    """A rule after which the trees are compared, within the time limit; a failure tells the steps that led to it.

    Where it has not what it needs it does nothing. That is no precondition: these must not depend on what is in a tree
    after a crash, or Hypothesis finds that the same data lead to other steps.
    """

    def decorate(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def limited(machine: Differential, **values: Any) -> None:
            machine.calls += 1
            if needs(machine):
                values = {name: within(value, machine.arena.max_size) for name, value in values.items()}
                with machine.told(function.__name__, values):
                    function(machine, **values)

        return rule(**strategies)(limited)  # type: ignore[call-overload]

    return decorate


def has_handles(machine: Differential) -> bool:
    return bool(machine.twins.handles)


def can_open(machine: Differential) -> bool:
    return len(machine.twins.handles) < MAX_HANDLES


def has_moments(machine: Differential) -> bool:
    return machine.moments is not None and len(machine.moments) > 2


class Differential(RuleBasedStateMachine):
    """The operations; `which` chooses among the open files."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.arena = arena
        #: Of steps, those included for which something was missing.
        self.calls = 0
        self.steps: list[str] = []
        #: What a crash may leave: the trees since the last sync. None where somebody else has changed it since then.
        #: Of files that are open for writing the kernel may have the newest bytes.
        self.moments: list[Moment] | None = None
        self.failed = True
        self.name = ""
        with self._telling_failures():
            self.name, self.twins = arena.begin()
        self.failed = False

    def teardown(self) -> None:
        """Compare everything once more, after a remount, unless a step has failed already."""
        try:
            if not self.failed:
                self.failed = True
                with self._telling_failures():
                    with self.arena.time_limit():
                        self.twins.close_all()
                        self.twins.compare_contents()
                        self.remount_and_compare()
                    self.arena.end(self.twins)
                self.failed = False
        finally:
            if self.failed:
                self.arena.restart(self.twins)

    @contextmanager
    def told(self, name: str, values: Mapping[str, object]) -> Iterator[None]:
        """Compare the trees after the block, a step, and tell the steps with what it raises."""
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
        self.steps.append(f"{name}({shown})")
        self.failed = True
        with self._telling_failures(), self.arena.time_limit():
            self.twins.begin_step()
            yield
            self.twins.compare_trees()
            if len(self.steps) % self.arena.steps_per_comparison == 0:
                self.twins.compare_contents()
        self._note_moment()
        self.failed = False

    @contextmanager
    def _telling_failures(self) -> Iterator[None]:
        """Add the steps to what is raised, and print both: Hypothesis drops it where the same data end otherwise next
        time, as they may where a mount meets faults by chance.
        """
        try:
            yield
        except Exception as error:
            error.add_note(self.story())
            traceback.print_exception(error)
            raise

    def _note_moment(self) -> None:
        """Note what a crash from now on may leave."""
        if self.moments is not None:
            self.moments.append(moment(self.twins.plain.root, self.twins.writable_inodes()))

    def story(self) -> str:
        """What led here, and what the mount had to say."""
        log = self.arena.mount.log.splitlines()[-LOG_LINES:]
        return "\n".join([f"the steps in {self.name}:", *self.steps, "the end of the log:", *log])

    def handle(self, which: int) -> Handle:
        return self.twins.handles[which % len(self.twins.handles)]

    seldom = precondition(lambda self: self.calls % 8 == 7)

    # Files by path

    @step(
        path=PATHS,
        access=st.sampled_from([os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY]),
        more=st.sampled_from([0, os.O_TRUNC, os.O_EXCL, os.O_APPEND, os.O_NOFOLLOW, os.O_SYNC]),
        mode=FILE_MODES,
    )
    def create(self, path: str, access: int, more: int, mode: int) -> None:
        if len(self.twins.handles) == MAX_HANDLES:
            self.twins.close(self.twins.handles[0])
        self.twins.open(path, access | more | os.O_CREAT, mode)

    @step(
        can_open,
        path=PATHS,
        flags=st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_APPEND]),
    )
    def open(self, path: str, flags: int) -> None:
        self.twins.open(path, flags)

    @step(path=PATHS, content=BODIES)
    def write_file(self, path: str, content: tuple[int, int]) -> None:
        self.twins.ask(lambda side: (side / path).write_bytes(body(content)))

    @step(path=PATHS, content=BODIES)
    def append_to_file(self, path: str, content: tuple[int, int]) -> None:
        def append(side: Side) -> int:
            with (side / path).open("ab") as writer:
                return writer.write(body(content))

        self.twins.ask(append)

    @step(source=PATHS, to=PATHS, content=BODIES)
    def replace_file(self, source: str, to: str, content: tuple[int, int]) -> None:
        """What careful programs do: a new file, fsync, and a rename over the old one."""

        def write(side: Side) -> bool:
            with (side / source).open("wb") as writer:
                writer.write(body(content))
                writer.flush()
                os.fsync(writer.fileno())
            return True

        if self.twins.ask(write):
            self._note_moment()
            self.twins.ask(lambda side: os.replace(side / source, side / to))

    @step(path=PATHS, size=SIZES)
    def truncate(self, path: str, size: int) -> None:
        plain = self.twins.plain / path
        if plain.is_file() and plain.stat().st_size == size:
            return  # ext4 takes it for a change, and the kernel's FUSE does not
        self.twins.ask(lambda side: os.truncate(side / path, size))

    @step(path=PATHS, at=SIZES, content=BODIES, synced=st.booleans())
    def map_and_write(self, path: str, at: int, content: tuple[int, int], synced: bool) -> None:
        plain = self.twins.plain / path
        if plain.is_file() and (size := plain.stat().st_size):
            self.twins.map_and_write(path, at % size, body(content), synced=synced)

    @step(path=PATHS, content=BODIES)
    def map_past_the_end(self, path: str, content: tuple[int, int]) -> None:
        """What Prometheus does with its newest chunks, and with writes through the mapping too."""
        plain = self.twins.plain / path
        if plain.is_file() and plain.stat().st_size and content[1]:
            self.twins.map_past_the_end(path, body(content))

    @step(path=PATHS)
    def read_past_the_page_cache(self, path: str) -> None:
        self.twins.compare_file(path, direct=True)

    # Files that are open

    @step(has_handles, which=WHICH, offset=SIZES, content=BODIES)
    def pwrite(self, which: int, offset: int, content: tuple[int, int]) -> None:
        handle = self.handle(which)
        self.twins.ask_handle(handle, lambda descriptor: os.pwrite(descriptor, body(content), offset))

    @step(has_handles, which=WHICH, content=BODIES)
    def write(self, which: int, content: tuple[int, int]) -> None:
        handle = self.handle(which)
        self.twins.ask_handle(handle, lambda descriptor: os.write(descriptor, body(content)))

    @step(has_handles, which=WHICH, size=SIZES)
    def ftruncate(self, which: int, size: int) -> None:
        handle = self.handle(which)
        if os.fstat(handle.plain).st_size != size:  # as with `truncate`
            self.twins.ask_handle(handle, lambda descriptor: os.ftruncate(descriptor, size))

    @step(has_handles, which=WHICH, offset=SIZES, length=LENGTHS)
    def pread(self, which: int, offset: int, length: int) -> None:
        self.twins.ask_handle(self.handle(which), lambda descriptor: os.pread(descriptor, length, offset))

    @step(has_handles, which=WHICH)
    def read_by_holes(self, which: int) -> None:
        """What cp does: look for data, take the rest for zeros."""
        self.twins.compare_holes(self.handle(which))

    @step(has_handles, which=WHICH, to=WHICH, offsets=st.tuples(SIZES, SIZES), length=LENGTHS)
    def copy_file_range(self, which: int, to: int, offsets: tuple[int, int], length: int) -> None:
        source, target = self.handle(which), self.handle(to)
        self.twins.ask_both(source, target, lambda one, other: copy_range(one, other, offsets, length))

    @step(
        has_handles,
        which=WHICH,
        offset=SIZES,
        whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]),
    )
    def seek(self, which: int, offset: int, whence: int) -> None:
        handle = self.handle(which)
        if handle.is_file:  # what the end of a directory is, each file system says for itself
            self.twins.ask_handle(handle, lambda descriptor: os.lseek(descriptor, offset, whence))

    @step(has_handles, which=WHICH)
    def fsync(self, which: int) -> None:
        self.twins.ask_handle(self.handle(which), os.fsync)

    @step(has_handles, which=WHICH, writes=st.lists(st.tuples(SIZES, BODIES), min_size=1, max_size=6))
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

    @step(has_handles, which=WHICH)
    def drop_page_cache(self, which: int) -> None:
        handle = self.handle(which)
        self.twins.ask_handle(handle, write_back)

    @step(has_handles, which=WHICH)
    def close(self, which: int) -> None:
        self.twins.close(self.handle(which))

    # Names

    @step(source=PATHS, to=PATHS, flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, source: str, to: str, flags: int) -> None:
        self.twins.ask(lambda side: rename(side / source, side / to, flags))

    @step(source=PATHS, to=PATHS)
    def link(self, source: str, to: str) -> None:
        self.twins.ask(lambda side: os.link(side / source, side / to, follow_symlinks=False))

    @step(path=PATHS)
    def unlink(self, path: str) -> None:
        self.twins.ask(lambda side: (side / path).unlink())

    @step(path=PATHS, mode=DIRECTORY_MODES)
    def mkdir(self, path: str, mode: int) -> None:
        self.twins.ask(lambda side: (side / path).mkdir(self._directory_mode(mode)))

    @step(path=PATHS)
    def rmdir(self, path: str) -> None:
        self.twins.ask(lambda side: (side / path).rmdir())

    @step(path=PATHS, to=TARGETS)
    def symlink(self, path: str, to: str) -> None:
        self.twins.ask(lambda side: (side / path).symlink_to(to))

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

    def _is_directory(self, path: str) -> bool:
        return (self.twins.plain / path).is_dir()

    def _directory_mode(self, mode: int) -> int:
        return DEFAULT_DIRECTORY_MODE if self.arena.store_is_tree else mode

    @step(path=PATHS, mode=FILE_MODES, directory_mode=DIRECTORY_MODES)
    def chmod(self, path: str, mode: int, directory_mode: int) -> None:
        def change(side: Side) -> None:
            (side / path).chmod(self._directory_mode(directory_mode) if (side / path).is_dir() else mode)

        self.twins.ask(change)

    @step(path=PATHS, owner=OWNERS, group=OWNERS)
    def chown(self, path: str, owner: int, group: int) -> None:
        if not (self.arena.store_is_tree and self._is_directory(path)):
            self.twins.ask(lambda side: os.chown(side / path, owner, group))

    @step(path=PATHS, times=st.tuples(*[st.integers(0, 4_000_000_000_000_000_000)] * 2))
    def utimens(self, path: str, times: tuple[int, int]) -> None:
        def change(side: Side) -> tuple[int, int]:
            os.utime(side / path, ns=times)
            found = os.stat(side / path)
            return found.st_atime_ns, found.st_mtime_ns

        self.twins.ask(change)

    # The mount

    @seldom
    @step(foreign=st.lists(st.tuples(PATHS, BODIES), max_size=2), cache=st.sampled_from(Cache))
    def remount(self, foreign: list[tuple[str, tuple[int, int]]], cache: Cache) -> None:
        """Unmount, and mount again; before that somebody else replaces published files."""
        self.twins.close_all()
        for path, data in {self._real_path(path): body(content) for path, content in foreign}.items():
            if self._may_be_replaced(path):
                self._let_somebody_else_put(path, data)
        self.remount_and_compare(cache)
        self.moments = []

    @seldom
    @step(cache=st.sampled_from([Cache.KEPT, Cache.EMPTY]), path=PATHS)
    def crash(self, cache: Cache, path: str) -> None:
        """Lose the daemon, or its host, after a sync: nothing that was done before it may be lost with it."""
        self._sync(path)
        self.arena.mount.kill()
        self.twins.abandon_handles()
        self.arena.mount_with(cache if self.arena.log_is_in_bucket else Cache.KEPT)
        self.twins.forget_times()  # fsync does not wait for times alone
        self.twins.compare_trees()
        self.twins.compare_contents()
        self.moments = []

    @step(has_moments, cache=st.sampled_from([Cache.KEPT, Cache.EMPTY]))
    def crash_without_sync(self, cache: Cache) -> None:
        """Lose the daemon, or its host, at any time: the tree is as it was at one moment since the last sync."""
        assert self.moments
        self.arena.mount.kill()
        self.twins.abandon_handles()
        self.arena.mount_with(cache if self.arena.log_is_in_bucket else Cache.KEPT)
        found = moment(self.twins.mounted.root)
        if not any(is_between(found, *pair) for pair in pairwise([*self.moments, self.moments[-1]])):
            raise Difference(f"after a crash there is {found}, and not one of {self.moments}")
        self.twins.adopt_mounted()
        self.moments = []

    @step(path=PATHS)
    def sync(self, path: str) -> None:
        self._sync(path)
        self.moments = []

    def _sync(self, path: str) -> None:
        """Have the kernel hand over what it holds of the mount, and sync one file or directory, whichever it is."""
        sync_file_system(self.twins.mounted.root)
        is_there = os.path.exists(self.twins.plain / path)
        _fsync(self.twins.mounted / path if is_there else self.twins.mounted.root)

    @precondition(lambda self: self.arena.has_outages)
    @step(has_handles, writes=st.lists(st.tuples(WHICH, SIZES, BODIES), max_size=4))
    def outage(self, writes: list[tuple[int, int, tuple[int, int]]]) -> None:
        """The store is away for longer than it is waited for: fsync may say EIO, and nothing is lost."""
        assert self.arena.weather is not None
        self.arena.weather.is_bad = True
        try:
            for which, offset, content in writes:
                self._write_in_outage(self.handle(which), offset, body(content))
            for handle in self.twins.handles:
                is_synced(handle.mounted)
        finally:
            self.arena.weather.is_bad = False
        for handle in self.twins.handles:
            wait_until(lambda handle=handle: is_synced(handle.mounted), "the end of an outage", seconds=60)  # type: ignore[misc]
        # What the last attempts to publish have met is an error of a close until the next ones.
        wait_until(lambda: self.arena.mount.failing() == 0, "the publications after an outage", seconds=60)

    def _write_in_outage(self, handle: Handle, offset: int, data: bytes) -> None:
        """Write on the plain side what the mount takes: it may have to read the rest of a page.

        Not by a descriptor with O_SYNC: that fails when the bytes are in the file, because they are nowhere else.
        """
        descriptor = os.open(f"/proc/self/fd/{handle.mounted}", handle.flags & (os.O_ACCMODE | os.O_APPEND))
        try:
            written = os.pwrite(descriptor, data, offset)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EBADF):
                raise
        else:
            os.pwrite(handle.plain, data[:written], offset)
        finally:
            with suppress(OSError):  # what the last attempt to publish has met
                os.close(descriptor)

    # Somebody else

    @step(path=PATHS, content=BODIES | st.none(), change=st.none() | st.tuples(SIZES, BODIES))
    def foreign_change(
        self, path: str, content: tuple[int, int] | None, change: tuple[int, tuple[int, int]] | None
    ) -> None:
        """Somebody else replaces or removes a published file, which may be open, and be changed at that moment."""
        path = self._real_path(path)
        if not self._may_be_replaced(path):
            return
        self.moments = None
        opened = self.twins.handles_of(path)
        data = None if content is None else body(content)
        self._let_somebody_else_put(path, data)
        is_seen = False
        writer = next((handle for handle in opened if handle.writable), None)
        if writer is not None and change is not None and change[1][1]:
            is_seen = self._change_in_vain(writer, *change)
        if writer is None or is_seen:
            self._wait_until_seen(path, data)
        for handle in opened:
            self.twins.compare_lost_handle(handle)
            self.twins.close_lost_handle(handle)
        self._wait_until_seen(path, data)

    @step(path=PATHS, content=BODIES)
    def foreign_create(self, path: str, content: tuple[int, int]) -> None:
        plain = self.twins.plain / path
        if os.path.lexists(plain) or not plain.parent.is_dir() or plain.parent.is_symlink():
            return
        self.moments = None
        data, key = body(content), f"{self.name}/{path}"
        # What was renamed away from here may have its only bytes there until they are copied.
        wait_until(lambda: key not in self.arena.objects.sizes(), key, seconds=60)
        self.arena.objects.put(key, data)
        self._replace_plain(path, data)
        os.chown(plain, os.getuid(), os.getgid())  # whatever the directory's set-group-ID bit says
        self._wait_until_seen(path, data)

    def _may_be_replaced(self, path: str) -> bool:
        """Whether that is a file that somebody else may replace, with an outcome that is one for certain.

        Who has open one of several names may go on with another.
        """
        plain = self.twins.plain / path
        return plain.is_file() and (plain.stat().st_nlink == 1 or not self.twins.handles_of(path))

    def _let_somebody_else_put(self, path: str, data: bytes | None) -> None:
        """Replace or, with None, remove the object of a file that has nothing left to publish."""
        for handle in self.twins.handles_of(path):
            self.twins.ask_handle(handle, write_back)
        self.twins.ask(lambda side: (side / path).chmod(0o644))  # what an object without attributes has
        self.twins.ask(lambda side: os.chown(side / path, os.getuid(), os.getgid()))
        now_ns = time.time_ns()
        self.twins.ask(lambda side: os.utime(side / path, ns=(now_ns, now_ns)))
        for name in self.twins.names_of(path):
            key = f"{self.name}/{name}"
            # Times go with the last publication of all that was done.
            wait_until(lambda key=key: self._mtime_of(key).endswith(str(now_ns)[-9:]), key, seconds=60)  # type: ignore[misc]
        key = f"{self.name}/{path}"
        self.arena.objects.delete(key) if data is None else self.arena.objects.put(key, data)
        self._replace_plain(path, data)

    def _mtime_of(self, key: str) -> str:
        return self.arena.objects.metadata(key).get("mtime", "")

    def _replace_plain(self, path: str, data: bytes | None) -> None:
        """Do on the plain side what it looks like in the mount: as if another file had been renamed over this one."""
        plain = self.twins.plain / path
        self.twins.forget_times(os.path.dirname(path))  # which has not changed for the mount
        if data is None:
            plain.unlink()
            return
        other = plain.with_name("of somebody else")
        other.write_bytes(data)
        other.rename(plain)
        self.twins.forget_times(path)

    def _change_in_vain(self, writer: Handle, offset: int, content: tuple[int, int]) -> bool:
        """Change a file that somebody else has replaced: both are kept. Return whether the mount took the change."""
        start, data = os.fstat(writer.plain).st_size if writer.appends else offset, body(content)
        try:
            os.pwrite(writer.mounted, data, offset)
            write_back(writer.mounted)
        except OSError as error:
            check_is_lost(error)
            return False
        os.pwrite(writer.plain, data, offset)
        wait_until(lambda: self._is_stale(writer), "a conflict with somebody else")
        kept = self._wait_for_conflict()
        found, expected = self.arena.objects.read(kept), self.twins.plain_bytes(writer)
        ours = slice(start, start + len(data))
        # What was not on the local disk when the base went is zeros.
        are_kept = all(one in (other, 0) for one, other in zip(found, expected, strict=False))
        if len(found) != len(expected) or found[ours] != expected[ours] or not are_kept:
            raise Difference(f"{kept} has not the bytes that were written to {writer.path}")
        return True

    def _wait_for_conflict(self) -> str:
        """Return the key under which ours is kept, which fsync does not wait for."""
        conflicts: set[str] = set()

        def is_there() -> bool:
            conflicts.update(self.arena.new_conflicts())
            return bool(conflicts)

        wait_until(is_there, "what is kept of a conflict")
        (kept,) = conflicts
        return kept

    def _is_stale(self, writer: Handle) -> bool:
        try:
            os.fsync(writer.mounted)
        except OSError as error:
            check_is_lost(error)
            return True
        return False

    def _wait_until_seen(self, path: str, data: bytes | None) -> None:
        """Wait until the mount shows what somebody else has done, which it sees when it lists again."""
        mounted = self.twins.mounted / path

        def is_seen() -> bool:
            os.listdir(mounted.parent)
            try:
                found = mounted.read_bytes()
            except FileNotFoundError:
                found = None
            except OSError as error:
                check_is_lost(error)
                return False  # it was opened before the mount knew
            return found == data and self.twins.have_same_links()

        wait_until(is_seen, "what somebody else has done")

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
        conflicts = self.arena.new_conflicts()
        if conflicts:
            raise Difference(f"there are conflicts with nobody: {conflicts}")
        uploads = self.arena.objects.unfinished_uploads()
        if self.arena.weather is not None:
            # A mount that could not get to know the store in time may leave one of its trials.
            uploads = [upload for upload in uploads if "/.fusefs/probe/" not in upload[0]]
        if uploads:
            raise Difference(f"uploads were left behind: {uploads}")

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

    def _real_path(self, path: str) -> str:
        root = self.twins.plain.root
        return os.path.relpath(os.path.realpath(root / path), root)


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
