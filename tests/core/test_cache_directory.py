"""What mounts leave below `cache_dir`, and who removes it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backends.base import MIB
from fusefs import cache_directory, kept_content
from fusefs.cache_directory import KEPT_DEAD, CacheDirectory
from fusefs.errors import MountError
from fusefs.stage import MEMORY_BYTES
from tests.core.small_disk import disk_use


def staged(cache: CacheDirectory) -> Path:
    cache.stage.mkdir()
    file = cache.stage / "1"
    file.write_bytes(b"bytes")
    return file


def test_a_mount_has_a_directory_of_its_own_until_its_end(tmp_path: Path) -> None:
    cache = CacheDirectory.claim(tmp_path / "cache", "one")
    file = staged(cache)
    assert file.is_relative_to(tmp_path / "cache")
    assert (tmp_path / "cache/mounts/one").stat().st_mode & 0o777 == 0o700
    cache.release()
    assert list((tmp_path / "cache/mounts").iterdir()) == []


def test_a_live_mounts_directory_is_left_alone(tmp_path: Path) -> None:
    one = CacheDirectory.claim(tmp_path, "one")
    file = staged(one)
    two = CacheDirectory.claim(tmp_path, "two")
    assert file.exists()
    one.release()
    two.release()


def test_a_dead_mounts_directory_is_emptied_by_the_next(tmp_path: Path) -> None:
    """A killed process runs nothing at its end; the kernel drops its lock."""
    script = (
        "import os, sys; from pathlib import Path; from fusefs.cache_directory import CacheDirectory\n"
        "cache = CacheDirectory.claim(Path(sys.argv[1]), 'dead')\n"
        "cache.stage.mkdir(); (cache.stage / '1').write_bytes(b'x'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    assert (tmp_path / "mounts/dead/stage/1").exists()
    cache = CacheDirectory.claim(tmp_path, "next")
    assert list((tmp_path / "mounts/dead").iterdir()) == []
    cache.release()


@pytest.mark.parametrize("what", ["copy", "clone"])
def test_a_copy_of_a_live_mounts_directory_is_no_sign_of_its_death(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk was copied, or a machine cloned, with the mount on it: who takes it for dead takes its lease at once."""
    live = CacheDirectory.claim(tmp_path / "cache", "live")
    if what == "copy":
        shutil.copytree(tmp_path / "cache", tmp_path / "other")
    else:  # in which the files have the same numbers, and nobody has the lock
        monkeypatch.setattr(cache_directory, "MACHINE_ID", tmp_path / "machine-id")
        (tmp_path / "machine-id").write_text("another")
        (tmp_path / "cache").rename(tmp_path / "other")
        live.release()
    for name in ("one", "two"):
        cache = CacheDirectory.claim(tmp_path / "other", name)
        assert cache.dead == []
        cache.release()


def test_what_was_rescued_is_never_touched(tmp_path: Path) -> None:
    cache = CacheDirectory.claim(tmp_path, "one")
    cache.rescued.mkdir(parents=True)
    (cache.rescued / "file").write_bytes(b"the only copy")
    cache.release()
    CacheDirectory.claim(tmp_path, "two").release()
    assert (cache.rescued / "file").read_bytes() == b"the only copy"


def test_some_room_is_held_for_a_rescue(tmp_path: Path) -> None:
    """The disk may be full of what is to be rescued, and files that are small are in memory alone."""
    cache = CacheDirectory.claim(tmp_path, "one")
    cache.stage.mkdir()
    free = os.statvfs(tmp_path)
    held = disk_use(cache.stage.parent)
    assert held >= min(MEMORY_BYTES, free.f_bavail * free.f_frsize // 65)
    cache.give_room()
    assert disk_use(cache.stage.parent) < MIB
    cache.release()


def test_a_full_disk_has_no_room_to_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    cache = CacheDirectory.claim(tmp_path, "one")
    cache.give_room()
    cache.release()


@pytest.mark.parametrize(("free", "left"), [(MIB, 4), (0, 2)])
def test_on_a_full_disk_what_was_kept_gives_way(
    free: int, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount cannot even have a directory there; what was not used for longest goes, and no more than has to."""
    kept = tmp_path / "kept"
    kept.mkdir()
    names = ["new", "old", "older", "oldest"]
    for age, name in enumerate(names):
        (kept / name).write_bytes(b"x")
        os.utime(kept / name, (-age, -age))

    def disk_space(_: Path) -> tuple[int, int]:
        return (free if len(list(kept.iterdir())) > 2 else MIB), 2 * MIB

    monkeypatch.setattr(kept_content, "disk_space", disk_space)
    CacheDirectory.claim(tmp_path, "one").release()
    assert {path.name for path in kept.iterdir()} == set(names[:left])


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mounts").mkdir()
    (tmp_path / "mounts/notes.txt").write_text("mine")
    CacheDirectory.claim(tmp_path, "one").release()
    assert (tmp_path / "mounts/notes.txt").read_text() == "mine"


def test_a_mount_waits_while_another_one_looks_around(tmp_path: Path) -> None:
    """Between mkdir and lock a directory looks dead: only one mount may be there at a time."""
    (tmp_path / "mounts").mkdir()
    other = os.open(tmp_path / "mounts", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    script = (
        "import sys; from pathlib import Path; from fusefs.cache_directory import CacheDirectory\n"
        "print('begun', flush=True); CacheDirectory.claim(Path(sys.argv[1]), 'one'); print('claimed', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        assert list((tmp_path / "mounts").iterdir()) == []
        os.close(other)
        assert process.stdout.readline() == "claimed\n"


@pytest.mark.parametrize("below", ["file", "file/cache"])
def test_a_cache_directory_that_cannot_be_one_is_one_clear_line(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MountError) as caught:
        CacheDirectory.claim(tmp_path / below, "one")
    message = str(caught.value)
    assert str(tmp_path / below) in message
    assert "\n" not in message
    assert "None" not in message


def test_each_mount_is_told_the_ids_of_dead_ones(tmp_path: Path) -> None:
    """Whichever comes next may be one of another prefix."""
    (tmp_path / "mounts/dead/stage").mkdir(parents=True)
    for name in ("another", "heir"):
        cache = CacheDirectory.claim(tmp_path, name)
        assert cache.dead == ["dead"]
        cache.release()


@pytest.mark.parametrize("moment", ["before it is looked at", "before its lock is tried"])
def test_a_mount_that_ends_while_another_one_looks_around(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = [CacheDirectory.claim(tmp_path, "ending")]
    is_dir, flock = Path.is_dir, fcntl.flock

    def end() -> None:
        if ending:
            ending.pop().release()

    def is_dir_for_now(path: Path) -> bool:
        found = is_dir(path)
        if path.name == "ending":
            end()
        return found

    def flock_too_late(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_NB:
            end()
        flock(descriptor, operation)

    if moment == "before it is looked at":
        monkeypatch.setattr(Path, "is_dir", is_dir_for_now)
    else:
        monkeypatch.setattr(fcntl, "flock", flock_too_late)
    cache = CacheDirectory.claim(tmp_path, "next")
    assert not ending
    assert cache.dead == []
    assert [path.name for path in (tmp_path / "mounts").iterdir()] == ["next"]
    cache.release()


def test_only_the_ids_of_the_last_dead_mounts_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT_DEAD + 2):
        directory = tmp_path / "mounts" / f"dead{number}"
        directory.mkdir(parents=True)
        os.utime(directory, ns=(number, number))
    CacheDirectory.claim(tmp_path, "one").release()
    last = CacheDirectory.claim(tmp_path, "last")
    assert set(last.dead) == {f"dead{number}" for number in range(2, KEPT_DEAD + 2)}
    last.release()
