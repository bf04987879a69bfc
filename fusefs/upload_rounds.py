"""The rounds in which an upload becomes whole while its file is written: what streams and patches have in common.

The object must be one whole version, and writers do not stop for an upload. So an upload works in rounds: it sends what
is missing, looks which parts were written again since they were read (`Content.unsent`), sends those again under their
numbers, and completes when, with no await in between, there is none and the log has all of the file. After
`FREE_ROUNDS` of it the writers of this file wait for the last round.
"""

from __future__ import annotations

from typing import Final

from fusefs.inodes import File
from fusefs.keys import RESERVED_PREFIX

FREE_ROUNDS: Final = 3
"""Rounds of an upload before the writers of its file have to wait."""


class MovedMeanwhile(Exception):
    """An attempt has to begin anew.

    Its inode has lost the name under which the object was about to appear, and the log may never have told of that; or
    what it was to replace has gone.
    """


class FileWasCut(Exception):
    """The file has become so much shorter that what went up of it is of no use."""


def check_name(file: File, key: str) -> None:
    """Raise `MovedMeanwhile` if an object would appear where the log may not tell of the file.

    Renames do not wait for its batches. Below the reserved prefix a recovery looks for all that is ours, and each
    record tells under which key the bucket has the file.
    """
    known = [file.path_key, file.version.key if file.version is not None else None]
    if not key.startswith(RESERVED_PREFIX) and not (file.linked and key in known):
        raise MovedMeanwhile(f"{key!r} is not the name of its file any more")
