"""A disk whose machine may die: what a file system may have kept that orders nothing but by fsync.

    disk = Disk(root)
    with suppress(Killed), disk.watched(monkeypatch): ...   # calls of `os` below root; the process may be killed at one
    disk.image(target, rng)                                 # what a crash of the machine leaves now

A file's bytes and attributes are kept as they were at its last fsync, or as they are now, or half; of one that was
written over since then, each block is as it was or as it is. A directory's names are as they were at its last fsync, or
as they are now.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

CALLS: Final = (
    *("fsync", "fdatasync", "rename", "mkdir", "unlink", "rmdir", "setxattr"),
    *("write", "pwrite", "ftruncate"),
)
"""What counts, and may be the last thing that a process does."""

_BLOCK: Final = 4_096


class Killed(BaseException):
    """The end of a process at a system call; nothing of it runs after that."""


@dataclass(frozen=True)
class _File:
    data: bytes
    attributes: Mapping[str, bytes]
    mtime_ns: int


@dataclass
class Disk:
    """A directory, and what of it a crash of the machine leaves for certain."""

    root: Path
    #: By inode number, as of the last fsync: names, each with the number of its inode; attributes; files.
    directories: dict[int, dict[str, int]] = field(default_factory=dict)
    attributes: dict[int, Mapping[str, bytes]] = field(default_factory=dict)
    files: dict[int, _File] = field(default_factory=dict)
    #: Calls that a process may still make; None for any number.
    calls_left: int | None = None
    calls: int = 0
    #: Keep their inode numbers from being used again.
    _held: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sync(self.root)

    def sync(self, path: Path | str) -> None:
        number = self._hold(path)
        if os.path.isdir(path):
            self.directories[number] = self._names(number)
            self.attributes[number] = self._attributes(number)
        else:
            self.files[number] = self._file(number)

    def _hold(self, path: Path | str) -> int:
        number = os.stat(path).st_ino
        if number not in self._held:
            self._held[number] = os.open(path, os.O_RDONLY)
        return number

    def _names(self, number: int) -> dict[str, int]:
        path = f"/proc/self/fd/{self._held[number]}"
        return {name: self._hold(f"{path}/{name}") for name in os.listdir(path)}

    def _file(self, number: int) -> _File:
        descriptor = self._held[number]
        status = os.fstat(descriptor)
        data = os.pread(descriptor, status.st_size, 0)
        return _File(data, self._attributes(number), status.st_mtime_ns)

    def _attributes(self, number: int) -> Mapping[str, bytes]:
        descriptor = self._held[number]
        return {name: os.getxattr(descriptor, name) for name in os.listxattr(descriptor)}

    @contextmanager
    def watched(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Note what is synced in the block, and count the calls that change something."""
        real = {name: getattr(os, name) for name in CALLS}

        def counting(name: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if self.calls_left is not None and self.calls >= self.calls_left:
                    raise Killed
                self.calls += 1
                if name in {"fsync", "fdatasync"}:
                    self.sync(os.readlink(f"/proc/self/fd/{args[0]}"))
                    return None
                return real[name](*args, **kwargs)

            return call

        with patch.context() as patched:
            for name in CALLS:
                patched.setattr(os, name, counting(name))
            yield

    def image(self, target: Path, rng: Random | None) -> None:
        """Write what a crash leaves at this moment: as little as can be, or at random what there is beside that."""
        target.mkdir()
        self._write_directory(os.stat(self.root).st_ino, target, rng)

    def _write_directory(self, number: int, target: Path, rng: Random | None) -> None:
        names = dict(self.directories.get(number, {}))
        if rng is not None and rng.random() < 0.5:
            names = self._names(number)
        for name, child in names.items():
            if os.path.isdir(f"/proc/self/fd/{self._held[child]}"):
                (target / name).mkdir()
                self._write_directory(child, target / name, rng)
            else:
                self._write_file(child, target / name, rng)
        attributes = self.attributes.get(number, {})
        if rng is not None and rng.random() < 0.5:
            attributes = self._attributes(number)
        for name, value in attributes.items():
            os.setxattr(target, name, value)

    def _write_file(self, number: int, target: Path, rng: Random | None) -> None:
        file = self.files.get(number, _File(b"", {}, 0))
        if rng is not None and rng.random() < 0.5:
            now = self._file(number)
            if now != file and file.data:
                file = _File(_torn(file.data, now.data, rng), now.attributes, now.mtime_ns)
            elif now != file:
                file = rng.choice(
                    [now, _File(now.data[: len(now.data) // 2], {}, 0), _File(bytes(len(now.data)), {}, 0)]
                )
        target.write_bytes(file.data)
        for name, value in file.attributes.items():
            os.setxattr(target, name, value)
        os.utime(target, ns=(file.mtime_ns, file.mtime_ns))

    def close(self) -> None:
        """Let the numbers be used again."""
        for descriptor in self._held.values():
            os.close(descriptor)


def _torn(before: bytes, now: bytes, rng: Random) -> bytes:
    """Return bytes of a file of which each block was written, or not."""
    length = rng.choice([len(before), len(now)])
    blocks = (
        rng.choice([before, now])[start : start + _BLOCK].ljust(_BLOCK, b"\0")
        for start in range(0, length, _BLOCK)
    )
    return b"".join(blocks)[:length]
