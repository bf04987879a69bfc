"""What a store can answer instead of a result: one class per reaction of the caller.

Nothing but these classes crosses the seam. Each backend translates its own failures (an errno, a botocore
exception, an S3 error code) at the place where they occur, `raise Ours(...) from theirs`; the layers above
decide by class, by `retryable` and by `is_in_doubt`, never by the text of a message.

Messages are written for the person who reads the log: they name the key or the bucket, and never a secret.
"""

from __future__ import annotations

from typing import ClassVar


class StorageError(Exception):
    """A store could not do what it was asked. Base of every class here; raised itself for what nobody mapped."""

    #: Whether the same call may succeed if it is made again after a pause. A mutation whose answer was lost may
    #: have taken effect: whoever retries it asks the store what is there first.
    retryable: ClassVar[bool] = False

    #: Whether a mutation may have taken effect: nobody has heard of this attempt, or of one before it.
    is_in_doubt: bool = False


class NotFound(StorageError):
    """There is no object under the key. React: it does not exist, or somebody else removed it."""


class PreconditionFailed(StorageError):
    """A condition (`CreateOnly`, `IfMatch`, `if_match`) did not hold. React: somebody else changed the object."""


class RangeNotSatisfiable(StorageError):
    """The range begins at or after the end of the object. React: the object is shorter than was believed."""


class UploadNotFound(StorageError):
    """The multipart upload was completed, aborted or never begun. React: begin a new one."""


class InvalidPart(StorageError):
    """A completion names a part that the store does not have, or in the wrong order. React: begin a new upload."""


class EntityTooSmall(StorageError):
    """A part other than the last is smaller than the store's minimum. React: a defect of the plan."""


class EntityTooLarge(StorageError):
    """An object, a part or a copy is over the store's limit. React: EFBIG."""


class InvalidKey(StorageError):
    """The store cannot hold an object of this name (too long, a forbidden character). React: ENAMETOOLONG or EINVAL."""


class InvalidMetadata(StorageError):
    """User metadata is over the store's limit, or holds what it refuses. React: keep it elsewhere."""


class InvalidRequest(StorageError):
    """The store refused the request as malformed for a reason that has no class of its own. React: EIO, a defect."""


class NotSupported(StorageError):
    """The store does not implement the call. React: the fallback that `Capabilities` should have chosen."""


class AccessDenied(StorageError):
    """The credentials are good and may not do this. React: EACCES; at mount, say which permission is missing."""


class AuthenticationFailed(StorageError):
    """Credentials are missing, unknown, wrong or expired. React: at mount, say how to give them."""


class ClockSkewed(StorageError):
    """This host's clock differs too much from the store's. React: tell the operator to set the clock."""


class BucketNotFound(StorageError):
    """The bucket (or the directory that plays one) does not exist. React: at mount, say so; later, EIO."""


class WrongRegion(StorageError):
    """The bucket is in another region or under another endpoint. React: at mount, say which."""


class QuotaExceeded(StorageError):
    """The store has no room left for this account, or this disk. React: EDQUOT; nothing is thrown away."""


class ObjectArchived(StorageError):
    """The object lies in an archive class and must be restored before it can be read. React: EIO, with the reason."""


class StoreCorrupt(StorageError):
    """What the store returned contradicts itself (a checksum, a damaged file of ours). React: EIO, report, keep."""


class Throttled(StorageError):
    """The store asks for fewer requests. React: pause, longer than for `Unavailable`, and ask again.

    MinIO says the same of a write that has reached some of its drives, and may be there.
    """

    retryable = True
    is_in_doubt = True


class Unavailable(StorageError):
    """No answer, or one that says "not now": connection refused or lost, timeout, 5xx. React: pause and ask again."""

    retryable = True
    is_in_doubt = True


class ChecksumMismatch(StorageError):
    """The bytes were damaged on their way. React: send or fetch them again."""

    retryable = True
    is_in_doubt = True


class ConcurrentRequest(StorageError):
    """The store saw another request on the same key at the same time (S3's 409). React: ask again at once."""

    retryable = True


class NotSent(StorageError):
    """The request was not made, for a reason of this process. Says nothing about the store."""


class NoThread(NotSent):
    """This machine had no room for the thread that was to make the request. React: pause and ask again."""

    retryable = True


class Suspended(NotSent):
    """This process may not write at the moment. React: pause and ask again."""

    retryable = True


class Fenced(NotSent):
    """This process may not write any more, because another one does. React: EROFS; what is left is the other's."""


def is_outage(error: Exception) -> bool:
    """Return whether the store was asked for long and did not answer, which says nothing about one key."""
    return isinstance(error, StorageError) and error.retryable
