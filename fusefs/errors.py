"""What fusefs itself finds wrong: one class per reaction, no errno and no text of the kernel's.

Classes below `FilesystemError` say what is wrong with one call on the tree; `fusefs.errno_boundary` holds the table
from them (and from `backends.errors`) to what the caller sees. `ConfigError` and `MountError` (with what is below it)
stop a command before anything is mounted; their message is one line for the operator.
"""

from __future__ import annotations


class FilesystemError(Exception):
    """One call on the tree cannot be done. Base of the classes that reach the caller of a system call."""


class NoSuchEntry(FilesystemError):
    """The directory has no entry of this name, or the directory itself was removed."""


class NoSuchInode(FilesystemError):
    """The kernel asks for an inode that it was never told of, or has forgotten. React: it must look up again."""


class BadHandle(FilesystemError):
    """The handle is not open, or not open for this: a write on one that was opened for reading."""


class EntryExists(FilesystemError):
    """The name is taken, and the call was to make a new entry."""


class NotADirectory(FilesystemError):
    """A component that must be a directory is none."""


class IsADirectory(FilesystemError):
    """The call is for anything but a directory, and this is one."""


class DirectoryNotEmpty(FilesystemError):
    """The directory has entries, and the call removes or replaces only empty ones."""


class NameTooLong(FilesystemError):
    """A name is over 255 bytes, a link's target over 4,095, or a whole path makes a key over 1,024 bytes."""


class CrossesReserved(FilesystemError):
    """The name is `.fusefs` at the root, which holds our own objects, or stands for a key that is no name."""


class InvalidArgument(FilesystemError):
    """An argument makes no sense: a directory moved below itself, readlink of a file, a flag without a meaning."""


class OperationNotPermitted(FilesystemError):
    """Nobody of this caller's kind may do it, whatever the permission bits say."""


class ReadOnlyFilesystem(FilesystemError):
    """The mount is read-only, by option or because it can no longer write to the store."""


class StaleFile(FilesystemError):
    """The object was changed or removed in the bucket under a file of this mount. What was written here is kept."""


class DamagedCache(FilesystemError):
    """The local disk has damaged bytes, and they are nowhere else or cannot be had now. React: fetch them again."""


class FileTooLarge(FilesystemError):
    """The file would be larger than an object can be."""


class NotSupportedHere(FilesystemError):
    """The call exists, and this file system does not do it: no file has an extended attribute of such a name."""


class NoSuchAttribute(FilesystemError):
    """The inode has no extended attribute of this name."""


class NoRoomForAttributes(FilesystemError):
    """The inode would have more bytes of extended attributes than can be kept."""


class UploadFailed(FilesystemError):
    """An earlier upload of this file failed and has not succeeded since. The bytes are kept; `__cause__` says why."""


class LeaseLost(ReadOnlyFilesystem):
    """Another mount writes this prefix now, or may: the lease is gone for good. What was written here is kept."""


class LeaseLapsed(FilesystemError):
    """The lease could not be renewed in time, and nobody is known to have taken it. React: as to an outage.

    Whoever waits for the lease has it when that has lasted too long; nothing is confirmed before it is held again.
    """


class ConfigError(Exception):
    """The configuration is wrong. The message is one line that names the key; the command exits with status 2."""


class MountError(Exception):
    """The mount cannot be made. The message is one line: what is wrong, and what to do about it."""


class LeaseHeld(MountError):
    """Another mount, which is alive, holds the lease of the prefix. React: end that one, or wait for its end."""


class LeaseDamaged(MountError):
    """What is under the lease's key cannot be read. React: look at it; nobody may write before it is removed."""


class LogDamaged(MountError):
    """A batch of the log is not what was written. React: nothing is applied; somebody decides what to save."""


class BatchDamaged(LogDamaged):
    """It is known which batch: the one under `key`, with its place in the log. React: as above, or look before it.

    `where` is the store that has it, for people; "" for the mounted one.
    """

    def __init__(self, key: str, position: tuple[int, int], why: str, where: str = "") -> None:
        self.shown = f"{key!r} in {where}" if where else repr(key)
        super().__init__(
            f"the log is damaged, and nothing of it was applied: {self.shown}: {why};"
            " `fusefs recover` tells what can be saved"
        )
        self.key = key
        self.position = position
        self.why = why
        self.where = where


class BatchRemoved(BatchDamaged):
    """It was acknowledged, as a later one says, and somebody has removed it: a rule of the bucket, or a hand."""


def first_cause(error: BaseException) -> BaseException:
    """Return the first error in the groups that nurseries have made of it, or the error where they have not."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def let_go_of_frames(error: Exception) -> None:
    """Let an error that is kept keep nothing of what failed: its frames, and those of its causes, have the bytes."""
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and each.__traceback__ is not None:
            each.__traceback__ = None
            waiting += [each.__cause__, each.__context__]
