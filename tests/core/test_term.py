"""Where terms keep their logs, and that the next one knows: in the bucket, on a disk, with a lease or not."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import GIB, ObjectStorage
from backends.errors import AccessDenied, StorageError, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from backends.metered import MeteredStorage
from backends.prefixed import PrefixedStorage
from fusefs.attributes import fresh
from fusefs.committer import Committer
from fusefs.config import Config
from fusefs.disk_log import open_disk_log
from fusefs.errors import MountError
from fusefs.inodes import Directory
from fusefs.journal_format import JOURNAL_PREFIX, SEAL_SIZES, batch_key
from fusefs.lease_acquisition import waiting_message
from fusefs.lease_record import LeaseRecord, LogEnd, LogPlace
from fusefs.log_places import old_log_parts
from fusefs.log_records import Position
from fusefs.log_repair import DAMAGED_PREFIX, Diagnosis, LogRepair
from fusefs.old_logs import LogPart, places
from fusefs.stage_budget import StageBudget
from fusefs.start_progress import StartProgress
from fusefs.stored_lease import DISK_KEY, LEASE_KEY
from fusefs.stores import OpenStore, open_local
from fusefs.term import (
    RELEASE_SECONDS,
    Term,
    alone_for,
    open_term,
    warn_of_mounts_above,
)
from fusefs.versions import Version
from tests.core.leases import record_in, take
from tests.core.logs import log_objects
from tests.core.tree import bare_failures
from tests.support.faulty import FaultyStorage

DISK: Final = {"ack_after_upload": False}
UNLEASED: Final = {"lease": False}


class Bucket:
    """A bucket, and mounts of it that end without having published anything."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        meter = MeteredStorage(MemoryStorage())
        self.store = OpenStore(meter, meter)
        #: What who starts a mount is shown.
        self.told: list[str] = []

    def config(self, host: str, flags: Mapping[str, object], url: str = "s3://bucket") -> Config:
        """What a mount is told that has the cache directory of a host."""
        return Config.from_sources(
            url=url,
            mountpoint=self._directory / "mnt",
            flags={"cache_dir": str(self._directory / host), **flags},
            environment={},
        )

    def disk(self, host: str) -> Path:
        """The directory of the log that a host has."""
        (directory,) = (self._directory / host / "log").iterdir()
        return directory

    def identity(self, host: str) -> Path:
        """The file that says which log that is."""
        return self.disk(host) / DISK_KEY

    async def batch(self, host: str, position: Position) -> bytes:
        """A batch of the log that a host has."""
        storage = open_local(self.disk(host))
        try:
            return (await storage.get_range(batch_key(position))).data
        finally:
            await storage.aclose()

    async def record(self) -> LeaseRecord:
        return await record_in(self.store.storage)

    async def refusal(self, host: str, **flags: object) -> str:
        """Why a mount is refused, which leaves the lease as it was."""
        before = await self.record()
        with pytest.raises(MountError) as refused:
            async with self.term(host, **flags):
                raise AssertionError("unreachable")
        assert await self.record() == before
        assert str(refused.value).isprintable()
        return str(refused.value)

    @asynccontextmanager
    async def term(self, host: str, **flags: object) -> AsyncIterator[Term]:
        """Be the writer, with the cache directory of a host."""
        with bare_failures():
            async with (
                open_term(
                    self.config(host, flags),
                    self.store,
                    mount_id="mount",
                    known_dead=(),
                    budget=StageBudget(GIB),
                    progress=StartProgress(self.told.append, trio.current_time),
                ) as term,
                trio.open_nursery() as nursery,
            ):
                assert term is not None
                nursery.start_soon(term.committer.run)
                yield term
                nursery.cancel_scope.cancel()

    async def confirm(self, host: str, key: str, **flags: object) -> list[tuple[int, int]]:
        """Let a mount commit something; return which batches of earlier ones it had to recover."""
        async with self.term(host, **flags) as term:
            for position, _ in places(term.old):
                attributes = fresh(mode=stat.S_IFDIR | 0o755, uid=0, gid=0, now_ns=0)
                term.committer.recovered(Directory(number=2, attributes=attributes), position)
            term.committer.left_over(Version(key, "etag", 1), waits=True)
            await term.committer.commit()
            return counting(term)


def counting(term: Term) -> list[tuple[int, int]]:
    return [(position.epoch, position.sequence) for position, _ in places(term.old)]


@pytest.mark.parametrize("first", [{}, UNLEASED, DISK, {**DISK, **UNLEASED}], ids=str)
@pytest.mark.parametrize("second", [{}, UNLEASED, DISK, {**DISK, **UNLEASED}], ids=str)
@pytest.mark.parametrize("before", [False, True], ids=["new", "used before"])
async def test_no_log_is_forgotten(
    before: bool, first: dict[str, object], second: dict[str, object], tmp_path: Path
) -> None:
    """Two mounts die one after the other, each with a log that nobody else has; the third finds both."""
    bucket = Bucket(tmp_path)
    epoch = 1
    if before:
        async with bucket.term("host") as term:
            term.committer.restored()
        epoch = 2
    assert await bucket.confirm("host", "a", **first) == []
    assert await bucket.confirm("host", "b", **second) == [(epoch, 1)]
    async with bucket.term("host") as term:
        assert counting(term) == [(epoch, 1), (epoch + 1, 1)]


@pytest.mark.parametrize("flags", [{}, UNLEASED], ids=str)
async def test_what_a_mount_that_has_died_leaves_is_that_of_a_crash(
    flags: dict[str, object], tmp_path: Path
) -> None:
    """Whether a lease tells of it or not: the index may be older than what it tells of."""
    bucket = Bucket(tmp_path)
    await bucket.confirm("host", "a", **flags)
    async with bucket.term("host") as term:
        assert term.follows_crash


async def test_a_term_that_has_written_nothing_is_ended_too(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Unless it was given back: nobody holds that any more."""
    bucket = Bucket(tmp_path)
    storage = bucket.store.storage
    for _ in range(2):
        async with bucket.term("host") as term:
            assert await log_objects(storage) == {}
            term.committer.restored()
    held = replace(await bucket.record(), released=False, logs=(LogPlace("", 2),))
    await storage.put(LEASE_KEY, held.encode())
    async with bucket.term("host"):
        assert await log_objects(storage) == {batch_key(Position(2, 1)): max(SEAL_SIZES)}


@pytest.mark.parametrize(("log_size", "is_too_long"), [("2 KiB", True), ("1 MiB", False)])
async def test_a_log_is_as_long_as_its_option_says(log_size: str, is_too_long: bool, tmp_path: Path) -> None:
    bucket = Bucket(tmp_path)
    async with bucket.term("host", log_size=log_size) as term:
        for number in range(20):
            term.committer.left_over(Version(f"{number}", "etag", 1), waits=True)
            await term.committer.commit()
        noticed = trio.Event()

        async def notice(committer: Committer) -> None:
            await committer.wait_until_grown()
            noticed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(notice, term.committer)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert noticed.is_set() is is_too_long


@pytest.mark.parametrize("first", [DISK, {**DISK, **UNLEASED}], ids=str)
async def test_a_host_without_the_disk_is_refused(first: dict[str, object], tmp_path: Path) -> None:
    """As long as the log there is needed, once a mount with a lease has seen it."""
    bucket = Bucket(tmp_path)
    await bucket.confirm("host", "a", **first)
    await bucket.confirm("host", "b")
    with pytest.raises(MountError, match=f"is in the log at .*{tmp_path}/host/log/"):
        async with bucket.term("elsewhere"):
            raise AssertionError("unreachable")
    async with bucket.term("host") as term:
        assert counting(term) == [(1, 1), (2, 1)]


@pytest.mark.parametrize("why", ["damaged", "denied"])
async def test_who_is_refused_for_its_log_gives_the_lease_back(why: str, tmp_path: Path) -> None:
    """Nobody has to wait for it: neither the next attempt, nor a repair. And the mount before has died all the same."""
    bucket = Bucket(tmp_path)
    await bucket.confirm("host", "a")
    storage, key = bucket.store.storage, batch_key(Position(1, 1))
    faulty = FaultyStorage(bucket.store.backend)
    bucket.store = OpenStore(storage, MeteredStorage(faulty))
    before = (await storage.get_range(key)).data
    if why == "damaged":
        await storage.put(key, b"damaged")
    else:
        faulty.fail(AccessDenied, verb=Verb.GET_RANGE, key=key, times=math.inf)
    for _ in range(2):
        with pytest.raises(MountError, match="damaged" if why == "damaged" else "get_range"):
            async with bucket.term("host"):
                raise AssertionError("unreachable")
        assert (await bucket.record()).released
    await storage.put(key, before)
    faulty.heal()
    async with bucket.term("host") as term:
        assert counting(term) == [(1, 1)]
        assert term.follows_crash
    assert bucket.told == []


def named(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Let this host have a name."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)


def swapped(first: Path, second: Path) -> None:
    """Give each of two directories the other's name."""
    between = first.with_name("between")
    for source, target in ((first, between), (second, first), (between, second)):
        source.rename(target)


@pytest.mark.parametrize("second", [{}, UNLEASED, DISK, {**DISK, **UNLEASED}], ids=str)
async def test_another_disk_of_the_same_name_is_refused(second: dict[str, object], tmp_path: Path) -> None:
    """Host and path are the same, and the log is elsewhere; no attempt keeps a mount from it when it is back."""
    bucket = Bucket(tmp_path)
    await bucket.confirm("host", "a", **DISK)
    disk, identity = bucket.disk("host"), bucket.identity("host").read_text().strip()
    (tmp_path / "host").rename(tmp_path / "kept")
    for _ in range(2):
        refusal = await bucket.refusal("host", **second)
        assert refusal.startswith(
            "s3://bucket: what was confirmed and is not in the bucket yet is in the log at "
        )
        assert f"{socket.gethostname()}:{disk}, whose {DISK_KEY} says {identity}" in refusal
        assert "the disk that is there now is another one" in refusal
        assert (
            f"mount it there first, with --cache-dir {tmp_path / 'host'} and that disk; if it is lost"
            in refusal
        )
        assert f"remove the object {LEASE_KEY}" in refusal
    swapped(tmp_path / "host", tmp_path / "kept")
    async with bucket.term("host", **second) as term:
        assert counting(term) == [(1, 1)]


async def test_a_disk_on_a_host_of_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same log, and so it is under another path; the lease then says how both are named now."""
    bucket = Bucket(tmp_path)
    named(monkeypatch, "before")
    await bucket.confirm("host", "a", **DISK)
    named(monkeypatch, "after")
    assert await bucket.confirm("host", "b", **DISK) == [(1, 1)]
    identity = bucket.identity("host").read_text().strip()
    assert (await bucket.record()).logs == (
        LogPlace(f"after:{bucket.disk('host')}", 1, identity, LogEnd(2, 1)),
    )
    (tmp_path / "host").rename(tmp_path / "elsewhere")
    async with bucket.term("elsewhere", **UNLEASED) as term:
        assert counting(term) == [(1, 1), (2, 1)]
    async with bucket.term("elsewhere") as term:
        assert counting(term) == [(1, 1), (2, 1)]
        assert (await bucket.record()).logs == (
            LogPlace(f"after:{bucket.disk('elsewhere')}", 1, identity, LogEnd(2, 1)),
            LogPlace("", 3),
        )


async def as_before(storage: ObjectStorage) -> None:
    """Make the lease what an earlier version would have written."""
    document = json.loads((await storage.get_range(LEASE_KEY)).data)
    for log in document["logs"]:
        del log["disk"], log["acknowledged"]
    await storage.put(LEASE_KEY, json.dumps(document).encode())


@pytest.mark.parametrize("has_file", [True, False])
async def test_a_lease_of_an_earlier_version(
    has_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names a log by host and path alone, and the next mount there adds the identity."""
    bucket = Bucket(tmp_path)
    named(monkeypatch, "host")
    await bucket.confirm("host", "a", **DISK)
    await as_before(bucket.store.storage)
    if not has_file:
        bucket.identity("host").unlink()
    assert f"is in the log at host:{bucket.disk('host')}: mount it there" in await bucket.refusal("elsewhere")
    named(monkeypatch, "another")
    assert f"is in the log at host:{bucket.disk('host')}: mount it there" in await bucket.refusal("host")
    named(monkeypatch, "host")
    assert await bucket.confirm("host", "b", **DISK) == [(1, 1)]
    identity = bucket.identity("host").read_text().strip()
    assert (await bucket.record()).logs == (
        LogPlace(f"host:{bucket.disk('host')}", 1, identity, LogEnd(2, 1)),
    )


@pytest.mark.parametrize("flags", [{}, DISK, UNLEASED], ids=str)
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-2],
        lambda data: b"0" + data,
        lambda data: data.upper().replace(b"0", b"G"),
        lambda data: data + data,
        lambda data: b"\xff" * 33,
    ],
    ids=["empty", "shorter", "longer", "no digits", "twice", "no text"],
)
async def test_a_damaged_identity(
    damage: Callable[[bytes], bytes], flags: dict[str, object], tmp_path: Path
) -> None:
    """It is told of and never replaced; who writes it anew from the lease has the log again."""
    bucket = Bucket(tmp_path)
    await bucket.confirm("host", "a", **DISK)
    identity = bucket.identity("host")
    damaged = damage(identity.read_bytes().replace(b"1", b"0"))
    identity.write_bytes(damaged)
    refusal = await bucket.refusal("host", **flags)
    assert f"the file {identity} says which log is there, and is damaged: " in refusal
    assert LEASE_KEY in refusal
    assert identity.read_bytes() == damaged
    (log,) = (await bucket.record()).logs
    identity.write_text(log.disk)
    async with bucket.term("host", **flags) as term:
        assert counting(term) == [(1, 1)]


async def test_an_identity_that_is_gone(tmp_path: Path) -> None:
    """A new one does not make the log that of the lease, even if its batches are there."""
    bucket = Bucket(tmp_path)
    await bucket.confirm("host", "a", **DISK)
    before = bucket.identity("host").read_text()
    bucket.identity("host").unlink()
    assert f"{DISK_KEY} says {before.strip()}" in await bucket.refusal("host")
    bucket.identity("host").write_text(before)
    async with bucket.term("host") as term:
        assert counting(term) == [(1, 1)]


@pytest.mark.parametrize("verb", [Verb.GET_RANGE, Verb.PUT])
async def test_an_identity_that_cannot_be_read_or_written(
    verb: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No lease names a log before its identity is there."""
    bucket = Bucket(tmp_path)
    await bucket.confirm("host", "a", **DISK)
    disk, before = bucket.disk("host"), bucket.identity("host").read_bytes()
    faulty = FaultyStorage(MemoryStorage())
    faulty.fail(AccessDenied, verb=verb)
    monkeypatch.setattr("fusefs.disk_log.open_local", lambda directory: faulty)
    assert f"there can be no log in {disk}: " in await bucket.refusal("host", **DISK)
    assert bucket.identity("host").read_bytes() == before
    assert faulty.calls[-1].verb is verb


@pytest.mark.parametrize("terms", [1, 6])
@pytest.mark.parametrize("back", [{}, DISK, UNLEASED, {**DISK, **UNLEASED}], ids=str)
async def test_a_log_that_was_given_up_does_not_come_back(
    back: dict[str, object], terms: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its disk was lost, and the lease removed to go on without it. Terms begin again with the first then, and those
    since may be as many, or not; it is told of, kept, and not applied over what was done since.
    """
    bucket = Bucket(tmp_path)
    for _ in range(3):
        async with bucket.term("host") as term:
            term.committer.restored()
    assert await bucket.confirm("host", "given up", **DISK) == []
    before = await bucket.batch("host", Position(4, 1))
    await bucket.store.storage.delete(LEASE_KEY)
    for number in range(1, terms + 1):
        async with bucket.term("elsewhere") as term:
            assert term.lease.epoch == number
            term.committer.restored()
    assert await bucket.confirm("host", "new", **back) == []
    async with bucket.term("host") as term:
        assert counting(term) == [(max(terms, 4) + 1, 1)]
    assert "was given up" in caplog.text
    kept = bucket.disk("host") / DAMAGED_PREFIX / batch_key(Position(4, 1)).removeprefix(JOURNAL_PREFIX)
    assert kept.read_bytes() == before


async def test_each_prefix_has_a_log_of_its_own_on_the_disk(tmp_path: Path) -> None:
    """Also with one cache directory: nothing is taken for what another prefix, or service, needs."""
    bucket = Bucket(tmp_path)
    identities = set()
    for url, flags in (
        ("s3://bucket", {}),
        ("s3://bucket/prefix", {}),
        ("s3://other", {}),
        ("s3://bucket", {"endpoint": "https://s3.example.com"}),
    ):
        for _ in range(2):
            async with open_disk_log(bucket.config("host", flags, url)) as log:
                identities.add((log.place, log.disk))
    assert len({place for place, _ in identities}) == len({disk for _, disk in identities}) == 4
    assert len(identities) == 4


async def test_mounts_that_begin_at_once_agree_on_the_identity(tmp_path: Path) -> None:
    config = Bucket(tmp_path).config("host", {})
    found = set()

    async def look() -> None:
        async with open_disk_log(config) as log:
            found.add(log.disk)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(look)
    (identity,) = found
    assert re.fullmatch("[0-9a-f]{32}", identity)


async def test_a_repair_needs_no_log_on_a_disk_and_names_none(tmp_path: Path) -> None:
    """Its own turn as the only writer has no log, and no mount is refused because of where it ran."""
    bucket = Bucket(tmp_path)
    await bucket.confirm("host", "a", **DISK)
    before = (await bucket.record()).logs
    progress = StartProgress(bucket.told.append, trio.current_time)
    async with alone_for("fusefs recover", bucket.config("elsewhere", DISK), bucket.store, progress):
        pass
    assert (await bucket.record()).logs == (*before, LogPlace("", 2))
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    async with bucket.term("host", **DISK) as term:
        assert counting(term) == [(1, 1)]


async def repair(bucket: Bucket, host: str, **flags: object) -> Diagnosis:
    """Do what `fusefs recover --set-aside` does."""
    config, storage = bucket.config(host, flags), bucket.store.storage
    progress = StartProgress(bucket.told.append, trio.current_time)
    async with (
        alone_for("fusefs recover", config, bucket.store, progress) as lease,
        old_log_parts(config, storage, lease) as parts,
    ):
        log_repair = LogRepair(storage, parts)
        found = await log_repair.diagnose()
        if not found.is_whole:
            await log_repair.set_aside(found)
        return found


@pytest.mark.parametrize("second", [{}, DISK, UNLEASED, {**DISK, **UNLEASED}], ids=str)
@pytest.mark.parametrize("no_lease", ["never taken", "released", "removed"])
async def test_a_repair_gives_up_no_log_that_no_lease_tells_of(
    no_lease: str, second: dict[str, object], tmp_path: Path
) -> None:
    """Its own lease tells of it then, and the next mount applies it: it is no log of a lease that was removed since."""
    bucket = Bucket(tmp_path)
    if no_lease == "released":
        async with bucket.term("host") as term:
            term.committer.restored()
    await bucket.confirm("host", "a", **DISK, **({} if no_lease == "removed" else UNLEASED))
    if no_lease == "removed":
        await bucket.store.storage.delete(LEASE_KEY)
    epoch = 2 if no_lease == "released" else 1
    for _ in range(2):
        assert await repair(bucket, "host") == Diagnosis(readable=1)
    async with bucket.term("host", **second) as term:
        assert counting(term) == [(epoch, 1)]


@pytest.mark.parametrize("terms", [1, 6])
async def test_a_repair_brings_no_log_back_that_was_given_up(
    terms: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it put it away: the next mount does, and tells of it."""
    bucket = Bucket(tmp_path)
    for _ in range(3):
        async with bucket.term("host") as term:
            term.committer.restored()
    await bucket.confirm("host", "given up", **DISK)
    await bucket.store.storage.delete(LEASE_KEY)
    for _ in range(terms):
        async with bucket.term("elsewhere") as term:
            term.committer.restored()
    assert await repair(bucket, "host") == Diagnosis(readable=0)
    assert "was given up" not in caplog.text
    async with bucket.term("host") as term:
        assert counting(term) == []
    assert "was given up" in caplog.text


@pytest.mark.parametrize("repairs", [False, True], ids=["a mount", "a repair"])
async def test_who_waits_for_the_lease_is_told(
    repairs: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Who has it, and for how long at most: at once, and every five seconds."""
    bucket = Bucket(tmp_path)
    await take(bucket.store.storage, "lost", term_seconds=14)
    record = await bucket.record()
    if repairs:
        progress = StartProgress(bucket.told.append, trio.current_time)
        async with alone_for("fusefs recover", bucket.config("elsewhere", {}), bucket.store, progress):
            pass
    else:
        async with bucket.term("elsewhere"):
            pass
    assert bucket.told[0] == f"waiting for the lease: {waiting_message(14, record)}"
    assert len(bucket.told) == 3
    assert all("/mnt/lost on host host-lost" in line for line in bucket.told)


async def test_a_renewal_that_hangs_holds_up_the_end_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The lease is not given back then, and whoever ends does not wait for that twice."""
    bucket = Bucket(tmp_path)
    faulty = FaultyStorage(bucket.store.backend)
    bucket.store = OpenStore(faulty, MeteredStorage(faulty))
    async with bucket.term("host"):
        renewal = faulty.hold(Verb.PUT, key=LEASE_KEY)
        await renewal.reached.wait()
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(RELEASE_SECONDS)
    assert not (await bucket.record()).released


@pytest.mark.parametrize("first", [{}, UNLEASED, DISK, {**DISK, **UNLEASED}], ids=str)
@pytest.mark.parametrize("second", [{}, UNLEASED, DISK, {**DISK, **UNLEASED}], ids=str)
@pytest.mark.parametrize("damaged", [(1, 1), (2, 1)], ids=["the first is damaged", "the second is damaged"])
async def test_a_repair_looks_at_every_log(
    damaged: tuple[int, int], first: dict[str, object], second: dict[str, object], tmp_path: Path
) -> None:
    """Wherever a mount here would read one; what it sets aside stays in the store that has it."""
    bucket = Bucket(tmp_path)
    await bucket.confirm("host", "a", **first)
    await bucket.confirm("host", "b", **second)
    config, storage = bucket.config("host", {}), bucket.store.storage
    async with old_log_parts(config, storage) as parts:
        repair = LogRepair(storage, parts)
        assert await repair.diagnose() == Diagnosis(readable=2)
        key = batch_key(Position(*damaged))
        stores = {Position(*damaged): part.reader.storage for part in parts for _ in await there(part, key)}
        (store,) = stores.values()
        await store.put(key, b"damaged")
        found = await repair.diagnose()
        assert (Position(1, 1) in found.lost, Position(2, 1) in found.lost) == (damaged == (1, 1), True)
        is_on_disk = store is not storage
        assert (f"{key!r} in {bucket.disk('host')} cannot" in str(found)) is is_on_disk
        await repair.set_aside(found)
        assert (await store.get_range(key.replace(JOURNAL_PREFIX, DAMAGED_PREFIX))).data == b"damaged"
        assert not (await repair.diagnose()).lost
    async with bucket.term("host") as term:
        assert counting(term) == [each for each in ((1, 1), (2, 1)) if each < damaged]


async def there(part: LogPart, key: str) -> list[str]:
    """Return the key if there is such an object in the store of a part."""
    return [info.key for info in (await part.reader.storage.list_prefix(key)).objects]


@pytest.mark.parametrize("damage", [False, True])
async def test_a_repair_without_the_disk_is_refused(damage: bool, tmp_path: Path) -> None:
    """Where the disk is another one, too; a directory that is not there is not made."""
    bucket = Bucket(tmp_path)
    await bucket.confirm("host", "a", **DISK)
    await bucket.confirm("host", "b")
    if damage:
        await bucket.store.storage.put(batch_key(Position(2, 1)), b"damaged")
    for host in ("elsewhere", "another"):
        if host == "another":
            async with open_disk_log(bucket.config(host, {})):
                pass
        with pytest.raises(MountError, match=f"is in the log at .*{tmp_path}/host/log/"):
            async with old_log_parts(bucket.config(host, {}), bucket.store.storage):
                raise AssertionError("unreachable")
    assert not (tmp_path / "elsewhere").exists()


async def test_who_is_kept_away_is_told_what_there_is_for_him(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A mount may be read-only instead, and a repair may not."""
    bucket = Bucket(tmp_path)
    config, progress = bucket.config("elsewhere", {}), StartProgress(bucket.told.append, trio.current_time)
    async with bucket.term("host"):
        with pytest.raises(MountError, match=r"unmount it there first, or mount with --read-only$"):
            async with bucket.term("elsewhere"):
                raise AssertionError("unreachable")
        with pytest.raises(MountError, match=r"unmount it there first$"):
            async with alone_for("fusefs recover", config, bucket.store, progress):
                raise AssertionError("unreachable")


async def test_a_mount_below_another_one_is_warned_of_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the nearest and of the whole bucket's; not of one that has ended, nor of one beside it."""
    bucket = Bucket(tmp_path)
    for prefix in ("", "a/", "a/b/", "a/b/c/", "other/"):
        lease = await take(PrefixedStorage(bucket.store.meter, prefix), prefix or "all")
        if prefix == "a/":
            await lease.release()
    await warn_of_mounts_above(bucket.config("host", {}, "s3://bucket/a/b/c"), bucket.store)
    assert [message.partition(", or was")[0] for message in caplog.messages] == [
        f"{url}, which has this prefix in it, is mounted read-write at /mnt/{holder} on host host-{holder}"
        " (process 7, since 2023-11-14 22:13:20 UTC)"
        for url, holder in (("s3://bucket", "all"), ("s3://bucket/a/b", "a/b/"))
    ]


@pytest.mark.parametrize("error", [AccessDenied, Unavailable])
async def test_what_is_above_may_be_out_of_reach(
    error: type[StorageError], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Credentials for one prefix are usual: nothing is said then, and one request is made for each prefix above."""
    bucket, faulty = Bucket(tmp_path), FaultyStorage(MemoryStorage())
    faulty.fail(error, times=math.inf)
    store = OpenStore(bucket.store.storage, MeteredStorage(faulty))
    await warn_of_mounts_above(bucket.config("host", {}, "s3://bucket/a/b"), store)
    await warn_of_mounts_above(bucket.config("host", {}), store)
    assert [call.key for call in faulty.calls] == [LEASE_KEY, f"a/{LEASE_KEY}"]
    assert caplog.messages == []
