"""Fixtures for tests through a real mount: places to mount, and the bucket on the real S3 server behind them."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.support.bucket import Bucket
from tests.support.distant import Distance
from tests.support.mounts import PROGRAM, Mount
from tests.support.seaweedfs import READER_SECRET_KEY, SECRET_KEY, SeaweedFS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class NewMount(Protocol):
    """Makes a mount point with everything it needs, not mounted yet; without a URL, for the test's prefix."""

    def __call__(
        self,
        url: str | None = None,
        *flags: str,
        server: SeaweedFS | None = None,
        program: str = PROGRAM,
    ) -> Mount: ...


@pytest.fixture
def bucket(s3_server: SeaweedFS, s3_client: S3Client, s3_prefix: str) -> Iterator[Bucket]:
    """The test's own prefix on the S3 server, emptied after it."""
    bucket = Bucket(s3_client, s3_server.bucket, s3_prefix)
    yield bucket
    bucket.clear()


@pytest.fixture
def new_mount(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NewMount]:
    """Make mounts that are gone after the test, as `discarded_after` has it."""
    made: list[Mount] = []

    def make(
        url: str | None = None, *flags: str, server: SeaweedFS | None = None, program: str = PROGRAM
    ) -> Mount:
        directory = tmp_path / f"mount{len(made)}"
        if url is None:
            url = request.getfixturevalue("bucket").url
        environment = {}
        if url.startswith("s3:"):
            server = server or request.getfixturevalue("s3_server")
            flags = ("--endpoint", server.endpoint, *flags)
            environment = dict(server.environment)
        mount = Mount(directory, url, *flags, environment=environment, program=program)
        made.append(mount)
        return mount

    with discarded_after(made):
        yield make


@contextmanager
def discarded_after(mounts: Sequence[Mount]) -> Iterator[None]:
    """Let mounts be gone after the block. None of them may have met a defect or told a secret to its log."""
    yield
    logs = []
    for mount in mounts:
        logs.append(mount.log)
        mount.discard()
    for log in logs:
        assert "Traceback" not in log, log
        assert SECRET_KEY not in log
        assert READER_SECRET_KEY not in log


@pytest.fixture
def mount(new_mount: NewMount) -> Mount:
    """The test's prefix of the S3 server, mounted in the background."""
    return new_mount().mount()


@pytest.fixture
def distance(s3_server: SeaweedFS) -> Iterator[Distance]:
    """A way to the S3 server that is 20 ms long."""
    with Distance(s3_server.endpoint) as distance:
        yield distance


@pytest.fixture
def far_mount(new_mount: NewMount, distance: Distance) -> Mount:
    """The test's prefix, mounted from afar."""
    return new_mount(None, "--endpoint", distance.endpoint).mount()


@pytest.fixture
def hangup_is_heard() -> Iterator[None]:
    """Let SIGHUP end what the tests start, also where they themselves are to survive it (nohup)."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
