"""A real mount whose handlers raise what they are told to: `python -m tests.mount.raising_mount MOUNTPOINT STAGE`.

A mount of its own process, because pyfuse3 has one per process. It is told by lines on standard input, and answers
each with a line on standard output:

    arm HANDLER KIND    every call of this handler raises an exception of this kind from now on
    disarm              no call does; answers how many have

The exception is raised inside of the handler as it is written, where its first statement would be: the function that
the boundary wraps is replaced, and the boundary stays. A handler that has none is replaced as it is, and what it raises
ends the mount.
"""

from __future__ import annotations

import errno
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NoReturn

import pyfuse3
import trio

from backends.errors import QuotaExceeded, StorageError
from backends.memory import MemoryStorage
from fusefs.errors import EntryExists
from fusefs.operations import FuseOperations, KernelOptions
from tests.core.tree import open_tree


class NotEvenAnException(BaseException):
    """Passes every `except Exception`."""


def recurse() -> NoReturn:
    recurse()


#: What is raised, and the errno that a caller sees of it.
KINDS: Final[dict[str, tuple[Callable[[], BaseException], int]]] = {
    "Exception": (lambda: Exception("of no class"), errno.EIO),
    "KeyError": (lambda: KeyError(5), errno.EIO),
    "StopIteration": (StopIteration, errno.EIO),
    "StorageError": (lambda: StorageError("of the store"), errno.EIO),
    "QuotaExceeded": (lambda: QuotaExceeded("of the store"), errno.EDQUOT),
    "OSError": (lambda: OSError(errno.ENOSPC, "of the disk"), errno.ENOSPC),
    "OSError-without-errno": (lambda: OSError("a sentence"), errno.EIO),
    "OSError-of-the-kernel": (lambda: OSError(512, "ERESTARTSYS"), errno.EIO),
    "FUSEError": (lambda: pyfuse3.FUSEError(errno.EBUSY), errno.EBUSY),
    "MemoryError": (MemoryError, errno.ENOMEM),
    "RecursionError": (lambda: RecursionError("raised where there is no stack left"), errno.EIO),
    "BaseException": (lambda: NotEvenAnException("of a library"), errno.EIO),
    "ExceptionGroup": (lambda: ExceptionGroup("g", [EntryExists("x"), KeyError(5)]), errno.EEXIST),
    "nested-groups": (
        lambda: ExceptionGroup("g", [ExceptionGroup("h", [OSError(errno.EMFILE, "x")])]),
        errno.EMFILE,
    ),
    "BaseExceptionGroup": (
        lambda: BaseExceptionGroup("g", [BaseExceptionGroup("h", [NotEvenAnException()])]),
        errno.EIO,
    ),
}

HANDLERS: Final = sorted(
    name
    for name, member in vars(FuseOperations).items()
    if not name.startswith("_") and inspect.iscoroutinefunction(inspect.unwrap(member))
)


class Injector:
    """What is to be raised, and how often it has been."""

    def __init__(self) -> None:
        self._armed: tuple[str, str] | None = None
        self._raised = 0

    def obey(self, command: str) -> str:
        match command.split():
            case ["arm", handler, kind]:
                self._armed = (handler, kind)
                self._raised = 0
            case ["disarm"]:
                self._armed = None
        return str(self._raised)

    def raise_if_armed(self, handler: str) -> None:
        if self._armed is not None and self._armed[0] == handler:
            self._raised += 1
            if self._armed[1] == "RecursionError":
                recurse()
            raise KINDS[self._armed[1]][0]()

    def install(self) -> None:
        """Put this in front of every handler's body."""
        for name in HANDLERS:
            member = vars(FuseOperations)[name]
            body = inspect.unwrap(member)
            raising = self._in_front_of(name, body)
            if member is body:
                setattr(FuseOperations, name, raising)
                continue
            (cell,) = (cell for cell in member.__closure__ if cell.cell_contents is body)
            cell.cell_contents = raising

    def _in_front_of(
        self, name: str, body: Callable[..., Coroutine[Any, Any, Any]]
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        @functools.wraps(body)
        async def raising(*args: Any) -> Any:
            self.raise_if_armed(name)
            return await body(*args)

        return raising


async def obey_commands(injector: Injector) -> None:
    async with trio.lowlevel.FdStream(0) as commands, trio.lowlevel.FdStream(1) as answers:
        async for chunk in commands:
            await answers.send_all(injector.obey(chunk.decode()).encode() + b"\n")


async def serve(mountpoint: str, stage: Path) -> None:
    injector = Injector()
    injector.install()
    options = KernelOptions(entry_timeout_seconds=0.0, keep_cache=False, writeback_cache=False)
    async with open_tree(MemoryStorage(), stage) as tree:
        pyfuse3.init(
            FuseOperations(tree.filesystem, options, tree.xattrs), mountpoint, {"default_permissions"}
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(obey_commands, injector)
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], Path(sys.argv[2]))
