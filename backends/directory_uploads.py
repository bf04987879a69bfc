"""Multipart uploads of the directory store, in its private area; they outlive the process that began them.

    uploads/ID/upload    key, metadata and time of the beginning, as JSON; locked by whoever ends the upload
    uploads/ID/NNNNN     part NNNNN with its record, see `directory_records`

An upload's directory comes into being complete, by a rename, and goes with one: nobody sees half of one. A part is
a file that was complete when it got its name, so a part uploaded again replaces the one before at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from backends import rules
from backends.base import Metadata, Part, UploadInfo
from backends.directory_files import append, closing, open_regular, sync_directory
from backends.directory_private import PrivateArea, lock_file
from backends.directory_records import read_version
from backends.errors import InvalidPart, StoreCorrupt, UploadNotFound

_UPLOAD_FILE: Final = "upload"
_UPLOAD_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    """What an upload was begun with."""

    key: str
    initiated_ns: int
    metadata: Metadata


class UploadArea:
    """All uploads of a store. Synchronous; every method may raise `UploadNotFound` for the upload it is given."""

    def __init__(self, private: PrivateArea) -> None:
        self._private: Final = private

    def begin(self, upload_id: str, record: UploadRecord) -> None:
        """Make an upload that has no parts, durably."""
        fresh = self._private.new_path()
        os.mkdir(fresh)
        try:
            self._fill(fresh, record)
            os.rename(fresh, self._path(upload_id))
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        sync_directory(self._private.uploads)

    def _fill(self, fresh: str, record: UploadRecord) -> None:
        text = json.dumps(
            {"key": record.key, "initiated_ns": record.initiated_ns, "metadata": dict(record.metadata)}
        )
        with open(os.path.join(fresh, _UPLOAD_FILE), "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(fresh)

    def find(self, key: str, upload_id: str) -> UploadRecord:
        """Return what an upload of `key` was begun with."""
        record = self._read(upload_id)
        if record is None or record.key != key:
            raise _not_found(key, upload_id)
        return record

    def list_all(self, prefix: str) -> Sequence[UploadInfo]:
        """Return the uploads of keys that begin with `prefix`, in the order of keys and then of age."""
        try:
            upload_ids = os.listdir(self._private.uploads)
        except FileNotFoundError:
            return []
        found = []
        for upload_id in filter(_UPLOAD_ID.fullmatch, upload_ids):
            record = self._read(upload_id)
            if record is not None and record.key.startswith(prefix):
                found.append(
                    UploadInfo(key=record.key, upload_id=upload_id, initiated_ns=record.initiated_ns)
                )
        return sorted(found, key=lambda upload: (upload.key.encode(), upload.initiated_ns))

    def place_part(self, key: str, upload_id: str, number: int, temporary: str) -> None:
        """Make a complete, recorded file the part of this number, durably."""
        directory = self._path(upload_id)
        try:
            os.rename(temporary, _part_path(directory, number))
            sync_directory(directory)
        except FileNotFoundError as error:
            raise _not_found(key, upload_id) from error

    @contextlib.contextmanager
    def ending(self, key: str, upload_id: str) -> Iterator[UploadRecord]:
        """Hold the upload against everybody else who would complete or abort it."""
        record = self.find(key, upload_id)
        path = os.path.join(self._path(upload_id), _UPLOAD_FILE)
        try:
            with lock_file(path, create=False):
                # Whoever held the lock before may have ended the upload.
                if not os.path.exists(path):
                    raise _not_found(key, upload_id)
                yield record
        except FileNotFoundError as error:
            raise _not_found(key, upload_id) from error

    def check_parts(self, upload_id: str, parts: Sequence[Part]) -> None:
        """Raise what `rules.check_completion` does, of the parts that are really there."""
        held: dict[int, Part] = {}
        for wanted in parts:
            present = self._read_part(upload_id, wanted.number)
            if present is not None:
                held[wanted.number] = present
        rules.check_completion(parts, held)

    def assemble(self, upload_id: str, parts: Sequence[Part], target: int) -> None:
        """Append the bytes of all parts to an open file. Raises `InvalidPart` if one was replaced meanwhile."""
        for part in parts:
            descriptor = open_regular(_part_path(self._path(upload_id), part.number))
            if descriptor is None:
                raise InvalidPart(f"part {part.number} is gone")
            with closing(descriptor):
                version = read_version(descriptor, f"part {part.number}")
                if version.etag != part.etag:
                    raise InvalidPart(f"part {part.number} was uploaded again during the completion")
                append(descriptor, target, version.size)

    def remove(self, upload_id: str) -> None:
        """Give an upload and its parts up. The caller holds it by `ending`."""
        self._private.discard(self._path(upload_id))
        sync_directory(self._private.uploads)

    def _path(self, upload_id: str) -> str:
        return os.path.join(self._private.uploads, upload_id)

    def _read(self, upload_id: str) -> UploadRecord | None:
        if not _UPLOAD_ID.fullmatch(upload_id):
            return None
        path = os.path.join(self._path(upload_id), _UPLOAD_FILE)
        try:
            with open(path, encoding="utf-8") as file:
                fields = json.load(file)
            return UploadRecord(
                key=fields["key"], initiated_ns=fields["initiated_ns"], metadata=fields["metadata"]
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreCorrupt(f"the file {path} is damaged: {error}") from error

    def _read_part(self, upload_id: str, number: int) -> Part | None:
        path = _part_path(self._path(upload_id), number)
        descriptor = open_regular(path)
        if descriptor is None:
            return None
        with closing(descriptor):
            version = read_version(descriptor, path)
        return Part(number=number, etag=version.etag, size=version.size)


def _part_path(directory: str, number: int) -> str:
    return os.path.join(directory, f"{number:05}")


def _not_found(key: str, upload_id: str) -> UploadNotFound:
    return UploadNotFound(f"there is no upload {upload_id!r} of {key!r}")
