"""Every exception has one errno, and no handler lets anything else out."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator

import pyfuse3
import pytest
import trio

from backends import errors as storage
from fusefs import errors
from fusefs.errno_boundary import errno_boundary, errno_of, silent_boundary

#: What the caller of a system call is meant to see. A class that is missing here fails the tests below.
INTENDED = {
    errors.FilesystemError: errno.EIO,
    errors.NoSuchEntry: errno.ENOENT,
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
    errors.LeaseLost: errno.EROFS,
    errors.LeaseLapsed: errno.EIO,
    errors.StaleFile: errno.ESTALE,
    errors.DamagedCache: errno.EIO,
    errors.FileTooLarge: errno.EFBIG,
    errors.NotSupportedHere: errno.EOPNOTSUPP,
    errors.NoSuchAttribute: errno.ENODATA,
    errors.NoRoomForAttributes: errno.ENOSPC,
    errors.UploadFailed: errno.EIO,
    storage.StorageError: errno.EIO,
    storage.NotFound: errno.ESTALE,
    storage.PreconditionFailed: errno.ESTALE,
    storage.RangeNotSatisfiable: errno.EIO,
    storage.UploadNotFound: errno.EIO,
    storage.InvalidPart: errno.EIO,
    storage.EntityTooSmall: errno.EIO,
    storage.EntityTooLarge: errno.EFBIG,
    storage.InvalidKey: errno.ENAMETOOLONG,
    storage.InvalidMetadata: errno.EIO,
    storage.InvalidRequest: errno.EIO,
    storage.NotSupported: errno.EIO,
    storage.AccessDenied: errno.EACCES,
    storage.AuthenticationFailed: errno.EIO,
    storage.ClockSkewed: errno.EIO,
    storage.BucketNotFound: errno.EIO,
    storage.WrongRegion: errno.EIO,
    storage.QuotaExceeded: errno.EDQUOT,
    storage.ObjectArchived: errno.EIO,
    storage.StoreCorrupt: errno.EIO,
    storage.Throttled: errno.EIO,
    storage.Unavailable: errno.EIO,
    storage.ChecksumMismatch: errno.EIO,
    storage.ConcurrentRequest: errno.EIO,
    storage.NotSent: errno.EIO,
    storage.Suspended: errno.EIO,
    storage.NoThread: errno.EIO,
    storage.Fenced: errno.EROFS,
}


class Unforeseen(Exception):
    """An exception that nobody mapped."""


class NotEvenAnException(BaseException):
    """What a library may raise past every `except Exception`."""


def family(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from family(subclass)


def of_product(cls: type[Exception]) -> bool:
    return cls.__module__.startswith(("fusefs.", "backends."))


async def answer(raised: BaseException) -> int:
    """Return the errno that the kernel would get from a handler that raises."""

    @errno_boundary
    async def handler() -> None:
        raise raised

    with pytest.raises(pyfuse3.FUSEError) as caught:
        await handler()
    assert isinstance(caught.value.errno, int)
    return caught.value.errno


CLASSES = [
    cls
    for base in (errors.FilesystemError, storage.StorageError)
    for cls in dict.fromkeys(family(base))
    if of_product(cls)
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
async def test_every_class_has_an_intended_errno(cls: type[Exception]) -> None:
    assert cls in INTENDED, f"decide what a caller sees of {cls.__name__}"
    assert await answer(cls("why")) == INTENDED[cls]


def test_every_class_that_is_defined_belongs_to_a_call() -> None:
    """But those that end a command before anything is mounted."""
    defined = {
        cls
        for module in (errors, storage)
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, Exception) and of_product(cls)
    }
    assert defined - set(INTENDED) == {errors.ConfigError, *family(errors.MountError)}


def test_a_new_subclass_has_the_errno_of_its_base() -> None:
    class QuotaOfFilesExceeded(storage.QuotaExceeded):
        pass

    assert errno_of(QuotaOfFilesExceeded()) == errno.EDQUOT


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.EROFS, errno.ENOENT]
)
async def test_an_error_of_the_local_disk_keeps_its_errno(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert await answer(OSError(number, "no room")) == number
    assert "no room" in caplog.text


@pytest.mark.parametrize(
    "raised",
    [
        OSError(),
        OSError("only a sentence"),
        OSError(0, "a success"),
        OSError(-5, "a number of the kernel's"),
        OSError(512, "ERESTARTSYS"),
        OSError("no number", "at all"),
        OSError(errno.ENOSYS, "the kernel would never ask again"),
    ],
    ids=repr,
)
async def test_an_errno_that_the_kernel_would_misunderstand_is_eio(raised: OSError) -> None:
    assert await answer(raised) == errno.EIO


@pytest.mark.parametrize(
    "raised",
    [
        Unforeseen("deep inside"),
        KeyError("deep inside"),
        RecursionError("deep inside"),
        AssertionError("deep inside"),
        NotEvenAnException("deep inside"),
        StopIteration("deep inside"),
    ],
    ids=lambda raised: type(raised).__name__,
)
async def test_what_nobody_foresaw_is_eio_with_a_traceback_in_the_log(
    raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    assert await answer(raised) == errno.EIO
    assert "handler" in caplog.text, "the log names the operation"
    assert "Traceback" in caplog.text
    assert "deep inside" in caplog.text


async def test_out_of_memory_is_enomem() -> None:
    assert await answer(MemoryError()) == errno.ENOMEM


async def test_the_log_tells_why_a_store_failed(caplog: pytest.LogCaptureFixture) -> None:
    """One line: a store that is away for an hour must not fill the log with tracebacks."""
    await answer(storage.Unavailable("connection refused"))
    assert "Unavailable: connection refused" in caplog.text
    assert "Traceback" not in caplog.text


async def test_what_posix_expects_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await answer(errors.NoSuchEntry("x"))
    await answer(errors.DirectoryNotEmpty("x"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        (ExceptionGroup("one", [errors.NoSuchEntry("x")]), errno.ENOENT),
        (ExceptionGroup("two", [storage.QuotaExceeded("x"), ValueError("y")]), errno.EDQUOT),
        (ExceptionGroup("outer", [ExceptionGroup("inner", [OSError(errno.ENOSPC, "x")])]), errno.ENOSPC),
        (ExceptionGroup("of an answer", [pyfuse3.FUSEError(errno.EROFS)]), errno.EROFS),
        (BaseExceptionGroup("worse", [NotEvenAnException(), errors.NoSuchEntry("x")]), errno.EIO),
    ],
    ids=str,
)
async def test_a_group_has_the_errno_of_its_first_exception(raised: BaseException, number: int) -> None:
    """Nurseries wrap what their tasks raise, and nurseries nest."""
    assert await answer(raised) == number


async def test_an_answer_of_the_handler_itself_goes_through() -> None:
    """ENOSYS too: that is how a handler says that it need not be asked again."""
    assert await answer(pyfuse3.FUSEError(errno.ENOSYS)) == errno.ENOSYS


async def test_a_result_goes_through() -> None:
    @errno_boundary
    async def handler(number: int, *, factor: int) -> int:
        return number * factor

    assert await handler(6, factor=7) == 42
    assert handler.__name__ == "handler"


async def test_a_cancellation_passes() -> None:
    """The mount ends by cancelling its handlers; answering EIO instead would let them run on."""

    @errno_boundary
    async def handler() -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        scope.cancel()
        await handler()
    assert scope.cancelled_caught


async def test_a_cancellation_inside_a_group_passes() -> None:
    """And takes nothing but itself with it: the rest of the group would end the mount."""

    @errno_boundary
    async def handler() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            raise BaseExceptionGroup("both", [ValueError("lost"), cancelled]) from None

    with trio.CancelScope() as scope:
        scope.cancel()
        await handler()
    assert scope.cancelled_caught


async def test_a_handler_without_an_answer_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for raised in (
        pyfuse3.FUSEError(errno.EIO),
        KeyError(5),
        NotEvenAnException(),
        ExceptionGroup("g", [ValueError()]),
    ):

        @silent_boundary
        async def forget(raised: BaseException = raised) -> None:
            raise raised

        await forget()
    assert caplog.text.count("Traceback (most recent call last)") >= 3


async def test_a_handler_without_an_answer_can_be_cancelled() -> None:
    @silent_boundary
    async def forget() -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        scope.cancel()
        await forget()
    assert scope.cancelled_caught
