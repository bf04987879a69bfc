"""A store that sends more or fewer bytes of an object than it has told: none of them are taken for the file's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from trio.testing import MockClock

from backends.base import Capabilities, RangeResult
from backends.errors import StoreCorrupt
from backends.memory import MemoryStorage
from fusefs.object_copy import copy_part
from fusefs.versions import Version
from tests.core.tree import open_tree

BODY = b"packed" * 100


class Unpacking(MemoryStorage):
    """Sends something else than it keeps, as Google does what has the Content-Encoding gzip."""

    def __init__(self, sent: bytes) -> None:
        super().__init__(capabilities=Capabilities(copy_part=False))
        self._sent = sent

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        found = await super().get_range(key, start, length, if_match=if_match)
        return replace(found, body=self._sent)


@pytest.fixture(params=[b"short", BODY + b"long"], ids=["short", "long"])
async def storage(request: pytest.FixtureRequest) -> Unpacking:
    storage = Unpacking(request.param)
    await storage.put("file", BODY)
    return storage


async def test_reading_is_an_error(storage: Unpacking, tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_tree(storage, tmp_path) as tree:
        with pytest.raises(StoreCorrupt, match=f"instead of {len(BODY)}"):
            await tree.read_file("file")


async def test_so_is_making_a_part_of_it(storage: Unpacking, autojump_clock: MockClock) -> None:
    """Or else an object of another length would be made where the store cannot copy parts."""
    upload = await storage.create_multipart("copy")
    version = Version("file", (await storage.head("file")).etag, len(BODY))
    with pytest.raises(StoreCorrupt, match=f"instead of {len(BODY)}"):
        await copy_part(storage, upload, 1, version, 0, len(BODY))
    await upload.abort()
