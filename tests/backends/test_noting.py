"""A noting store keeps the contract; what it notes is tested with the notes, in tests/core/test_upload_notes.py."""

from __future__ import annotations

import pytest

from backends.base import ObjectStorage
from backends.memory import MemoryStorage
from backends.noting import NotingStorage
from fusefs.upload_notes import UploadNotes, Writer
from tests.backends.contract import StorageContract


class TestNotingStorage(StorageContract):
    """The whole contract; the notes are in a store of their own, so that they are in no listing."""

    @pytest.fixture
    def storage(self) -> ObjectStorage:
        return NotingStorage(MemoryStorage(), UploadNotes(MemoryStorage(), "mount", Writer.OWNER))
