"""Where the differential test takes place: one mount of a bucket, what others see of that, and a plain directory.

An `Arena` serves many runs of the machine, one after the other; each has a directory of its own in it. Whatever a step
does to the mount, it ends: after `STEP_SECONDS` the daemon is killed and the kernel's connection to it is cut.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from backends.base import iterate_pages
from backends.directory import DirectoryStorage
from backends.errors import NotFound
from fusefs.object_writer import CONFLICTS_PREFIX
from tests.support.mounts import Mount
from tests.support.twins import Difference, Twins
from tests.support.unreliable import Weather

T = TypeVar("T")

STEP_SECONDS: Final = 100.0
"""A step that takes longer hangs."""

ATTEMPTS: Final = 5
"""To mount on a bad way to the store."""

DEFAULT_DIRECTORY_MODE: Final = 0o755


class Objects(Protocol):
    """What a bucket holds, seen past fusefs; `tests.support.bucket.Bucket` is one."""

    def sizes(self) -> dict[str, int]: ...
    def read(self, key: str) -> bytes: ...
    def metadata(self, key: str) -> Mapping[str, str]: ...
    def put(self, key: str, data: bytes) -> None: ...
    def delete(self, key: str) -> None: ...
    def clear(self) -> None: ...
    def unfinished_uploads(self) -> list[tuple[str, str]]: ...


class DirectoryObjects:
    """The objects of a bucket that is kept in a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def sizes(self) -> dict[str, int]:
        async def listed(store: DirectoryStorage) -> dict[str, int]:
            return {entry.key: entry.size async for page in iterate_pages(store) for entry in page.objects}

        return self._run(listed)

    def read(self, key: str) -> bytes:
        async def data(store: DirectoryStorage) -> bytes:
            return (await store.get_range(key)).data

        return self._run(data)

    def metadata(self, key: str) -> Mapping[str, str]:
        """Return an object's metadata; none where there is no object."""

        async def metadata(store: DirectoryStorage) -> Mapping[str, str]:
            try:
                return (await store.head(key)).metadata or {}
            except NotFound:
                return {}

        return self._run(metadata)

    def put(self, key: str, data: bytes) -> None:
        self._run(lambda store: store.put(key, data))

    def delete(self, key: str) -> None:
        self._run(lambda store: store.delete(key))

    def clear(self) -> None:
        for entry in self._root.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def unfinished_uploads(self) -> list[tuple[str, str]]:
        uploads = self._run(lambda store: store.list_multipart_uploads())
        return [(upload.key, upload.upload_id) for upload in uploads]

    def _run(self, call: Callable[[DirectoryStorage], Awaitable[T]]) -> T:
        async def with_store() -> T:
            store = DirectoryStorage(self._root)
            try:
                return await call(store)
            finally:
                await store.aclose()

        return trio.run(with_store)


class Cache(Enum):
    """What a mount finds in its cache directory."""

    KEPT = auto()
    DAMAGED = auto()
    EMPTY = auto()


class Arena:
    """One mount, its bucket and a plain directory, for one machine after the other."""

    def __init__(
        self,
        mount: Mount,
        objects: Objects,
        plain: Path,
        *,
        store_is_tree: bool = False,
        log_is_in_bucket: bool = True,
        max_size: int | None = None,
        steps_per_comparison: int = 1,
        weather: Weather | None = None,
        has_outages: bool = False,
    ) -> None:
        """`store_is_tree`: as SeaweedFS, which drops the metadata of directories."""
        self.mount = mount
        self.objects = objects
        self.store_is_tree = store_is_tree
        self.log_is_in_bucket = log_is_in_bucket
        #: Sizes above it are taken modulo.
        self.max_size = max_size
        #: After how many steps all bytes are compared.
        self.steps_per_comparison = steps_per_comparison
        #: Of the way to the store; None: it is always fine.
        self.weather = weather
        self.has_outages = has_outages
        self._conflicts: set[str] = set()
        self._plain = plain
        self._runs = 0
        self._hung = False
        plain.mkdir()

    def begin(self) -> tuple[str, Twins]:
        """Return the name and the two sides of a new directory, with the same directories in both."""
        self._runs += 1
        name = f"run{self._runs}"
        twins = Twins(self._plain / name, self.mount.path / name)
        with self.time_limit():
            for directory in ("", "d", "d/e", "e"):
                twins.ask(lambda side, directory=directory: (side / directory).mkdir(DEFAULT_DIRECTORY_MODE))  # type: ignore[misc]
        return name, twins

    def mount_with(self, cache: Cache) -> None:
        """Mount again."""
        if cache is Cache.EMPTY:
            self.mount.forget_cache()
        if cache is Cache.DAMAGED:
            for path in (self.mount.cache_dir / "kept").iterdir():
                with path.open("r+b") as file:
                    file.seek(random.Random(path.stat().st_size).randrange(path.stat().st_size))
                    file.write(b"damaged")
        self.start()

    def start(self) -> None:
        """Mount; on a bad way to the store again, because a mount that does not get to know it soon gives up."""
        for attempt in range(ATTEMPTS):
            try:
                self.mount.mount()
            except AssertionError:
                if self.weather is None or attempt == ATTEMPTS - 1:
                    raise
            else:
                return

    def new_conflicts(self) -> set[str]:
        """Return the keys of what was kept of conflicts since the last time."""
        conflicts = {key for key in self.objects.sizes() if key.startswith(CONFLICTS_PREFIX)}
        new, self._conflicts = conflicts - self._conflicts, conflicts
        return new

    def end(self, twins: Twins) -> None:
        with self.time_limit():
            twins.ask(lambda side: shutil.rmtree(side.root))

    def restart(self, twins: Twins) -> None:
        """Give the next machine a mount that works, after one has left it in any state."""
        self._cut()
        twins.abandon_handles()
        shutil.rmtree(twins.plain.root, ignore_errors=True)
        self.mount.wait_for_end()
        self.objects.clear()
        self._hung = False
        self.mount.forget_cache()
        self.start()

    @contextlib.contextmanager
    def time_limit(self) -> Iterator[None]:
        """End the mount, so that every call on it fails, if the block takes too long. Raises `Difference` then."""
        timer = threading.Timer(STEP_SECONDS, self._give_up)
        timer.start()
        try:
            yield
        except Exception as error:
            if self._hung:
                raise Difference(f"the mount hangs, after {STEP_SECONDS:.0f} s it was killed") from error
            raise
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._hung = True
        self._cut()

    def _cut(self) -> None:
        """Abort the kernel's connection, which frees every process that waits in it; kill the daemon, unmount."""
        connection = _connection(self.mount.path)
        if connection is not None:
            with contextlib.suppress(OSError):
                (connection / "abort").write_text("1")
        with contextlib.suppress(AssertionError, OSError, subprocess.CalledProcessError):
            self.mount.kill()
        if self.mount.is_mounted:
            subprocess.run(["fusermount3", "-uz", str(self.mount.path)], check=False)


def _connection(mountpoint: Path) -> Path | None:
    """Return where the kernel controls the mount; stat(2) would tell, and may hang."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[4] == str(mountpoint):
            return Path("/sys/fs/fuse/connections") / words[2].partition(":")[2]
    return None
