"""The store in memory keeps the contract, also while it plays a store that can do less."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from backends.base import Capabilities, ObjectStorage
from backends.memory import MemoryStorage
from tests.backends.contract import IGNORES_MISSING_CONDITIONS, StorageContract

POOR = Capabilities(
    create_only=False,
    if_match=False,
    conditional_complete=False,
    conditional_copy=False,
    conditional_delete=False,
    conditional_delete_many=False,
    copy_part=False,
)


class TestMemoryStorage(StorageContract):
    """The whole contract, as S3 keeps it."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[ObjectStorage]:
        store = MemoryStorage()
        yield store
        await store.aclose()


class TestMemoryStorageOfPoorCapabilities(StorageContract):
    """A store that ignores every condition and copies no parts."""

    expected_capabilities = POOR
    deviations = frozenset({IGNORES_MISSING_CONDITIONS})

    @pytest.fixture
    async def storage(self) -> AsyncIterator[ObjectStorage]:
        store = MemoryStorage(capabilities=POOR)
        yield store
        await store.aclose()
