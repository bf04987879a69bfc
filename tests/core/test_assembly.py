"""What the parts of a mount are told of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from fusefs import assembly
from fusefs.config import Config


@pytest.mark.parametrize(
    ("flags", "workers"),
    [({}, 4), ({"upload_workers": 2}, 1), ({"upload_workers": 17}, 5), ({"ack_after_upload": False}, 16)],
)
def test_publishing_gives_way_to_commits_that_go_to_the_same_store(
    flags: Mapping[str, object], workers: int, tmp_path: Path
) -> None:
    config = Config.from_sources(
        url="s3://bucket",
        mountpoint=tmp_path / "mnt",
        flags={"cache_dir": str(tmp_path / "cache"), **flags},
        environment={},
    )
    assert assembly._options(config, "id").publish.workers_beside_commits == workers
