"""Two directories that get the same calls, a plain one and one in a mount: they must answer and hold the same.

Each comparison raises `Difference`, which says where they differ first. Times cannot be the same, because the calls
come one after the other: a time must have changed in both or in neither, and to a moment within the step.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

CLOCK_STEP_NS: Final = 20_000_000
"""How far behind the clock a file system's times may be: ext4 takes those of the last tick."""

CHUNK: Final = 1024 * 1024

#: Maps a file, writes into the mapping and may msync it; in a process of its own, because SIGBUS would end ours.
_MAP_AND_WRITE: Final = """
import mmap, os, sys
path, offset, synced = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
descriptor = os.open(path, os.O_RDWR)
mapped = mmap.mmap(descriptor, 0)
os.close(descriptor)
data = sys.stdin.buffer.read()[: len(mapped) - offset]
mapped[offset : offset + len(data)] = data
if synced:
    mapped.flush()
mapped.close()
"""

#: Maps a file and room beyond its end, lets it grow into that through the descriptor, changes what it then sees there
#: through the mapping, and prints what each way shows of the other. Python's own mmap refuses to map what is not there.
_MAP_PAST_THE_END: Final = """
import ctypes, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
size, data = os.fstat(descriptor).st_size, sys.stdin.buffer.read()
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
read_write, shared = 3, 1
address = libc.mmap(None, size + len(data), read_write, shared, descriptor, 0)
assert address != ctypes.c_void_p(-1).value, ctypes.get_errno()
before = ctypes.string_at(address, size)
assert os.pwrite(descriptor, data, size) == len(data)
seen = ctypes.string_at(address, size + len(data))
middle = size + len(data) // 2
ctypes.memset(address + middle, 33, len(data) - len(data) // 2)
read = os.pread(descriptor, size + len(data), 0)
sys.stdout.buffer.write(before + seen + read)
"""

_libc = ctypes.CDLL(None, use_errno=True)


class Difference(AssertionError):
    """The two are not the same."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two directories, for the calls."""

    root: Path

    def __truediv__(self, path: str) -> Path:
        return self.root / path


@dataclass(eq=False, slots=True)
class Handle:
    """One file opened in both."""

    path: str
    flags: int
    plain: int
    mounted: int

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(os.fstat(self.plain).st_mode)

    @property
    def readable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def appends(self) -> bool:
        return bool(self.flags & os.O_APPEND)


@dataclass(frozen=True, slots=True)
class _Times:
    """When the content of one inode changed last, in nanoseconds, on both sides."""

    plain: int
    mounted: int


class Twins:
    """The two directories, and the files that are open in both."""

    def __init__(self, plain: Path, mounted: Path) -> None:
        self.plain = Side(plain)
        self.mounted = Side(mounted)
        self.handles: list[Handle] = []
        self._times: dict[int, _Times] = {}
        self._step_began_ns = time.time_ns()

    # Calls

    def ask(self, call: Callable[[Side], T]) -> T | None:
        """Make a call on both, and return what both answered; None is an error, the same on both."""
        return _same(lambda: call(self.plain), lambda: call(self.mounted))

    def ask_handle(self, handle: Handle, call: Callable[[int], T]) -> T | None:
        """Make a call on one file's two descriptors."""
        return _same(lambda: call(handle.plain), lambda: call(handle.mounted))

    def ask_both(self, one: Handle, other: Handle, call: Callable[[int, int], T]) -> T | None:
        """Make a call on two files at a time."""
        return _same(lambda: call(one.plain, other.plain), lambda: call(one.mounted, other.mounted))

    def open(self, path: str, flags: int, mode: int = 0o644) -> None:
        plain = _outcome(lambda: os.open(self.plain / path, flags, mode))
        mounted = _outcome(lambda: os.open(self.mounted / path, flags, mode))
        if isinstance(plain, OSError) or isinstance(mounted, OSError):
            _check_same(plain, mounted)
        else:
            self.handles.append(Handle(path, flags, plain, mounted))

    def close(self, handle: Handle) -> None:
        self.handles.remove(handle)
        self.ask_handle(handle, os.close)

    def close_all(self) -> None:
        for handle in list(self.handles):
            self.close(handle)

    def handles_of(self, path: str) -> list[Handle]:
        """Return the descriptors of the file that has the path now."""
        number = os.stat(self.plain / path).st_ino
        return [handle for handle in self.handles if os.fstat(handle.plain).st_ino == number]

    def names_of(self, path: str) -> list[str]:
        """Return all names of the file that has the path now."""
        number = os.stat(self.plain / path).st_ino
        return [other for other in self.paths() if os.lstat(self.plain / other).st_ino == number]

    def close_lost_handle(self, handle: Handle) -> None:
        """Close a file that somebody else has replaced, which may say so."""
        self.handles.remove(handle)
        os.close(handle.plain)
        try:
            os.close(handle.mounted)
        except OSError as error:
            check_is_lost(error)

    def abandon_handles(self) -> None:
        """Close everything whatever the answer: the mount is dead."""
        for handle in self.handles:
            _outcome(lambda handle=handle: os.close(handle.plain))  # type: ignore[misc]
            _outcome(lambda handle=handle: os.close(handle.mounted))  # type: ignore[misc]
        self.handles.clear()

    def map_and_write(self, path: str, offset: int, data: bytes, *, synced: bool) -> None:
        """Write through a shared mapping, which outlives its descriptor; with `synced` msync(2) it."""
        for side in (self.plain, self.mounted):
            _run_mapping(_MAP_AND_WRITE, str(side / path), data, str(offset), str(synced))

    def map_past_the_end(self, path: str, data: bytes) -> None:
        """Map more than there is, append `data` through a descriptor, and compare what the mapping shows of it."""
        plain, mounted = (
            _run_mapping(_MAP_PAST_THE_END, str(side / path), data) for side in (self.plain, self.mounted)
        )
        if plain != mounted:
            raise Difference(f"{path}, mapped past its end: {_first_difference(plain, mounted, 0)}")

    def writable_inodes(self) -> set[int]:
        """Return the plain numbers of files that are open for writing."""
        return {os.fstat(handle.plain).st_ino for handle in self.handles if handle.writable}

    def adopt_mounted(self) -> None:
        """Make the plain directory equal to the mount."""
        shutil.rmtree(self.plain.root)
        subprocess.run(["cp", "-a", str(self.mounted.root), str(self.plain.root)], check=True)
        self.forget_times()

    # Comparison

    def begin_step(self) -> None:
        self._step_began_ns = time.time_ns()

    def compare_trees(self, *, slack_ns: int = 0) -> None:
        """Compare names, kinds, attributes and targets of everything, and of the files that are open.

        `slack_ns` is how much later than before times in the mount may be.
        """
        seen: dict[int, _Times] = {}
        for path in self.paths():
            plain, mounted = (os.lstat(side / path) for side in (self.plain, self.mounted))
            _check_same(_status(plain), _status(mounted), path)
            seen[plain.st_ino] = self._checked_times(path, plain, mounted, slack_ns)
        for handle in self.handles:
            plain, mounted = os.fstat(handle.plain), os.fstat(handle.mounted)
            _check_same(_status(plain), _status(mounted), f"open {handle.path}")
            seen[plain.st_ino] = self._checked_times(f"open {handle.path}", plain, mounted, slack_ns)
        self._times = seen

    def compare_contents(self, *, direct: bool = False) -> None:
        """Compare the bytes of all files; `direct` goes past the kernel's page cache of the mount."""
        for path in self.paths():
            if stat.S_ISREG(os.lstat(self.plain / path).st_mode):
                self.compare_file(path, direct=direct)
        for handle in self.handles:
            self.compare_handle(handle)

    def compare_file(self, path: str, *, direct: bool = False) -> None:
        """Compare what both have under a path, if that is a regular file."""
        if not (self.plain / path).is_file():
            return
        plain = os.open(self.plain / path, os.O_RDONLY)
        mounted = os.open(self.mounted / path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        try:
            _check_same_bytes(path, plain, mounted)
        finally:
            os.close(plain)
            os.close(mounted)

    def compare_handle(self, handle: Handle) -> None:
        if handle.readable and handle.is_file:
            _check_same_bytes(f"open {handle.path}", handle.plain, handle.mounted)

    def compare_lost_handle(self, handle: Handle) -> None:
        """Compare the bytes of an open file that somebody else has replaced: those that it had, or none."""
        if handle.readable:
            try:
                _check_same_bytes(f"open {handle.path}, replaced", handle.plain, handle.mounted)
            except OSError as error:
                check_is_lost(error)

    def compare_holes(self, handle: Handle) -> None:
        """Compare what reading gives to those who skip what the file system calls a hole."""
        if not handle.readable or not handle.is_file:
            return
        size = os.fstat(handle.plain).st_size
        self.ask_handle(handle, lambda descriptor: _seek(descriptor, size, os.SEEK_DATA))
        self.ask_handle(handle, lambda descriptor: _seek(descriptor, size + 1, os.SEEK_HOLE))
        for data, hole in _holes(handle.mounted, size):
            if any(os.pread(handle.plain, hole - data, data)):
                raise Difference(f"open {handle.path}: there is data between {data} and {hole}")

    def have_same_links(self) -> bool:
        """Return whether every file has as many names."""
        return all(
            stat.S_ISDIR((plain := os.lstat(self.plain / path)).st_mode)
            or plain.st_nlink == os.lstat(self.mounted / path).st_nlink
            for path in self.paths()
        )

    def plain_bytes(self, handle: Handle) -> bytes:
        return Path(f"/proc/self/fd/{handle.plain}").read_bytes()

    def paths(self) -> Iterator[str]:
        """Every path below the roots, directories before what is in them; both have the same names."""
        yield "."
        yield from self._below("")

    def _below(self, directory: str) -> Iterator[str]:
        plain, mounted = (_listed(side / directory) for side in (self.plain, self.mounted))
        _check_same(plain, mounted, f"names in {directory or '.'}")
        for name, kind in plain:
            yield directory + name
            if kind == stat.S_IFDIR:
                yield from self._below(f"{directory}{name}/")

    # Times

    def forget_times(self, *paths: str) -> None:
        """Accept whatever times these have next; without an argument, everything has."""
        if not paths:
            self._times.clear()
        for path in paths:
            self._times.pop(os.stat(self.plain / path).st_ino, None)

    def forget_times_of_directories(self) -> None:
        for path in self.paths():
            if stat.S_ISDIR(os.lstat(self.plain / path).st_mode):
                self.forget_times(path)

    def _checked_times(
        self, path: str, plain: os.stat_result, mounted: os.stat_result, slack_ns: int
    ) -> _Times:
        now = _Times(plain.st_mtime_ns, mounted.st_mtime_ns)
        before = self._times.get(plain.st_ino)
        window = range(self._step_began_ns - CLOCK_STEP_NS, time.time_ns() + 1)
        if before not in (now, None) and now.plain != now.mounted:
            assert before is not None
            late = now.plain == before.plain and 0 <= now.mounted - before.mounted <= slack_ns
            if not late and (now.plain not in window or now.mounted not in window):
                raise Difference(
                    f"{path}: mtime went from {before.plain} to {now.plain}, "
                    f"and in the mount from {before.mounted} to {now.mounted}; the step began at {window.start}"
                )
        return now


def rename(source: Path, target: Path, flags: int) -> None:
    """renameat2(2), with RENAME_NOREPLACE (1) or RENAME_EXCHANGE (2)."""
    at_cwd = -100
    if _libc.renameat2(at_cwd, os.fsencode(source), at_cwd, os.fsencode(target), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def write_back(descriptor: int) -> None:
    """Let the kernel hand dirty pages to the file system, wait for that, and drop them; no fsync."""
    before_write_after = 1 | 2 | 4
    if _libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), before_write_after) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def sync_file_system(path: Path) -> None:
    """syncfs(2)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if _libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)


def copy_range(source: int, target: int, offsets: tuple[int, int], length: int) -> int:
    """copy_file_range(2), again until everything is copied; returns how much that was."""
    copied = 0
    while copied < length:
        more = os.copy_file_range(source, target, length - copied, offsets[0] + copied, offsets[1] + copied)
        if not more:
            break
        copied += more
    return copied


def is_synced(descriptor: int) -> bool:
    """Return whether fsync(2) succeeds, or fails for the store's sake."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    return True


def check_is_lost(error: OSError) -> None:
    """Raise an error that does not say that somebody else has replaced the file."""
    if error.errno != errno.ESTALE:
        raise error


def _seek(descriptor: int, offset: int, whence: int) -> int:
    """lseek(2), after which the position is what it was."""
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        return os.lseek(descriptor, offset, whence)
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)


def _holes(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield beginning and end of each range below `size` in which there is no data."""
    start = 0
    while start < size:
        try:
            data = min(size, _seek(descriptor, start, os.SEEK_DATA))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = size
        if start < data:
            yield start, data
        start = _seek(descriptor, data, os.SEEK_HOLE) if data < size else size


def _run_mapping(script: str, path: str, data: bytes, *arguments: str) -> bytes:
    command = [sys.executable, "-I", "-S", "-c", script, path, *arguments]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode != 0:
        raise Difference(f"through a mapping of {path}: {done.returncode} {done.stderr.decode()}")
    return done.stdout


def _outcome(call: Callable[[], T]) -> T | OSError:
    try:
        return call()
    except OSError as error:
        return error


def _same(plain_call: Callable[[], T], mounted_call: Callable[[], T]) -> T | None:
    plain, mounted = _outcome(plain_call), _outcome(mounted_call)
    _check_same(plain, mounted)
    return None if isinstance(plain, OSError) else plain


def _check_same(plain: object, mounted: object, what: str = "the answer") -> None:
    shown = [
        f"errno {answer.errno} ({answer.strerror})" if isinstance(answer, OSError) else answer
        for answer in (plain, mounted)
    ]
    if shown[0] != shown[1]:
        raise Difference(f"{what}: should be {_short(shown[0])}, is {_short(shown[1])}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:300]}... ({len(text)} characters)"


def _check_same_bytes(what: str, plain: int, mounted: int) -> None:
    offset = 0
    while True:
        expected, found = (os.pread(descriptor, CHUNK, offset) for descriptor in (plain, mounted))
        if expected != found:
            raise Difference(f"{what}: {_first_difference(expected, found, offset)}")
        if not expected:
            return
        offset += len(expected)


def _first_difference(expected: bytes, found: bytes, offset: int) -> str:
    if len(expected) != len(found):
        return f"read at {offset} should give {len(expected)} bytes, gives {len(found)}"
    wrong = [at for at, (one, other) in enumerate(zip(expected, found, strict=True)) if one != other]
    first, last = wrong[0], wrong[-1]
    return (
        f"{len(wrong)} bytes differ between {offset + first} and {offset + last}: "
        f"should be {expected[first : first + 8].hex()}..., is {found[first : first + 8].hex()}..."
    )


def _listed(directory: Path) -> list[tuple[str, int]]:
    """Return names and kinds as the directory lists them, in order of names."""
    with os.scandir(directory) as entries:
        return sorted((entry.name, _kind(entry)) for entry in entries)


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else stat.S_IFREG


def _status(found: os.stat_result) -> dict[str, int | str]:
    """What must be the same whatever the file system is."""
    status: dict[str, int | str] = {"mode": oct(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
    if not stat.S_ISDIR(found.st_mode):
        status |= {"size": found.st_size, "links": found.st_nlink}
    return status
