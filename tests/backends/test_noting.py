"""A noting store keeps the contract; what it notes is tested with the notes, in tests/core/test_upload_notes.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.base import ObjectStorage
from backends.memory import MemoryStorage
from backends.noting import NotingStorage
from fusefs.upload_notes import UploadNotes
from tests.backends.contract import StorageContract


class TestNotingStorage(StorageContract):
    """The whole contract."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> ObjectStorage:
        return NotingStorage(MemoryStorage(), UploadNotes(tmp_path / "uploads", "memory://"))
