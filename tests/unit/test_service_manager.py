"""A service manager is told how a mount stands, and one that is not there is no matter."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fusefs.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that a manager listens on, and what NOTIFY_SOCKET says of it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@fusefs-{uuid.uuid4()}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(address.replace("@", "\0"))
        listener.settimeout(5)
        yield listener, address


def test_what_it_is_told(manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch) -> None:
    listener, address = manager
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    mount = ServiceManager.of_environment()
    mount.starting("waiting for the lease\nof another")
    assert listener.recv(1000) == b"STATUS=waiting for the lease of another\nEXTEND_TIMEOUT_USEC=60000000"
    mount.ready()
    assert listener.recv(1000) == b"READY=1\nSTATUS=mounted"
    mount.ending("1 change")
    assert listener.recv(1000) == b"STOPPING=1\nSTATUS=1 change\nEXTEND_TIMEOUT_USEC=60000000"


def test_nobody_is_told_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    ServiceManager.of_environment().ready()
    assert caplog.text == ""


def test_one_that_is_not_there_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager(str(tmp_path / "nowhere"))
    manager.ready()
    manager.ending("nothing")
    [record] = caplog.records
    assert "nowhere" in record.getMessage()
