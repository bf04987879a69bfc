"""The publisher over a whole tree: when it publishes, what it costs, and what it promises about failures."""

from __future__ import annotations

from pathlib import Path

import trio.testing

from backends.memory import MemoryStorage
from tests.core.tree import open_tree, stored, stored_metadata


async def test_what_was_written_is_an_object_of_the_same_bytes(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/a", b"bytes")
        await tree.publish_all()
        assert await stored(storage) == {"d/a": b"bytes", "d/": b""}
        assert (await stored_metadata(storage))["d/a"]["mode"] == str(0o100644)
        assert await tree.read_file("d/a") == b"bytes"
        assert await tree.names() == ["d"]
