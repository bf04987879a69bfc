"""What the log has yet to be told: inodes, and objects that are to be deleted, of which it has an older state or none.

    not noted -> noted (`changed`) -> told ahead (`note_told_ahead`) -> not noted (`clear`)

What does not fit into one batch goes ahead in batches that count only together with the last one of their commit. So
it stays noted until that is made, and is told again where it has changed since.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from fusefs.capture import has_ended_upload, is_behind
from fusefs.inodes import Alias, Directory, Inode, is_joined
from fusefs.log_records import Position
from fusefs.moves import Moves
from fusefs.versions import Version


class Unlogged:
    """What changed since the last commit, whoever changed it.

    Everything that is noted, or was told, has a name in the log (`Inode.log_id`). What was told ahead is noted as well,
    and has not changed since, but for bytes of files: `fusefs.capture` knows which of them the log lacks.
    """

    def __init__(self) -> None:
        #: Not the epoch: where a lease was removed these begin again, and objects carry the ids for ever.
        self._term_id = secrets.token_hex(6)
        self._next_id = 1

        #: Inodes of which the log has an older state; True where a commit has to tell of them.
        self._inodes: dict[Inode, bool] = {}
        #: Directories with another name: what is below them belongs to `_inodes`, by the time of the next capture.
        self._moves = Moves()
        self._leftovers: dict[Version, bool] = {}
        #: Of both: what batches since the last commit have told as it is, and will count with the next one.
        self._ahead: set[Inode | Version] = set()
        #: Objects of which the log may say that they are another's, or to be deleted: the next batch says otherwise.
        self._in_use: dict[Version, None] = {}
        #: Files with an object made of parts to which the log refers: the next batch says that it has them no more.
        self._completed: dict[Inode, None] = {}

    def __len__(self) -> int:
        """How many inodes and objects are noted. What is only in use, or completed, is none of them."""
        self._note_moved()
        return len(self._inodes) + len(self._leftovers)

    @property
    def inodes(self) -> Collection[Inode]:
        """The inodes that are noted, but for those below directories that were renamed just now."""
        return self._inodes.keys()

    @property
    def is_urgent(self) -> bool:
        """Whether a commit has to tell of anything, and not only the next batch that there is."""
        return any(self._inodes.values()) or any(self._leftovers.values())

    # What there is to tell

    def name(self, inode: Inode) -> None:
        """Give an inode a name in the log, if it has none yet."""
        if not inode.log_id:
            inode.log_id = f"{self._term_id}-{self._next_id:x}"
            self._next_id += 1

    def changed(self, inode: Inode) -> None:
        """As `ChangeLog`."""
        self.name(inode)
        self._inodes[inode] = True
        self._ahead.discard(inode)

    def moved(self, directory: Directory) -> None:
        """As `ChangeLog`."""
        self._moves.add(directory)

    def touched(self, inode: Inode) -> None:
        """As `ChangeLog`."""
        self.name(inode)
        self._inodes.setdefault(inode, False)
        self._ahead.discard(inode)

    def left_over(self, version: Version, *, waits: bool) -> None:
        """As `ChangeLog`."""
        self._leftovers[version] = waits
        self._ahead.discard(version)

    def left_over_still(self, version: Version) -> None:
        """Note an object of which the log has to say again that it is to be deleted; nothing new waits for that."""
        self._leftovers.setdefault(version, False)

    def gone(self, version: Version) -> None:
        """As `ChangeLog`."""
        self._leftovers.pop(version, None)

    def in_use(self, version: Version) -> None:
        """As `ChangeLog`."""
        self._in_use[version] = None
        self.gone(version)

    def completed(self, inode: Inode) -> None:
        """Note that an upload to which the log refers is the object of a file now. The log is not needed for that."""
        self._completed[inode] = None

    def forget(self, inode: Inode) -> None:
        """Note that the log has the inode as it is."""
        self._inodes.pop(inode, None)

    def forget_times(self, inode: Inode) -> None:
        """Forget the inode if times are all that the log lacks of it: the bucket has them."""
        if not self._inodes.get(inode, True):
            del self._inodes[inode]

    def _note_moved(self) -> None:
        for inode in self._moves.take():
            self.changed(inode)

    def is_noted(self, inode: Inode) -> bool:
        """Return whether the next batch tells of the inode, if it is worth that."""
        self._note_moved()
        return inode in self._inodes

    def is_behind(self, inode: Inode) -> bool:
        """As `ChangeLog`."""
        self._note_moved()
        return self._inodes.get(inode, False)

    # What the next batch tells

    def to_tell(self) -> Iterator[Inode]:
        """Yield what the next batch has to tell of, if there is room for it."""
        self._note_moved()
        for inode in chain(self._inodes, self._completed_alone()):
            if self._is_worth_telling(inode) and (inode not in self._ahead or is_behind(inode)):
                yield inode

    def _completed_alone(self) -> Iterator[Inode]:
        """Yield files of which there is nothing to tell but that an upload has become their object.

        Or else the upload would be looked for as long as the log is needed for others, and be missed when somebody else
        has removed the object.
        """
        return (each for each in self._completed if each not in self._inodes and has_ended_upload(each))

    def leftovers_to_tell(self) -> list[Version]:
        """Return the objects of which the next batch has to say that they are to be deleted."""
        return [version for version in self._leftovers if version not in self._ahead]

    def in_use_to_tell(self) -> Collection[Version]:
        """Return the objects of which the next batch has to say that they are somebody's."""
        return self._in_use.keys()

    def _is_worth_telling(self, inode: Inode) -> bool:
        """Return whether a reader of the log has to know; of what came and went between two batches it has not.

        That what has an object has no name any more is told once. Of an inode of which not all names are known yet
        nobody has changed more than a directory above, which says where everything below it is (`Directory.source`).
        """
        if not is_joined(inode):
            return False
        return inode.linked or (inode.version is not None if inode.is_in_log is None else inode.is_in_log)

    def told_from(self, inode: Inode, position: Position) -> Position:
        """Return in which batch a commit begins to tell of an inode that the one at `position` has.

        A further name is nothing without its inode, which may be in a batch before.
        """
        told = inode.subject.told_at
        return told if isinstance(inode, Alias) and inode.of in self._ahead and told is not None else position

    def note_told_ahead(self, inodes: Iterable[Inode], leftovers: Iterable[Version]) -> None:
        """Note that a batch tells of these as they are, and counts only with a further one."""
        self._ahead.update(inodes, leftovers)

    def note_told_in_use(self, versions: Iterable[Version]) -> None:
        """Note that the log says that these are in use."""
        for version in versions:
            del self._in_use[version]

    def clear(self) -> None:
        """Note that a commit has told of everything that is worth it."""
        self._inodes.clear()
        self._leftovers.clear()
        self._completed.clear()
        self._ahead.clear()
