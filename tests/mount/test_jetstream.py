"""JetStream, the store of NATS, on a mount whose store is 20 ms away loses itself, daemon and cache at once."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.distant import Distance
from tests.support.mounts import Mount, wait_until
from tests.support.nats import JetStream, nats_server, new_message

MESSAGE_SIZE = 1000


@pytest.fixture
def far_mount(new_mount: NewMount, distance: Distance) -> Mount:
    """A mount that has what nobody syncs in the log within a second, and publishes nothing that stays open."""
    flags = ("--commit-interval", "1 s", "--publish-interval", "1 h")
    return new_mount(None, "--endpoint", distance.endpoint, *flags).mount()


def test_jetstream_loses_no_more_than_a_commit_interval(
    far_mount: Mount, bucket: Bucket, tmp_path: Path
) -> None:
    """NATS syncs nothing before it acknowledges a message: what the log has got within `commit_interval` is there after
    the loss of server, daemon and cache, and of what came later the beginning, without a gap. The stream is purged in
    between, which renames a directory with open files.
    """
    log = tmp_path / "nats.log"
    expected: list[bytes] = []
    tried: list[bytes] = []
    for nats_dies_first in (True, False):
        with nats_server(far_mount.path, log) as (stream, process):
            if not tried:
                stream.make_stream()
            else:
                _assert_prefix(stream, expected, tried)
                stream.purge()
            expected = [new_message(MESSAGE_SIZE) for _ in range(300)]
            for message in expected:
                stream.publish(message)
            wait_until(partial(bucket.log_holds, expected[-1]), "the log to have it")
            with stream.publishing(MESSAGE_SIZE) as later:
                wait_until(partial(_has, later, 300), "later messages")
                _kill(process, far_mount, nats_dies_first)
            tried = expected + later
        far_mount.mount_cold()
    with nats_server(far_mount.path, log) as (stream, _):
        _assert_prefix(stream, expected, tried)


def _has(messages: list[bytes], count: int) -> bool:
    return len(messages) >= count


def _kill(process: subprocess.Popen[bytes], mount: Mount, nats_dies_first: bool) -> None:
    if nats_dies_first:
        process.kill()
        mount.kill()
    else:
        mount.kill()
        process.kill()


def _assert_prefix(stream: JetStream, expected: list[bytes], tried: list[bytes]) -> None:
    found = stream.messages()
    assert found[: len(expected)] == expected
    assert found == tried[: len(found)]
