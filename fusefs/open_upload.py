"""What is known of an upload while its file is being written: which parts the bucket has, and how to ask for more.

The stream that sends the parts writes it, and the log reads it: bytes that a part holds need not be carried again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from fusefs.log_records import StoredPart


@dataclass(slots=True)
class OpenUpload:
    """The upload that is to become the file's object, and the parts of it that are as the file is."""

    key: str
    upload_id: str
    parts: dict[int, StoredPart] = field(default_factory=dict)
    #: Those that the log refers to: until it has their bytes, the bucket has to keep them.
    logged: set[int] = field(default_factory=set)
    #: Which key the file had by its name when the log was last told of the upload; "" if it was not.
    told_under: str = ""


@dataclass(eq=False, slots=True)
class Flush:
    """How a stream is asked to let the bucket have every part that is full, now."""

    #: Wakes the stream.
    wake: trio.Event
    #: Bytes of the part that comes next: whoever lacks fewer has nothing to wait for.
    part_size: int
    asked: bool = False
    done: trio.Event = field(default_factory=trio.Event)

    async def ask(self) -> None:
        """Return when that is so, or the stream is not to be asked any more."""
        self.asked = True
        self.wake.set()
        await self.done.wait()
