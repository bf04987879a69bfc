"""A mount that cannot be made, or not be ended well, is one line for the operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fusefs import mount
from fusefs.config import Config
from fusefs.errors import MountError


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "mnt").mkdir()
    flags = {"cache_dir": str(tmp_path / "cache")}
    return Config.from_sources(
        url="memory://", mountpoint=str(tmp_path / "mnt"), config_path=None, flags=flags
    )


def failing(error: Exception) -> Callable[..., object]:
    async def run(*_: object) -> None:
        raise error

    return run


async def test_a_mount_error_comes_out_of_all_nurseries(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The command shows its line; of a group it would show a traceback. What failed beside it is in the log."""
    error = MountError("one line")
    nested = ExceptionGroup("session", [ExceptionGroup("inner", [error]), KeyError("beside it")])
    monkeypatch.setattr(mount._Session, "run", failing(nested))
    monkeypatch.setattr(mount, "tune_process", lambda: None)
    with pytest.raises(MountError, match=r"^one line$") as caught:
        await mount.run_mount(config, lambda: None)
    assert caught.value is error
    assert "beside it" in caplog.text
    assert list((config.mount.cache_dir / "mounts").iterdir()) == []


async def test_a_defect_stays_what_it_is(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount._Session, "run", failing(KeyError("a defect")))
    monkeypatch.setattr(mount, "tune_process", lambda: None)
    with pytest.raises(ExceptionGroup) as caught:
        await mount.run_mount(config, lambda: None)
    assert caught.value.subgroup(KeyError) is not None
