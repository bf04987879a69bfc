"""The differential test for as long as it is told, with seeds that no run had before; `scripts/soak` starts it.

    scripts/soak [SECONDS] [SEED]      an hour, and a random seed

Each round has a seed of its own, counted up from the first, and a new mount; rounds take turns between a bucket in
a directory and one on a real S3 server. The first difference ends it. The line that it prints replays that round
alone, and shortens what led there.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.arena import Arena, DirectoryObjects, Objects
from tests.support.bucket import Bucket
from tests.support.differential import CONFIGURATION, run
from tests.support.mounts import Mount
from tests.support.seaweedfs import SeaweedFS

RUNS: Final = 10
STEPS: Final = 60


@contextmanager
def _arena(server: SeaweedFS, *, on_s3: bool) -> Iterator[Arena]:
    with tempfile.TemporaryDirectory(prefix="fusefs-soak-") as name:
        place = Path(name)
        configuration = place / "fusefs.toml"
        configuration.write_text(CONFIGURATION)
        flags = ["--config", str(configuration)]
        objects: Objects
        if on_s3:
            objects = bucket = Bucket(server.client(), server.bucket, f"t{uuid.uuid4().hex}/")
            flags += ["--endpoint", server.endpoint, "--multipart-part-size", "5 MiB"]
            mount = Mount(place / "mount", bucket.url, *flags, environment=server.environment)
        else:
            (place / "bucket").mkdir()
            objects = DirectoryObjects(place / "bucket")
            mount = Mount(place / "mount", f"file://{place / 'bucket'}", *flags)
        try:
            yield Arena(mount.mount(), objects, place / "plain", store_is_tree=on_s3)
            assert "Traceback" not in mount.log, mount.log
        finally:
            mount.discard()
            objects.clear()


def _round(server: SeaweedFS, number: int, *, shrink: bool) -> None:
    began = time.monotonic()
    on_s3 = number % 2 == 1
    with _arena(server, on_s3=on_s3) as arena:
        run(arena, random_seed=number, runs=RUNS, steps=STEPS, shrink=shrink)
    store = "S3" if on_s3 else "a directory"
    print(f"seed {number}, {store}: the same, {time.monotonic() - began:.0f} s", flush=True)


def main(seconds: float = 3600, first: int | None = None) -> None:
    """Go on for `seconds`; 0 is one round, whose steps are shortened if it fails."""
    number = random.randrange(10**6) if first is None else first
    print(f"soaking from seed {number}", flush=True)
    deadline = time.monotonic() + seconds
    server = SeaweedFS()
    try:
        server.start()
        while True:
            try:
                _round(server, number, shrink=seconds == 0)
            except BaseException:
                print(f"seed {number} ended early; to replay it: scripts/soak 0 {number}", flush=True)
                raise
            number += 1
            if time.monotonic() >= deadline:
                return
    finally:
        server.close()


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 3600, int(sys.argv[2]) if sys.argv[2:] else None)
