"""Which multipart uploads a mount has under way, in a file of its cache directory.

An upload that is neither completed nor aborted costs its owner money for ever, and S3 does not say who began it. So
a mount notes its own, and the next one that finds the notes of a dead mount aborts what they name, and nothing else:
uploads of other programs, and of other hosts, are not touched.

The file has a JSON object per line: an upload that began, or the id of one that ended. A line that the crash cut off
is left out. Notes are a help and no promise: where the disk refuses them, the mount goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from backends.base import ObjectStorage
from backends.errors import StorageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedUpload:
    """An upload, and the store in which it is."""

    url: str
    key: str
    upload_id: str


class UploadNotes:
    """The notes of one mount; `url` names its store."""

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._url = url

    def begun(self, key: str, upload_id: str) -> None:
        """Note an upload of this mount."""
        self.remember(NotedUpload(url=self._url, key=key, upload_id=upload_id))

    def remember(self, upload: NotedUpload) -> None:
        """Note an upload of any mount: one that is to be aborted."""
        self._append(asdict(upload))

    def ended(self, upload_id: str) -> None:
        """Strike an upload out."""
        self._append({"ended": upload_id})

    def _append(self, line: dict[str, str]) -> None:
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            _log.warning("an upload is not noted in %s: %s", self._path, error.strerror)


def read_notes(path: Path) -> list[NotedUpload]:
    """Return the uploads that began and did not end, from the notes of a mount that is gone; none without notes."""
    uploads: dict[str, NotedUpload] = {}
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            noted = dict(json.loads(line))
            if "ended" in noted:
                uploads.pop(noted["ended"], None)
            else:
                upload = NotedUpload(**{name: str(value) for name, value in noted.items()})
                uploads[upload.upload_id] = upload
        except (ValueError, TypeError):
            _log.warning("%s has a damaged line", path)
    return list(uploads.values())


async def abort_orphans(storage: ObjectStorage, url: str, orphans: Iterable[NotedUpload]) -> None:
    """Abort the uploads that dead mounts of the store `url` have left, those that can be aborted now.

    The caller has taken all of them over into its own notes; `storage` (`backends.noting`) strikes out what is done.
    """
    for orphan in orphans:
        if orphan.url != url:
            continue
        try:
            await storage.resume_multipart(orphan.key, orphan.upload_id).abort()
        except StorageError as error:
            _log.warning("cannot abort an earlier mount's upload of %r: %s", orphan.key, error)
        else:
            _log.info("aborted an earlier mount's upload of %r", orphan.key)
