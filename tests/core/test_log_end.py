"""The end of a log, of which the lease tells: missed where somebody has removed it, and never where a mount has.

A mount says with each renewal up to where its log is acknowledged. It removes its last commit only when it has said
that there is no log. So whoever begins after it died, at whatever call, finds what the lease tells of; and where others
have removed that, one line says so, and nothing is applied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import ObjectStorage, iterate_pages
from backends.intercepted import Verb
from fusefs import batch_contents
from fusefs.errors import MountError
from fusefs.journal_format import JOURNAL_PREFIX, batch_key, position_of
from fusefs.lease_record import LogEnd
from fusefs.log_records import Position
from fusefs.log_repair import LogRepair
from fusefs.stored_lease import LEASE_KEY
from fusefs.stores import open_local
from tests.core.history import History
from tests.core.hosts import BUCKET, DISK, NEVER, RENEWED_SECONDS, Prefix
from tests.core.logs import log_objects
from tests.core.losses import LOG_ALONE, OPTIONS, look
from tests.core.mortal import Death, Life
from tests.core.small_parts import SmallPartsStorage
from tests.core.test_log_crash import SMALL
from tests.core.tree import bare_failures
from tests.support.every_call import at_every_call, noted
from tests.support.faulty import FaultyStorage

pytestmark = pytest.mark.usefixtures("small_parts")

UNLEASED: Final = {"lease": False}
UNLEASED_DISK: Final = {**UNLEASED, **DISK}
DEATHS: Final = (Death.CALL_LOST, Death.ANSWER_LOST, Death.HALF_DONE)
FILES: Final = ("a", "b", "c")


async def confirm(history: History) -> None:
    """Make files, each in a batch of its own, and let the lease tell of that; they stay open, and so in the log."""
    for path in FILES:
        handle = await history.create(path)
        await history.write(handle, 0, SMALL)
        await history.fsync(handle)
    await trio.sleep(RENEWED_SECONDS)


async def new_prefix(where: Path, patch: pytest.MonkeyPatch) -> tuple[Prefix, History]:
    return Prefix(SmallPartsStorage(), where, patch), History({})


async def told(prefix: Prefix) -> list[LogEnd | None]:
    """Return what the lease tells of logs."""
    return [log.end for log in (await prefix.lease()).logs]


def log_of(prefix: Prefix, host: str, flags: Mapping[str, object]) -> ObjectStorage:
    """Return the store that has the log of a host."""
    if flags is BUCKET:
        return prefix.storage
    (directory,) = (prefix.directory / host / "log").iterdir()
    return open_local(directory)


async def remove(storage: ObjectStorage, *, since: int = 1) -> None:
    """Remove the batches from one of its term on, as somebody does that does not know what they are."""
    keys = [info.key async for page in iterate_pages(storage, JOURNAL_PREFIX) for info in page.objects]
    for key in keys:
        if int(key.rpartition("/")[2], 16) >= since:
            await storage.delete(key)


async def refused(prefix: Prefix, key: str, flags: Mapping[str, object]) -> None:
    """Try to mount, and be told in one line that a batch was removed."""
    with pytest.raises(MountError) as refusal, bare_failures():
        await prefix.live("a", History({}), look, OPTIONS, flags=flags)
    assert f"{key!r}" in str(refusal.value)
    assert f": somebody has removed it, of which '{LEASE_KEY}' says that it was there" in str(refusal.value)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("since", [len(FILES), 1], ids=["the last batch", "all batches"])
@pytest.mark.parametrize("flags", [BUCKET, DISK], ids=["in the bucket", "on a disk"])
async def test_a_log_that_is_shorter_than_the_lease_says(
    flags: Mapping[str, object],
    since: int,
    tmp_path: Path,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last batches of a log are missed as well, or all of them, up to the one of which the lease tells: with each
    renewal, three times in `lease_term`, it says what is confirmed. Nobody misses those of a log of which nothing was
    needed then.
    """
    prefix, history = await new_prefix(tmp_path, monkeypatch)
    await prefix.lose("a", history, confirm, LOG_ALONE, flags)
    assert await told(prefix) == [LogEnd(1, len(FILES))]
    storage = log_of(prefix, "a", flags)
    await remove(storage, since=since)
    key = batch_key(Position(1, len(FILES)))
    await refused(prefix, key, flags)
    async with prefix.log_parts("a", flags) as parts:
        found = await LogRepair(prefix.storage, parts).diagnose()
        assert (found.readable, found.lost, found.is_whole) == (since - 1, (), False)
        assert str(found).startswith(f"{key!r}")
        assert str(found).endswith(
            f"cannot be applied: somebody has removed it, of which '{LEASE_KEY}' says that it was there."
            f" {since - 1} batches before it can be applied, and nothing is behind it; --set-aside gives up what was"
            " removed, and the next mount goes on without that"
        )
    for again in (flags, {**flags, **UNLEASED}):
        await refused(prefix, key, again)
    async with prefix.log_parts("a", flags) as parts:
        repair = LogRepair(prefix.storage, parts)
        await repair.set_aside(await repair.diagnose())
        assert (await repair.diagnose()).is_whole
    state = {path: entry for path, entry in history.states[-1].items() if path in FILES[: since - 1]}
    history.resume(state)
    await prefix.live("a", history, look, OPTIONS, flags=flags)
    assert (await prefix.lease()).logs == ()


async def test_a_mount_dies_in_the_middle_of_a_commit_of_several_batches(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease tells of no batch that counts only with a later one: that one is missing, and nobody has removed it."""
    prefix, history = await new_prefix(tmp_path, monkeypatch)

    async def die_committing(history: History) -> None:
        for path in FILES:
            await history.create(path)
        await history.commit()
        monkeypatch.setattr(batch_contents, "HEADS_SIZE", 1)
        for path in FILES:
            await history.chmod(path, 0o600)
        async with trio.open_nursery() as nursery:
            gate = faulty.hold(Verb.PUT, key=batch_key(Position(1, 2 + len(FILES))))
            nursery.start_soon(history.tree.log.commit)
            await gate.reached.wait()
            await trio.sleep(RENEWED_SECONDS)
            nursery.cancel_scope.cancel()

    faulty = FaultyStorage(prefix.storage)
    over = replace(prefix, over_bucket=lambda bucket: faulty)
    life = Life()
    with trio.CancelScope() as scope:
        async with over.mounted("a", LOG_ALONE, life) as tree:
            history.attend(tree)
            await die_committing(history)
            life.dead.set()
            scope.cancel()
    assert [position async for position in _sequences(prefix)] == [1, 2, 3, 4]
    assert await told(prefix) == [LogEnd(1, 1)]
    await prefix.check(history, "b")


async def _sequences(prefix: Prefix) -> AsyncIterator[int]:
    for key in await log_objects(prefix.storage):
        position = position_of(key)
        assert position is not None
        yield position.sequence


async def go_on(history: History) -> None:
    """Find a state that is right, and change files in the same way."""
    await look(history)
    for path in FILES:
        handle = await (history.open(path) if path in history.state() else history.create(path))
        await history.write(handle, len(history.states), SMALL)
        await history.fsync(handle)
    await trio.sleep(RENEWED_SECONDS)


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("flags", [BUCKET, DISK], ids=["in the bucket", "on a disk"])
async def test_a_mount_that_ends_may_die_at_every_call(
    flags: Mapping[str, object],
    death: Death,
    tmp_path: Path,
    autojump_clock: MockClock,
    quiet: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is missing, whatever it had removed of its log, and whatever the lease said last; so may the next."""
    random = Random(str(flags))

    async def die_twice_and_look(call: int) -> bool:
        prefix, history = await new_prefix(tmp_path / f"{call}", monkeypatch)
        has_died = await prefix.live(
            "a", history, go_on, LOG_ALONE, call=call, death=death, flags=flags, resting_seconds=0
        )
        next_call, next_flags = random.randint(1, 40), random.choice([flags, UNLEASED, UNLEASED_DISK])
        with noted(f"the next mount, with {next_flags}, has died at call {next_call}"):
            await prefix.live("a", history, look, OPTIONS, call=next_call, death=death, flags=next_flags)
            await prefix.check(history, "a", flags)
        return has_died

    await at_every_call(die_twice_and_look)


@pytest.mark.parametrize("death", [Death.CALL_LOST, Death.HALF_DONE])
@pytest.mark.parametrize("flags", [UNLEASED, UNLEASED_DISK], ids=["in the bucket", "on a disk"])
async def test_a_mount_without_a_lease_may_die_at_every_call(
    flags: Mapping[str, object],
    death: Death,
    tmp_path: Path,
    autojump_clock: MockClock,
    quiet: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It recovers and removes what the lease goes on to tell of, and the next, on another host, does not miss that."""
    lost, history = await new_prefix(tmp_path / "lost", monkeypatch)
    await lost.lose("a", history, confirm, LOG_ALONE)

    async def die_and_look(call: int) -> bool:
        prefix, same = lost.twin(tmp_path / f"{call}"), History({})
        same.resume(history.states[-1])
        has_died = await prefix.live("b", same, look, OPTIONS, call=call, death=death, flags=flags)
        assert await told(prefix) == [LogEnd(1, len(FILES))]
        await prefix.check(same, "c")
        return has_died

    await at_every_call(die_and_look)


@pytest.mark.parametrize("seed", range(12))
async def test_mounts_of_every_kind_one_after_the_other(
    seed: int,
    tmp_path: Path,
    autojump_clock: MockClock,
    quiet: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a lease or without, with the log here or there, each dies at some call or ends: none misses anything."""
    random = Random(seed)
    prefix, history = await new_prefix(tmp_path, monkeypatch)
    story = []
    for _ in range(5):
        host, flags, act = random.choice(
            [
                *(("a", flags, go_on) for flags in (BUCKET, DISK, UNLEASED, UNLEASED_DISK)),
                *(("b", flags, go_on) for flags in (BUCKET, UNLEASED)),
                ("b", UNLEASED_DISK, look),  # nobody elsewhere knows of what it would do
            ]
        )
        call, death = (
            random.choice([random.randint(1, 30), random.randint(30, 90), NEVER]),
            random.choice(DEATHS),
        )
        options, rest = random.choice([OPTIONS, LOG_ALONE]), random.choice([0, RENEWED_SECONDS])
        story.append(f"{host} {flags} {act.__name__} {call} {death} {options is OPTIONS} {rest}")
        try:
            with bare_failures():
                await prefix.live(
                    host, history, act, options, call=call, death=death, flags=flags, resting_seconds=rest
                )
        except BaseException as error:
            if not isinstance(error, MountError) or f":{prefix.directory}/a/log/" not in str(error):
                error.add_note("\n".join(story))
                raise
    await prefix.check(history, "a")


@pytest.mark.parametrize("flags", [BUCKET, DISK], ids=["in the bucket", "on a disk"])
async def test_nobody_misses_what_says_that_nothing_is_needed(
    flags: Mapping[str, object], tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch of an idle mount, that is, which a rule of the bucket removes while the lease is renewed."""
    prefix, history = await new_prefix(tmp_path, monkeypatch)

    async def idle(history: History) -> None:
        await confirm(history)
        await trio.sleep(3 * RENEWED_SECONDS)

    await prefix.lose("a", history, idle, OPTIONS, flags)
    (end,) = await told(prefix)
    assert end == LogEnd(1, len(FILES) + 1, is_needed=False)
    await remove(log_of(prefix, "a", flags))
    await prefix.check(history, "a", flags)


async def test_the_end_that_a_log_had_before_is_missed(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing was needed any more, too: a disk that is in an older state has what was needed then."""
    prefix, history = await new_prefix(tmp_path, monkeypatch)

    async def publish(history: History) -> None:
        await confirm(history)
        shutil.copytree(prefix.directory / "a" / "log", tmp_path / "older")
        await history.tree.publish_all()
        await trio.sleep(3 * RENEWED_SECONDS)

    await prefix.lose("a", history, publish, LOG_ALONE, DISK)
    assert await told(prefix) == [LogEnd(1, len(FILES) + 1, is_needed=False)]
    shutil.rmtree(prefix.directory / "a" / "log")
    (tmp_path / "older").rename(prefix.directory / "a" / "log")
    await refused(prefix, batch_key(Position(1, len(FILES) + 1)), DISK)


@pytest.mark.parametrize("is_removed", [True, False], ids=["no lease", "a lease of an earlier version"])
async def test_no_lease_tells_of_it(
    is_removed: bool, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then what is there is all that there is."""
    prefix, history = await new_prefix(tmp_path, monkeypatch)
    await prefix.lose("a", history, confirm, LOG_ALONE)
    await remove(prefix.storage)
    if is_removed:
        await prefix.storage.delete(LEASE_KEY)
    else:
        document = json.loads((await prefix.storage.get_range(LEASE_KEY)).data)
        del document["logs"][0]["acknowledged"]
        await prefix.storage.put(LEASE_KEY, json.dumps(document).encode())
    history.resume({})
    await prefix.check(history, "b")


@pytest.mark.parametrize(
    "value", ["null", "-1", '{"epoch": 1, "sequence": 0, "needed": true}', '{"epoch": 1}']
)
async def test_a_damaged_end(
    value: str, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says which object it is."""
    prefix, history = await new_prefix(tmp_path, monkeypatch)
    await prefix.lose("a", history, confirm, LOG_ALONE)
    document = json.loads((await prefix.storage.get_range(LEASE_KEY)).data)
    document["logs"][0]["acknowledged"] = json.loads(value)
    await prefix.storage.put(LEASE_KEY, json.dumps(document).encode())
    with pytest.raises(MountError, match=f"{LEASE_KEY} .* cannot be read") as refused, bare_failures():
        await prefix.live("a", History({}), look, OPTIONS)
    assert str(refused.value).isprintable()


async def test_a_repair_gives_up_what_later_terms_had(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the lease tells of those is put away with the rest, and is not missed then, wherever it was."""
    prefix, history = await new_prefix(tmp_path, monkeypatch)
    await prefix.lose("a", history, confirm, LOG_ALONE)
    await prefix.lose("a", history, go_on, LOG_ALONE, DISK)
    assert await told(prefix) == [LogEnd(1, len(FILES)), LogEnd(2, len(FILES))]
    await prefix.storage.delete(batch_key(Position(1, 2)))
    async with prefix.log_parts("a") as parts:
        repair = LogRepair(prefix.storage, parts)
        found = await repair.diagnose()
        assert (found.readable, found.lost[-1].epoch) == (1, 2)
        await repair.set_aside(found)
        assert (await repair.diagnose()).readable == 1
    history.resume({FILES[0]: history.states[-1][FILES[0]]._replace(data=SMALL)})
    await prefix.live("a", history, look, OPTIONS)
    assert (await prefix.lease()).logs == ()
