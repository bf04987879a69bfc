"""The store in a directory keeps the contract, and what it promises beyond it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.base import ObjectStorage
from backends.directory import DirectoryStorage
from tests.backends.contract import StorageContract


class TestDirectoryStorage(StorageContract):
    """The whole contract, as S3 keeps it."""

    @pytest.fixture
    async def storage(self, tmp_path: Path) -> AsyncIterator[ObjectStorage]:
        store = DirectoryStorage(tmp_path)
        await store.probe()
        yield store
        await store.aclose()
