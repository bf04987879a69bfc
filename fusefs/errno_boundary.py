"""The only place where an exception becomes an errno.

pyfuse3 ends the mount for everybody when a handler raises anything but `FUSEError`. So every handler runs inside
`errno_boundary`, which lets nothing else out: what the table names becomes its errno; what nobody foresaw is a
defect of ours, is logged with its traceback, and costs the one call EIO.

The table is read by class, the nearest base first, so that a new subclass is never unmapped. Where two readings are
possible the comment says why this one.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

import pyfuse3
import trio

from backends import errors as storage
from fusefs import errors
from fusefs.request_turns import handled

_log = logging.getLogger(__name__)

_KERNEL_ERRNOS: Final = 512
"""Numbers from here on are the kernel's own (ERESTARTSYS)."""

_P = ParamSpec("_P")
_R = TypeVar("_R")

ERRNO_OF: Final[dict[type[Exception], int]] = {
    errors.NoSuchEntry: errno.ENOENT,
    # The kernel names an inode that we forgot: ESTALE makes it look the path up again.
    errors.NoSuchInode: errno.ESTALE,
    errors.BadHandle: errno.EBADF,
    errors.EntryExists: errno.EEXIST,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.DirectoryNotEmpty: errno.ENOTEMPTY,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.CrossesReserved: errno.EPERM,
    errors.InvalidArgument: errno.EINVAL,
    errors.OperationNotPermitted: errno.EPERM,
    errors.ReadOnlyFilesystem: errno.EROFS,
    # As after a disk's controller has gone: no write will ever succeed, and what is there can still be read.
    errors.LeaseLost: errno.EROFS,
    # Waited for as an outage is, and then told as one.
    errors.LeaseLapsed: errno.EIO,
    errors.StaleFile: errno.ESTALE,
    errors.DamagedCache: errno.EIO,
    errors.FileTooLarge: errno.EFBIG,
    errors.NotSupportedHere: errno.EOPNOTSUPP,
    errors.NoSuchAttribute: errno.ENODATA,
    errors.NoRoomForAttributes: errno.ENOSPC,
    errors.UploadFailed: errno.EIO,
    errors.FilesystemError: errno.EIO,
    # A missing object is ENOENT only in a lookup, where the namespace says so; under an inode it is a foreign change.
    storage.NotFound: errno.ESTALE,
    storage.PreconditionFailed: errno.ESTALE,
    storage.EntityTooLarge: errno.EFBIG,
    storage.InvalidKey: errno.ENAMETOOLONG,
    storage.AccessDenied: errno.EACCES,
    storage.QuotaExceeded: errno.EDQUOT,
    # As `LeaseLost`.
    storage.Fenced: errno.EROFS,
    # Everything else of a store is EIO, with the cause in the log: no errno would tell an application what to do.
    storage.StorageError: errno.EIO,
    MemoryError: errno.ENOMEM,
}


def errno_of(error: Exception) -> int:
    """Return what the caller of a system call sees of an exception."""
    if isinstance(error, pyfuse3.FUSEError):
        return _answerable(error.errno)
    if isinstance(error, OSError):
        return _answerable(error.errno)  # of the local disk: ENOSPC, EDQUOT, EIO, EMFILE
    for cls in type(error).__mro__:
        if cls in ERRNO_OF:
            return ERRNO_OF[cls]
    return errno.EIO


def _answerable(number: object) -> int:
    """Return the errno of an exception, or EIO for one that the kernel would not understand as it was meant.

    A request that is answered with 512 or more is never answered for the kernel, and its caller hangs; 0 would be a
    success; and after an ENOSYS the kernel asks no more and takes every later fsync for a success.
    """
    if isinstance(number, int) and 0 < number < _KERNEL_ERRNOS and number != errno.ENOSYS:
        return number
    return errno.EIO


def errno_boundary(
    handler: Callable[_P, Coroutine[Any, Any, _R]],
) -> Callable[_P, Coroutine[Any, Any, _R]]:
    """Wrap a handler of `pyfuse3.Operations`, so that it raises `FUSEError` and nothing else but a cancellation."""

    @functools.wraps(handler)
    async def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await handled(handler(*args, **kwargs))
        except pyfuse3.FUSEError:
            raise  # a handler's own answer
        except BaseException as error:
            number = _answer(handler.__name__, error)
        raise pyfuse3.FUSEError(number)

    return guarded


def silent_boundary(
    handler: Callable[_P, Coroutine[Any, Any, None]],
) -> Callable[_P, Coroutine[Any, Any, None]]:
    """Wrap a handler that has no answer (forget): pyfuse3 ends the mount even for a `FUSEError` from it."""

    @functools.wraps(handler)
    async def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            await handled(handler(*args, **kwargs))
        except BaseException as error:
            _answer(handler.__name__, error)

    return guarded


def _answer(operation: str, raised: BaseException) -> int:
    """Return the errno for what a handler raised, and log what it alone does not tell; cancellations go on."""
    if isinstance(raised, trio.Cancelled | KeyboardInterrupt | SystemExit | GeneratorExit):
        raise raised
    if isinstance(raised, BaseExceptionGroup):
        cancelled, _ = raised.split(trio.Cancelled)
        if cancelled is not None:
            raise cancelled
    return _report(operation, raised)


def _report(operation: str, raised: BaseException) -> int:
    """Return the errno, and log what the errno alone does not tell."""
    error = errors.first_cause(raised)
    if not isinstance(error, Exception):
        _log.error("%s failed", operation, exc_info=raised)
        return errno.EIO
    number = errno_of(error)
    if not isinstance(error, errors.FilesystemError | storage.StorageError | OSError | pyfuse3.FUSEError):
        _log.error("%s: a defect of fusefs, answered with errno %d", operation, number, exc_info=raised)
    elif isinstance(error, errors.NoSuchInode):
        _log.debug("%s: %s", operation, error)  # the kernel looks the path up again, and nobody sees an error
    elif number in (errno.EIO, errno.ESTALE) or isinstance(error, storage.StorageError | OSError):
        _log.error("%s: %s: %s", operation, type(error).__name__, error)
    return number
