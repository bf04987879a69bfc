"""The socket on which `fusefs umount` talks to the daemon: a trio server, and the command's own blocking client."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from backends.errors import Unavailable
from fusefs import control
from fusefs.control import ControlClient, Progress, socket_path
from fusefs.control_server import ControlServer
from fusefs.errors import MountError

MOUNTPOINT = Path("/mnt/somewhere")


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the socket is in these tests: in no directory of a real mount."""
    path = tmp_path / "run" / "it.sock"
    monkeypatch.setattr(control, "socket_path", lambda mountpoint: path)
    return path


class Mount:
    """The mount, as far as the socket needs it: it drains when it is told to."""

    def __init__(self) -> None:
        self.pending = 3
        self.drains = 0
        self.both_drain = trio.Event()
        self.draining = trio.Event()
        self.may_drain = trio.Event()
        self.failure: Exception | None = None
        self.progress_failure: Exception | None = None

    async def drain(self) -> None:
        self.drains += 1
        if self.drains == 2:
            self.both_drain.set()
        self.draining.set()
        await self.may_drain.wait()
        if self.failure is not None:
            raise self.failure
        self.pending = 0

    def status(self) -> Mapping[str, object]:
        return {"pending": self.pending}

    def progress(self) -> Progress:
        if self.progress_failure is not None:
            raise self.progress_failure
        return Progress(pending_inodes=self.pending, pending_bytes=1_000 * self.pending)


@asynccontextmanager
async def serving(path: Path, mount: Mount) -> AsyncIterator[ControlServer]:
    server = ControlServer(path, drain=mount.drain, progress=mount.progress, status=mount.status)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield server
        nursery.cancel_scope.cancel()


async def ask(request: str) -> list[Progress]:
    """Be the command: in a thread, with blocking sockets, to the last line."""
    return await trio.to_thread.run_sync(lambda: list(ControlClient(MOUNTPOINT).connect(request)))


async def talk(path: Path, request: bytes) -> bytes:
    """Send anything, and return all that is answered."""
    stream = await trio.open_unix_socket(path)
    async with stream:
        await stream.send_all(request)
        await stream.send_eof()
        return b"".join([chunk async for chunk in stream])


async def in_background(
    nursery: trio.Nursery, call: Callable[[], Awaitable[list[Progress]]]
) -> list[Progress]:
    """Start a call; the list is filled when it returns."""
    answer: list[Progress] = []

    async def run() -> None:
        answer.extend(await call())

    nursery.start_soon(run)
    return answer


async def test_drain_tells_of_progress_and_of_the_end(path: Path) -> None:
    mount = Mount()
    async with serving(path, mount), trio.open_nursery() as nursery:
        answer = await in_background(nursery, lambda: ask("drain"))
        await mount.draining.wait()
        mount.may_drain.set()
    assert answer[0] == Progress(pending_inodes=3, pending_bytes=3_000)
    assert answer[-1] == Progress(pending_inodes=0, pending_bytes=0, done=True)
    assert not any(progress.done for progress in answer[:-1])


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (Unavailable("the store is away"), "the store is away"),
        (KeyError("key"), "a defect of fusefs: KeyError('key')"),
    ],
)
async def test_drain_tells_why_it_failed(failure: Exception, told: str, path: Path) -> None:
    """The name of a class says something to nobody but who looks for a defect."""
    mount = Mount()
    mount.failure = failure
    mount.may_drain.set()
    async with serving(path, mount):
        last = (await ask("drain"))[-1]
    assert last == Progress(pending_inodes=3, pending_bytes=3_000, done=True, error=told)


@pytest.mark.parametrize("error", [None, "1 changed file could not be published"])
async def test_a_follower_hears_how_the_mount_ended(path: Path, error: str | None) -> None:
    """Before the daemon goes: `tell_end` returns when all have been told."""
    mount = Mount()
    async with serving(path, mount) as server, trio.open_nursery() as nursery:
        connected = trio.Event()
        answer: list[Progress] = []

        async def follow() -> None:
            lines = await trio.to_thread.run_sync(ControlClient(MOUNTPOINT).connect, "follow")
            connected.set()
            answer.extend(await trio.to_thread.run_sync(list, lines))

        nursery.start_soon(follow)
        await connected.wait()
        mount.pending = 0
        await server.tell_end(error)
    assert answer[-1] == Progress(pending_inodes=0, pending_bytes=0, done=True, error=error)


async def test_who_is_connected_is_followed(path: Path) -> None:
    """`connect` returns when the daemon has begun to answer: the unmount that comes next cannot be quicker."""
    server = socket.socket(socket.AF_UNIX)
    path.parent.mkdir()
    with server:
        server.bind(str(path))
        server.listen()
        returned = trio.Event()

        async def follow() -> None:
            lines = await trio.to_thread.run_sync(ControlClient(MOUNTPOINT).connect, "follow")
            returned.set()
            await trio.to_thread.run_sync(list, lines)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            connection, _ = await trio.to_thread.run_sync(server.accept)
            with connection:
                assert connection.recv(64) == b"follow\n"
                await trio.sleep(0.05)
                assert not returned.is_set()
                last = {"pending_inodes": 0, "pending_bytes": 0, "done": True, "error": None}
                connection.sendall(json.dumps(last).encode() + b"\n")
                await returned.wait()


async def test_the_status_is_one_line(path: Path) -> None:
    async with serving(path, Mount()):
        assert await trio.to_thread.run_sync(ControlClient(MOUNTPOINT).status) == {"pending": 3}
        assert await talk(path, b"status\n") == b'{"pending": 3}\n'


@pytest.mark.parametrize(
    ("answer", "complaint"), [(b"", "died"), (b'{"pending"', "died"), (None, "it is stopped, or hangs")]
)
async def test_a_daemon_that_does_not_say_how_it_stands(
    answer: bytes | None, complaint: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends meanwhile, or it hangs."""
    monkeypatch.setattr(control, "STATUS_SECONDS", 0.05)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        told = trio.Event()
        async with trio.open_nursery() as nursery:

            async def ask_status() -> None:
                with pytest.raises(ConnectionError, match=complaint):
                    await trio.to_thread.run_sync(ControlClient(MOUNTPOINT).status)
                told.set()

            nursery.start_soon(ask_status)
            connection, _ = await trio.to_thread.run_sync(server.accept)
            with connection:
                assert connection.recv(64) == b"status\n"
                connection.sendall(answer or b"")
                if answer is None:
                    await told.wait()


async def test_a_daemon_that_does_not_begin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever unmounts is told, and does not wait for ever for one that is stopped."""
    monkeypatch.setattr(control, "BEGIN_SECONDS", 0.05)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(ConnectionError) as refused:
            await trio.to_thread.run_sync(ControlClient(MOUNTPOINT).connect, "drain")
    process = os.getpid()
    assert str(refused.value) == (
        f"the daemon of this mount (process {process}) does not answer: it is stopped, or hangs; let it go on with"
        f" kill -CONT {process}, or end it with kill -KILL {process}: the next mount has what is in the log"
    )


async def test_a_daemon_that_does_not_begin_in_another_container(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process has no number here, and 0 would be this one's group."""
    monkeypatch.setattr(control, "BEGIN_SECONDS", 0.05)
    monkeypatch.setattr(control, "_listener", lambda connection: (0, os.getuid()))
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(ConnectionError, match=r"mount does not answer: it is stopped, or hangs$"):
            await trio.to_thread.run_sync(ControlClient(MOUNTPOINT).connect, "drain")


async def test_no_daemon_has_a_status(path: Path) -> None:
    with pytest.raises(ConnectionError, match="no daemon answers for this mount: No such file"):
        await trio.to_thread.run_sync(ControlClient(MOUNTPOINT).status)


async def test_an_end_without_followers_does_not_wait(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(path, Mount()) as server:
        began = trio.current_time()
        await server.tell_end(None)
        assert trio.current_time() == began


async def test_a_follower_that_hangs_does_not_keep_the_daemon(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It never reads, and its socket is full."""
    mount = Mount()
    server = ControlServer(path, drain=mount.drain, progress=mount.progress, status=mount.status)
    ours, theirs = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.send_all, b"follow\n")
        nursery.start_soon(server._answer, ours)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            await server.tell_end(None)
        nursery.cancel_scope.cancel()


async def test_two_clients_at_the_same_time(path: Path) -> None:
    mount = Mount()
    async with serving(path, mount), trio.open_nursery() as nursery:
        first = await in_background(nursery, lambda: ask("drain"))
        second = await in_background(nursery, lambda: ask("drain"))
        await mount.both_drain.wait()
        mount.may_drain.set()
    for answer in (first, second):
        assert answer[-1].done
        assert answer[-1].error is None


async def test_a_client_that_goes_away_harms_nobody(path: Path) -> None:
    """Neither the mount nor the next client."""
    mount = Mount()
    async with serving(path, mount):
        for request in (b"drain\n", b"follow\n", b""):
            stream = await trio.open_unix_socket(path)
            await stream.send_all(request)
            if request:
                assert await stream.receive_some(10)
            await stream.aclose()
        mount.may_drain.set()
        assert (await ask("drain"))[-1].done


@pytest.mark.parametrize(
    "request_", [b"", b"\n", b"DRAIN\n", b"drain follow\n", b"\xff\0" * 40_000, b"GET / HTTP/1.1\r\n"]
)
async def test_garbage_is_not_answered(path: Path, request_: bytes) -> None:
    mount = Mount()
    mount.may_drain.set()
    async with serving(path, mount):
        with suppress(trio.BrokenResourceError):  # it was closed before all of the garbage had been sent
            assert await talk(path, request_) == b""
        assert mount.drains == 0
        assert (await ask("drain"))[-1].done


async def test_a_defect_ends_one_answer_and_not_the_mount(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mount = Mount()
    mount.may_drain.set()
    mount.progress_failure = KeyError("a defect")
    async with serving(path, mount):
        with pytest.raises(ConnectionError, match="died"):
            await ask("follow")
        mount.progress_failure = None
        assert (await ask("drain"))[-1].done
    assert "a defect" in caplog.text


async def test_a_client_without_a_daemon(path: Path) -> None:
    with pytest.raises(ConnectionError, match="no daemon answers"):
        await ask("drain")


async def test_a_daemon_that_dies_is_no_end(path: Path) -> None:
    """Without the last line nobody may believe that everything was published."""
    async with serving(path, Mount()):
        lines = await trio.to_thread.run_sync(ControlClient(MOUNTPOINT).connect, "follow")
    with pytest.raises(ConnectionError, match="died"):
        await trio.to_thread.run_sync(list, lines)


async def test_a_process_may_outlive_its_mount(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has to know that it has ended is told that it has not, and waits no longer than it may take."""
    monkeypatch.setattr(control, "END_SECONDS", 0.0)
    async with serving(path, Mount()):
        has_ended = await trio.to_thread.run_sync(ControlClient(MOUNTPOINT).end_of_process)
    assert not has_ended()


async def test_the_socket_of_a_dead_daemon_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ConnectionError, match="no daemon answers"):
        await ask("drain")
    mount = Mount()
    mount.may_drain.set()
    async with serving(path, mount):
        assert (await ask("drain"))[-1].done
        assert await trio.Path(path).exists()
    assert not await trio.Path(path).exists()


async def test_a_daemon_on_its_way_out_leaves_the_socket_of_the_next_mount(path: Path) -> None:
    """The mount point is free before everything is published, and may be mounted again at once."""
    old, new = Mount(), Mount()
    new.may_drain.set()
    async with trio.open_nursery() as nursery:
        old_server = ControlServer(path, drain=old.drain, progress=old.progress, status=old.status)
        scope = trio.CancelScope()

        async def serve_old(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await old_server.serve(task_status=task_status)

        await nursery.start(serve_old)
        async with serving(path, new):
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert (await ask("drain"))[-1].done
            assert new.drains == 1


async def test_the_directory_is_the_owners_alone(path: Path) -> None:
    async with serving(path, Mount()):
        assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_another_users_directory_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They could put a socket of their own there. One line, before the mount is ready."""
    path.parent.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12_345)
    await refused(path, "belongs to another user")


async def test_another_users_link_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it points to."""
    elsewhere = path.parent.with_name("elsewhere")
    elsewhere.mkdir()
    path.parent.symlink_to(elsewhere)
    monkeypatch.setattr(os, "getuid", lambda: 12_345)
    await refused(path, "belongs to another user")
    assert list(elsewhere.iterdir()) == []


async def test_a_link_is_refused(path: Path) -> None:
    """Whoever may write to what it points to could put a socket of their own there."""
    elsewhere = path.parent.with_name("elsewhere")
    elsewhere.mkdir(mode=0o777)
    path.parent.symlink_to(elsewhere)
    await refused(path, "is a symbolic link")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("bit", [0o020, 0o002])
async def test_a_directory_to_which_others_may_write_is_refused(path: Path, bit: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o700 | bit)
    await refused(path, f"others may write to it; end that with: chmod go-w {path.parent}")


async def test_nobody_else_may_connect(path: Path) -> None:
    """Not where others may enter the directory, either, whatever the umask is."""
    path.parent.mkdir()
    path.parent.chmod(0o755)
    umask = os.umask(0)
    try:
        async with serving(path, Mount()):
            assert (await trio.Path(path).stat()).st_mode & 0o777 == 0o600
    finally:
        os.umask(umask)


async def test_another_users_socket_is_not_talked_to(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was first in /tmp could say that everything is published. No daemon is there, then, for a mount either."""
    mount = Mount()
    async with serving(path, mount) as server:
        monkeypatch.setattr(os, "getuid", lambda: 12_345)
        for ask_it in (ControlClient(MOUNTPOINT).status, partial(ControlClient(MOUNTPOINT).connect, "drain")):
            with pytest.raises(ConnectionError, match=f"another user listens on {path}"):
                await trio.to_thread.run_sync(ask_it)
        assert not ControlClient(MOUNTPOINT).is_there()
        assert not server.is_taken()
    assert mount.drains == 0


async def test_a_directory_that_cannot_be_made_is_one_line(path: Path) -> None:
    path.parent.write_text("a file")
    await refused(path, "cannot hold a socket")


async def refused(path: Path, why: str) -> None:
    mount = Mount()
    with pytest.raises(MountError, match=why) as caught:
        await ControlServer(path, drain=mount.drain, progress=mount.progress, status=mount.status).serve()
    assert "\n" not in str(caught.value)


def test_the_socket_is_in_the_same_place_in_a_session_and_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A unit of a user who logs in later, or somebody who mounts and logs out: /run/user comes and goes with that."""
    monkeypatch.setattr(os, "getuid", lambda: 12_345)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    without = socket_path(Path("/srv/data"))
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert socket_path(Path("/srv/data")) == without


def test_each_mount_point_has_its_own_socket() -> None:
    paths = {socket_path(Path(mountpoint)) for mountpoint in ("/a", "/b", "/a/b")}
    assert len(paths) == 3
    assert socket_path(Path("/a")) in paths
    assert all(len(os.fsencode(path)) < 108 for path in paths), "the longest name of a socket (sun_path)"
