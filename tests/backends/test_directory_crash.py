"""A machine dies while a directory store writes: what a file system may have kept that orders nothing but by fsync.

A file's bytes and attributes are kept as they were at its last fsync, or as they are now, or half; a directory's names
as they were at its last fsync, or as they are now. Whatever comes of that, all that had returned is there,
nothing is there that nobody wrote, and the store can be used. The process may have been killed before, at any of its
system calls, and another one have gone on with what it saw then, but nobody had synced.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from backends.base import CREATE_ONLY, ObjectStorage, iterate_pages
from tests.core.hosts import PromptDirectory

LONG: Final = "l" * 300
KEYS: Final = ("x", "x/y", "x/y/z", "d/e/f", "d/e/g", f"{LONG}/k", f"d/{LONG}")
CALLS: Final = ("fsync", "rename", "mkdir", "unlink", "rmdir", "setxattr", "write")
WALKS: Final = 16
STEPS: Final = 12

Bucket = dict[str, bytes]


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
                if name == "fsync":
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
            if now != file:
                file = rng.choice(
                    [now, _File(now.data[: len(now.data) // 2], {}, 0), _File(bytes(len(now.data)), {}, 0)]
                )
        target.write_bytes(file.data)
        for name, value in file.attributes.items():
            os.setxattr(target, name, value)
        os.utime(target, ns=(file.mtime_ns, file.mtime_ns))

    def close(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)


async def step(storage: ObjectStorage, rng: Random, there: Bucket, coming: dict[str, bytes | None]) -> None:
    """Do something; `coming` becomes what it leads to, before it is done."""
    key, other = rng.choice(KEYS), rng.choice(KEYS)
    data = rng.randbytes(rng.choice([1, 50, 5_000]))
    match rng.randrange(7):
        case 0 | 1:
            coming[key] = data
            await storage.put(key, data)
        case 2 if key not in there:
            coming[key] = data
            await storage.put(key, data, mode=CREATE_ONLY)
        case 3 if key in there:
            coming[key] = None
            await storage.delete(key)
        case 4:
            coming |= dict.fromkeys({key, other} & there.keys())
            assert await storage.delete_many([key, other]) == {}
        case 5 if key in there and key != other:
            coming[other] = there[key]
            await storage.copy(key, other)
        case 6:
            upload = await storage.create_multipart(key)
            part = await upload.upload_part(1, data)
            if rng.random() < 0.8:
                coming[key] = data
                await upload.complete([part])
            else:
                await upload.abort()


async def contents(storage: ObjectStorage) -> Bucket:
    keys = [info.key async for page in iterate_pages(storage) for info in page.objects]
    return {key: (await storage.get_range(key)).data for key in keys}


async def check(image: Path, allowed: Mapping[str, set[bytes | None]]) -> None:
    """Each key has what it may have, and the store is of use."""
    storage = PromptDirectory(image)
    found = await contents(storage)
    for key in KEYS:
        assert found.get(key) in allowed[key], key
    assert found.keys() <= set(KEYS)
    for key in KEYS:
        await storage.put(key, b"new")
    assert await contents(storage) == dict.fromkeys(KEYS, b"new")
    for upload in await storage.list_multipart_uploads():
        again = storage.resume_multipart(upload.key, upload.upload_id)
        await again.complete([await again.upload_part(1, b"part")])
    await storage.aclose()


@pytest.mark.parametrize("seed", range(WALKS))
async def test_what_has_returned_survives_the_machine(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = Random(seed)
    (tmp_path / "root").mkdir()
    disk = Disk(tmp_path / "root")
    #: What the last call for a key that has returned led to, and all that were begun since.
    allowed: dict[str, set[bytes | None]] = {key: {None} for key in KEYS}
    try:
        for process in range(8):
            storage = PromptDirectory(disk.root)
            there = await contents(storage)
            disk.calls, disk.calls_left = 0, rng.randrange(1, 60)
            with suppress(Killed), disk.watched(monkeypatch):
                for _ in range(STEPS):
                    coming: dict[str, bytes | None] = {}
                    try:
                        await step(storage, rng, there, coming)
                    finally:
                        for key, data in coming.items():
                            allowed[key].add(data)
                    for key, data in coming.items():
                        allowed[key] = {data}
                        there.pop(key, None)
                        there |= {key: data} if data is not None else {}
            for number in range(2):
                image = tmp_path / f"{process}-{number}"
                disk.image(image, rng if number else None)
                await check(image, allowed)
                shutil.rmtree(image)
            lock = storage._bucket._private._session_lock
            if lock is not None:
                os.close(lock)
    finally:
        disk.close()
