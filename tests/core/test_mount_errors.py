"""A mount that cannot be made, or not be ended well, is one line for the operator."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import Data
from backends.errors import AccessDenied, Unavailable
from backends.memory import MemoryStorage
from backends.s3 import S3Storage
from fusefs import kernel_pages, mount, session
from fusefs.config import Config
from fusefs.control import Progress
from fusefs.errors import MountError
from fusefs.filesystem import Caller, Filesystem
from fusefs.operations import FuseOperations
from fusefs.publisher import Publisher
from fusefs.start_progress import REPEAT_SECONDS


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "mnt").mkdir()
    flags = {"cache_dir": str(tmp_path / "cache")}
    return Config.from_sources(
        url="memory://", mountpoint=str(tmp_path / "mnt"), config_path=None, flags=flags
    )


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


@pytest.fixture
def config_of_bucket(config: Config, bucket: Path) -> Config:
    return Config.from_sources(
        url=f"file://{bucket}",
        mountpoint=str(config.mount.mountpoint),
        config_path=None,
        flags={"cache_dir": str(config.mount.cache_dir)},
    )


class Nobody:
    """Has started a mount, and counts what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def starting(self, line: str) -> None:
        self.told.append("starting")

    def ready(self) -> None:
        self.told.append("ready")

    def ending(self, left: Progress) -> None:
        self.told.append(f"ending {left.pending_inodes}")


def failing(error: Exception) -> Callable[..., object]:
    async def run(*_: object, **__: object) -> None:
        raise error

    return run


async def doing_nothing(*_: object) -> None:
    """Take the place of a method."""


def serve_with(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[Filesystem], Coroutine[Any, Any, None]]
) -> None:
    """Let a mount do something else than to answer the kernel, of which there is none."""
    operations: list[FuseOperations] = []
    monkeypatch.setattr(pyfuse3, "init", lambda ours, *_: operations.append(ours))
    monkeypatch.setattr(pyfuse3, "main", lambda **_: serve(operations[0]._filesystem))
    monkeypatch.setattr(pyfuse3, "close", lambda unmount: None)
    monkeypatch.setattr(mount, "tune_process", lambda: None)
    monkeypatch.setattr(session, "tune_mount", lambda device: None)


async def test_a_mount_error_comes_out_of_all_nurseries(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The command shows its line; of a group it would show a traceback. What failed beside it is in the log."""
    error = MountError("one line")
    nested = ExceptionGroup("session", [ExceptionGroup("inner", [error]), KeyError("beside it")])
    monkeypatch.setattr(session.Session, "run", failing(nested))
    monkeypatch.setattr(mount, "tune_process", lambda: None)
    with pytest.raises(MountError, match=r"^one line$") as caught:
        await mount.run_mount(config, Nobody())
    assert caught.value is error
    assert "beside it" in caplog.text
    assert list((config.mount.cache_dir / "mounts").iterdir()) == []


async def test_for_as_long_as_the_store_says_nothing_that_is_told(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A service manager kills whom it has not heard of for a while, and a person gives up."""

    async def time_out(*_: object, **__: object) -> None:
        await trio.sleep(59)
        raise Unavailable("nothing was said")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(MemoryStorage, "probe", time_out)
    monkeypatch.setattr(mount, "tune_process", lambda: None)
    observer, began = Nobody(), trio.current_time()
    with pytest.raises(MountError, match=r"^memory://: nothing was said$"):
        await mount.run_mount(config, observer)
    assert trio.current_time() - began == 59
    assert observer.told == ["starting"] * 11
    assert "asking the store: it has not answered in full for 55 s" in caplog.messages


async def test_a_server_that_is_not_there_is_to_be_looked_for(
    config: Config, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Most often it was not started, or the flag was forgotten that says where it is."""
    bucket = Config.from_sources(
        url="s3://bucket",
        mountpoint=config.mount.mountpoint,
        flags={"endpoint": "http://localhost:1", "cache_dir": str(config.mount.cache_dir)},
    )
    monkeypatch.setattr(
        S3Storage, "probe", failing(Unavailable("refused; the endpoint is http://localhost:1"))
    )
    monkeypatch.setattr(mount, "tune_process", lambda: None)
    with pytest.raises(MountError) as refused:
        await mount.run_mount(bucket, Nobody())
    assert str(refused.value) == (
        "s3://bucket: refused; the endpoint is http://localhost:1: is a server running there, and can this host reach"
        " it? --endpoint names another"
    )


def test_a_device_that_may_not_be_opened_can_be_let(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """libfuse tells its reason on standard error only, and no remedy."""
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/dev/fuse")
    assert session._why_not(config) == (
        "/dev/fuse may not be opened by this user; let it, as root, with: chmod 666 /dev/fuse"
    )


async def test_a_defect_stays_what_it_is(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.Session, "run", failing(KeyError("a defect")))
    monkeypatch.setattr(mount, "tune_process", lambda: None)
    with pytest.raises(ExceptionGroup) as caught:
        await mount.run_mount(config, Nobody())
    assert caught.value.subgroup(KeyError) is not None


async def test_what_was_written_is_rescued_from_a_defect(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the mount ends, bytes that are not published are not thrown away with the stage."""

    async def write_and_fail(filesystem: Filesystem) -> None:
        _, handle = await filesystem.create(1, b"file", 0o644, os.O_WRONLY, Caller(uid=0, gid=0))
        await filesystem.write(handle, 0, b"precious")
        raise KeyError("a defect")

    serve_with(monkeypatch, write_and_fail)
    with pytest.raises(ExceptionGroup):
        await mount.run_mount(config, Nobody())
    [rescued] = [path for path in (config.mount.cache_dir / "rescued").rglob("*") if path.is_file()]
    assert (rescued.name, rescued.read_bytes()) == ("file", b"precious")


async def test_an_unmount_while_a_request_is_read_is_one_like_any_other(
    bucket: Path, config_of_bucket: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives pyfuse3 another error than usual then; what was written is published all the same."""

    async def write_and_be_cut_off(filesystem: Filesystem) -> None:
        _, handle = await filesystem.create(1, b"file", 0o644, os.O_WRONLY, Caller(uid=0, gid=0))
        await filesystem.write(handle, 0, b"precious")
        raise ExceptionGroup("", [OSError(errno.ECONNABORTED, "fuse_session_receive_buf failed")])

    serve_with(monkeypatch, write_and_be_cut_off)
    await mount.run_mount(config_of_bucket, Nobody())
    assert (bucket / "file").read_bytes() == b"precious"


async def test_what_is_open_at_the_end_leaves_nothing_in_the_bucket(
    bucket: Path, config_of_bucket: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel drops the closes that nobody has read when it unmounts; a removed file has no use for its bytes."""
    (bucket / "file").write_bytes(b"removed while it was open")

    async def unlink_what_is_open(filesystem: Filesystem) -> None:
        inode = await filesystem.lookup(1, b"file")
        await filesystem.open(inode.number, os.O_RDONLY, Caller(uid=0, gid=0))
        await filesystem.unlink(1, b"file")
        await filesystem._publisher.publish_all()
        assert list((bucket / ".fusefs" / "orphans").iterdir())

    serve_with(monkeypatch, unlink_what_is_open)
    await mount.run_mount(config_of_bucket, Nobody())
    assert not (bucket / ".fusefs" / "orphans").exists()


async def test_what_is_only_to_be_deleted_is_in_the_log_like_everything_else(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the store denies that, the next mount does it, and nobody has to look for what it was."""
    monkeypatch.setattr(MemoryStorage, "delete", failing(AccessDenied("deletions are denied")))

    async def remove_file(filesystem: Filesystem) -> None:
        _, handle = await filesystem.create(1, b"file", 0o644, os.O_WRONLY, Caller(uid=0, gid=0))
        await filesystem.release(handle)
        await filesystem._publisher.publish_all()
        await filesystem.unlink(1, b"file")

    serve_with(monkeypatch, remove_file)
    with pytest.raises(MountError, match=r"^1 change is in the log and not published yet; the next"):
        await mount.run_mount(config, Nobody())


@pytest.mark.parametrize("how", ["unmounted", "told to end"])
async def test_for_as_long_as_the_end_takes_it_is_told_what_is_left(
    config: Config, how: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A service manager kills whom it has not heard of for a while, with whatever is on its way up."""
    put, observer, terminated = MemoryStorage.put, Nobody(), trio.Event()

    async def slow(self: MemoryStorage, key: str, data: Data, **how: Any) -> str:
        await trio.sleep(0 if key.startswith(".fusefs/") else 100)
        return await put(self, key, data, **how)

    async def make_file(filesystem: Filesystem) -> None:
        _, handle = await filesystem.create(1, b"file", 0o644, os.O_WRONLY, Caller(uid=0, gid=0))
        await filesystem.release(handle)
        assert observer.told == []
        if how == "told to end":
            signal.raise_signal(signal.SIGTERM)
            await terminated.wait()
            assert observer.told.count("ending 1") >= 100 / REPEAT_SECONDS

    monkeypatch.setattr(MemoryStorage, "put", slow)
    monkeypatch.setattr(pyfuse3, "terminate", terminated.set)
    monkeypatch.setattr(session.Session, "_announce", doing_nothing)  # which is said in a thread
    monkeypatch.setattr(kernel_pages, "sync_filesystem", lambda mountpoint, is_it: None)
    serve_with(monkeypatch, make_file)
    await mount.run_mount(config, observer)
    assert observer.told.count("ending 1") >= 100 / REPEAT_SECONDS


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EFBIG, "what was written beyond the largest object (5 TiB) cannot be kept"),
        (errno.EIO, "the log file may say more (Input/output error)"),
    ],
)
async def test_pages_that_were_refused_are_told_of_in_a_sentence(
    config: Config, number: int, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel says a number and the mount point, from which nobody knows what has happened, nor what to do."""
    terminated = trio.Event()

    def refuse(mountpoint: Path, is_it: Callable[[], bool]) -> None:
        raise OSError(number, os.strerror(number), str(mountpoint))

    async def be_told_to_end(filesystem: Filesystem) -> None:
        signal.raise_signal(signal.SIGTERM)
        await terminated.wait()

    serve_with(monkeypatch, be_told_to_end)
    monkeypatch.setattr(kernel_pages, "sync_filesystem", refuse)
    monkeypatch.setattr(session.Session, "_announce", doing_nothing)
    monkeypatch.setattr(pyfuse3, "terminate", terminated.set)
    missing = f"not everything that was written could be taken over from the kernel: {why}"
    with pytest.raises(MountError) as caught:
        await mount.run_mount(config, Nobody())
    assert str(caught.value) == missing
    assert set(caplog.messages) == {f"not everything could be published while mounted: {missing}"}


async def test_what_is_written_while_a_mount_publishes_its_last_is_asked_for(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may go on for minutes, and for as long the mount is there."""
    terminated = trio.Event()
    steps: list[str] = []
    publish_all = Publisher.publish_all

    async def publish(self: Publisher, *, open_files: bool = True) -> None:
        steps.append("publish")
        await publish_all(self, open_files=open_files)

    def terminate() -> None:
        steps.append("terminate")
        terminated.set()

    async def be_told_to_end(filesystem: Filesystem) -> None:
        signal.raise_signal(signal.SIGTERM)
        await terminated.wait()

    serve_with(monkeypatch, be_told_to_end)
    monkeypatch.setattr(kernel_pages, "sync_filesystem", lambda mountpoint, is_it: steps.append("collect"))
    monkeypatch.setattr(Publisher, "publish_all", publish)
    monkeypatch.setattr(session.Session, "_announce", doing_nothing)
    monkeypatch.setattr(pyfuse3, "terminate", terminate)
    await mount.run_mount(config, Nobody())
    assert steps == ["collect", "publish", "collect", "terminate", "publish"]


async def test_what_has_been_put_into_the_mount_point_meanwhile_is_not_hidden(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is another mount that has been quicker: to wait for the lease, or to read a log, may take minutes."""

    async def put_a_file_there(*_: object) -> None:
        (config.mount.mountpoint / "file").touch()

    serve_with(monkeypatch, doing_nothing)
    monkeypatch.setattr(mount, "_probe", put_a_file_there)
    with pytest.raises(MountError, match="is not empty"):
        await mount.run_mount(config, Nobody())


@pytest.mark.parametrize("how", ["unmounted", "told to end"])
async def test_a_second_signal_ends_the_waiting_for_uploads(
    config: Config, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first one came when somebody else had unmounted it: two are waited for then."""
    sending, terminated = trio.Event(), trio.Event()
    signals = iter([signal.SIGTERM] * 2)
    put = MemoryStorage.put

    async def hang(self: MemoryStorage, key: str, data: Data, **how: Any) -> str:
        if not key.startswith(".fusefs/"):
            sending.set()
            await trio.sleep_forever()
        return await put(self, key, data, **how)

    class Impatient(Nobody):
        def ending(self, left: Progress) -> None:
            if (number := next(signals, None)) is not None:
                signal.raise_signal(number)

    async def make_file(filesystem: Filesystem) -> None:
        _, handle = await filesystem.create(1, b"file", 0o644, os.O_WRONLY, Caller(uid=0, gid=0))
        await filesystem.release(handle)
        await sending.wait()
        if how == "told to end":
            signal.raise_signal(next(signals))
            await terminated.wait()

    serve_with(monkeypatch, make_file)
    monkeypatch.setattr(MemoryStorage, "put", hang)
    monkeypatch.setattr(session, "REPEAT_SECONDS", 0.01)
    monkeypatch.setattr(pyfuse3, "terminate", terminated.set)
    monkeypatch.setattr(session.Session, "_announce", doing_nothing)
    monkeypatch.setattr(kernel_pages, "sync_filesystem", lambda mountpoint, is_it: None)
    with (
        trio.fail_after(30),
        pytest.raises(MountError, match=r"^1 change is in the log and not published yet"),
    ):
        await mount.run_mount(config, Impatient())


@pytest.mark.parametrize("is_ignored", [False, True])
async def test_a_terminal_that_goes_ends_a_mount_as_if_it_were_told_to(
    bucket: Path, config_of_bucket: Config, is_ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it says so; nothing is thrown away. Who has started it with nohup has it as before."""
    terminated = trio.Event()

    async def hang_up(filesystem: Filesystem) -> None:
        _, handle = await filesystem.create(1, b"file", 0o644, os.O_WRONLY, Caller(uid=0, gid=0))
        await filesystem.write(handle, 0, b"precious")
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
            await wait_all_tasks_blocked()
        if not is_ignored:
            await terminated.wait()
        assert terminated.is_set() is not is_ignored

    serve_with(monkeypatch, hang_up)
    monkeypatch.setattr(pyfuse3, "terminate", terminated.set)
    monkeypatch.setattr(session.Session, "_announce", doing_nothing)
    monkeypatch.setattr(kernel_pages, "sync_filesystem", lambda mountpoint, is_it: None)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        await mount.run_mount(config_of_bucket, Nobody())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (bucket / "file").read_bytes() == b"precious"


async def test_a_second_signal_ends_the_waiting_for_the_kernel(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot hand over its pages while a write(2) of it has to wait, and says so only when the mount is gone."""
    asked, terminated, gone = trio.Event(), trio.Event(), threading.Event()
    waited_in_vain: list[bool] = []

    def wait_until_it_is_gone(mountpoint: Path, is_it: Callable[[], bool]) -> None:
        trio.from_thread.run_sync(asked.set)
        waited_in_vain.append(not gone.wait(10))

    async def be_told_twice(filesystem: Filesystem) -> None:
        signal.raise_signal(signal.SIGTERM)
        await asked.wait()
        signal.raise_signal(signal.SIGTERM)
        await terminated.wait()

    serve_with(monkeypatch, be_told_twice)
    monkeypatch.setattr(kernel_pages, "sync_filesystem", wait_until_it_is_gone)
    monkeypatch.setattr(session.Session, "_announce", doing_nothing)
    monkeypatch.setattr(pyfuse3, "terminate", terminated.set)
    monkeypatch.setattr(pyfuse3, "close", lambda unmount: gone.set())
    with pytest.raises(MountError, match=r"^the kernel was not waited for"):
        await mount.run_mount(config, Nobody())
    assert not any(waited_in_vain)


async def test_a_mount_that_cannot_ask_itself_is_none(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to it takes a thread; where there is no room for one, it is a line that says so."""

    async def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    async def serve(filesystem: Filesystem) -> None:
        monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
        await trio.sleep_forever()

    serve_with(monkeypatch, serve)
    with pytest.raises(MountError, match=r"^can't start new thread: a limit of this host"):
        await mount.run_mount(config, Nobody())


async def test_a_mount_that_fails_before_it_has_answered_ends(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks it has an answer when it is gone, and not before."""
    asked, gone = trio.Event(), threading.Event()
    waited_in_vain: list[bool] = []

    def wait_until_it_is_gone(device: int) -> None:
        trio.from_thread.run_sync(asked.set)
        waited_in_vain.append(not gone.wait(10))

    async def fail(filesystem: Filesystem) -> None:
        await asked.wait()
        raise KeyError("a defect")

    serve_with(monkeypatch, fail)
    monkeypatch.setattr(session, "tune_mount", wait_until_it_is_gone)
    monkeypatch.setattr(pyfuse3, "close", lambda unmount: gone.set())
    with pytest.raises(ExceptionGroup):
        await mount.run_mount(config, Nobody())
    assert not any(waited_in_vain)
