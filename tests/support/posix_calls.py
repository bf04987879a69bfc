"""Makes system calls below a directory and records what each answered and changed, so that two records can be compared.

A scenario is a function that gets `Calls` and makes its calls through it, with paths relative to the directory that it
is run in. After each call everything below that directory is looked at: the record tells what appeared, what went, and
which fields of stat(2) and which times changed. Two file systems that both keep to POSIX have equal records.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
NOREPLACE: Final = 1
EXCHANGE: Final = 2

_AT_FDCWD: Final = -100
_CLOCK_REALTIME_COARSE: Final = 5
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who makes the calls."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT: Final = User(uid=0, gid=0)
SOMEBODY: Final = User(uid=1234, gid=1234, groups=(2345,))


@contextlib.contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Make file system calls of this process those of `user`, for the block; only what root has started can."""
    before = User(uid=os.geteuid(), gid=os.getegid(), groups=tuple(os.getgroups()))
    _become(user)
    try:
        yield
    finally:
        _become(before)


def _become(user: User) -> None:
    os.seteuid(0)
    os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)


@dataclass(frozen=True, slots=True)
class Seen:
    """What lstat(2) told of one path."""

    number: int
    fields: tuple[tuple[str, int | str], ...]
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Record:
    """One call. `call` is for the reader of a difference; everything else is the same where two systems agree."""

    call: str = field(compare=False)
    answer: str
    changes: tuple[str, ...]


class Calls:
    """Makes calls and keeps their records."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.records: list[Record] = []
        self._descriptors: list[int] = []
        self._seen = _look()
        self._last_change = time.time_ns()

    def __call__(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Make a call, and return what it returned; None if it failed."""
        self._let_the_clock_tick()
        result: R | None = None
        try:
            result = call(*args, **kwargs)
            answer = repr(result)
        except OSError as error:
            answer = errno.errorcode[error.errno or 0]
        self._record(_shown(call, args), answer)
        return result

    def aside(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> None:
        """Make a call of which only the answer is recorded."""
        answer = call(*args, **kwargs)
        self._seen = _look()
        self._record(_shown(call, args), repr(answer))

    def open(self, path: str | bytes, flags: int, mode: int = 0o644) -> int:
        """Open a file, which stays open until `close` or the end; -1 if it cannot be opened."""
        self._let_the_clock_tick()
        try:
            descriptor = os.open(path, flags, mode)
        except OSError as error:
            self._record(f"open('{path!r}', {flags:#o})", errno.errorcode[error.errno or 0])
            return -1
        self._descriptors.append(descriptor)
        self._record(f"open('{path!r}', {flags:#o})", "open")
        return descriptor

    def close(self, descriptor: int) -> None:
        if descriptor in self._descriptors:
            self._descriptors.remove(descriptor)
            self(os.close, descriptor)

    def write_file(self, path: str | bytes, data: bytes = b"content", mode: int = 0o644) -> None:
        """Make or replace a file."""
        descriptor = self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        self(os.write, descriptor, data)
        self.close(descriptor)

    def fstat(self, descriptor: int) -> None:
        """Record what an open file is, whether it has a name or not."""
        self(lambda: _fields(os.fstat(descriptor)))

    def end(self) -> None:
        """Close what is open."""
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _let_the_clock_tick(self) -> None:
        """Wait until file systems that take the time of the last tick see a later one than at the last change.

        Linux lets none see an earlier time than another one has had that asks for the exact one.
        """
        while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= self._last_change:
            time.sleep(0.0005)  # of a tick's 4 ms or more: the processor is for the mount meanwhile

    def _record(self, call: str, answer: str) -> None:
        seen = _look()
        changes = tuple(sorted(_changes(self._seen, seen)))
        self.records.append(Record(call, answer, changes))
        self._seen = seen
        if changes:
            self._last_change = time.time_ns()


Scenario = Callable[[Calls], None]


def run(scenario: Scenario, directory: Path, user: User) -> list[Record]:
    """Run a scenario in a new directory that belongs to `user`, and return its records."""
    directory.mkdir()
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    os.chdir(directory)
    os.chown(".", user.uid, user.gid)
    umask = os.umask(0o022)
    calls = Calls(user)
    try:
        with acting_as(user):
            scenario(calls)
        return calls.records
    finally:
        calls.end()
        os.umask(umask)
        os.fchdir(before)
        os.close(before)


@contextlib.contextmanager
def as_root() -> Iterator[None]:
    """Let root make the calls of the block, inside a scenario of somebody else."""
    uid = os.geteuid()
    os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(uid)


def set_times(path: str, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) with seconds and nanoseconds as they are, UTIME_NOW and UTIME_OMIT included; not through links."""
    no_follow = 0x100
    times = (ctypes.c_long * 4)(*atime, *mtime)
    if _libc.utimensat(_AT_FDCWD, os.fsencode(path), times, no_follow) != 0:
        _raise()


def rename_with(source: str, target: str, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) != 0:
        _raise()


def _shown(call: Callable[..., object], args: Sequence[object]) -> str:
    """Return a call as a reader knows it."""
    bound = call if isinstance(call, partial) else partial(call)
    return f"{bound.func.__name__}{(*bound.args, *args)}"


def _raise() -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def _look() -> dict[str, Seen]:
    with as_root():
        return dict(look_below("."))


def look_below(path: str) -> Iterator[tuple[str, Seen]]:
    """Yield what lstat(2) tells of everything from `path` on."""
    found = os.lstat(path)
    yield path, Seen(found.st_ino, _fields(found), found.st_mtime_ns, found.st_ctime_ns)
    if stat.S_ISDIR(found.st_mode):
        for name in sorted(os.listdir(path)):
            yield from look_below(f"{path}/{name}")


def _fields(found: os.stat_result) -> tuple[tuple[str, int | str], ...]:
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return (
        ("mode", f"{found.st_mode:o}"),
        ("uid", found.st_uid),
        ("gid", found.st_gid),
        ("links", found.st_nlink),
        ("size", size),
        ("rdev", found.st_rdev),
    )


def _changes(before: dict[str, Seen], after: dict[str, Seen]) -> Iterator[str]:
    by_number = {seen.number: seen for seen in before.values()}
    for path in before.keys() - after.keys():
        yield f"{path} is gone"
    for path, seen in after.items():
        old = by_number.get(seen.number)
        if old is None:
            yield f"{path} is new: {seen.fields}"
            continue
        if path not in before:
            yield f"{path} was moved here"
        for (name, was), (_, is_) in zip(old.fields, seen.fields, strict=True):
            if was != is_:
                yield f"{path}: {name} {was} -> {is_}"
        for name, was, is_ in (
            ("mtime", old.mtime_ns, seen.mtime_ns),
            ("ctime", old.ctime_ns, seen.ctime_ns),
        ):
            if was != is_:
                yield f"{path}: {name} changed"
