"""A mount and a plain directory stay the same, whatever calls they get; `scripts/soak` goes on with other calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.arena import Arena, DirectoryObjects, Objects
from tests.support.differential import CONFIGURATION, run

SEED = 4


@pytest.mark.parametrize("store", ["file", "s3"])
def test_same_as_a_plain_directory(
    store: str, new_mount: NewMount, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    configuration = tmp_path / "fusefs.toml"
    configuration.write_text(CONFIGURATION)
    flags = ["--config", str(configuration)]
    objects: Objects
    if store == "file":
        bucket = tmp_path / "bucket"
        bucket.mkdir()
        objects, url = DirectoryObjects(bucket), f"file://{bucket}"
    else:
        objects, url = request.getfixturevalue("bucket"), None
        flags += ["--multipart-part-size", "5 MiB"]
    mount = new_mount(url, *flags).mount()
    arena = Arena(mount, objects, tmp_path / "plain", store_is_tree=store == "s3")
    run(arena, random_seed=SEED, runs=5, steps=40)
