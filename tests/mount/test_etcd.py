"""etcd on a mount whose store is 20 ms away loses itself, daemon and cache at once: what was acknowledged is there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fusefs.stored_lease import LEASE_KEY
from tests.support.bucket import Bucket
from tests.support.etcd import Etcd
from tests.support.mounts import Mount, wait_until

CLIENTS = 8


@pytest.fixture
def etcd(far_mount: Mount, tmp_path: Path) -> Iterator[Etcd]:
    """An etcd that runs on the mount."""
    etcd = Etcd(far_mount.path / "data", tmp_path / "etcd.log")
    etcd.start()
    yield etcd
    etcd.discard()


def test_etcd_loses_nothing_acknowledged_with_the_host(far_mount: Mount, etcd: Etcd) -> None:
    """Eight clients put keys; server and daemon are killed, one or the other first, and the next mount has an empty
    cache: every key that was acknowledged has its value, and the database is whole.
    """
    expected: dict[str, str] = {}
    for first, second in ((etcd.kill, far_mount.kill), (far_mount.kill, etcd.kill)):
        with etcd.clients(CLIENTS) as acknowledged:
            wait_until(partial(_has, acknowledged, 200), "acknowledged keys")
            first()
            second()
        expected |= acknowledged
        etcd.wait_for_end()
        far_mount.mount_cold()
        etcd.start()
        assert etcd.content().items() >= expected.items()
    etcd.stop()
    etcd.check()


def test_etcd_loses_nothing_when_its_recovery_is_killed(far_mount: Mount, etcd: Etcd, bucket: Bucket) -> None:
    """The host is lost, then the next one while it mounts, and the one after while etcd starts there: the fourth has
    every key that the first has acknowledged.
    """
    with etcd.clients(CLIENTS) as acknowledged:
        wait_until(partial(_has, acknowledged, 200), "acknowledged keys")
        far_mount.kill()
        etcd.kill()
    etcd.wait_for_end()
    lease = bucket.etag(LEASE_KEY)
    far_mount.die_mounting(lambda: bucket.etag(LEASE_KEY) != lease)
    far_mount.mount_cold()
    etcd.launch()
    etcd.kill()  # first: it would go on in the directory below the mount
    far_mount.kill()
    etcd.wait_for_end()
    far_mount.mount_cold()
    etcd.start()
    assert etcd.content().items() >= acknowledged.items()


def _has(acknowledged: dict[str, str], count: int) -> bool:
    return len(acknowledged) >= count
