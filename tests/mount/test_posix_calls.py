"""Every call of POSIX on names and attributes answers and changes the same as on a plain file system.

And what there is after all of them is what another mount shows.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount, discarded_after
from tests.support.mounts import Mount
from tests.support.posix_attributes import ATTRIBUTES
from tests.support.posix_calls import ROOT, SOMEBODY, Seen, User, look_below, run
from tests.support.posix_descriptors import DESCRIPTORS
from tests.support.posix_entries import ENTRIES
from tests.support.posix_permissions import PERMISSIONS
from tests.support.posix_random import RANDOM

SCENARIOS = ENTRIES | ATTRIBUTES | PERMISSIONS | DESCRIPTORS | RANDOM


@pytest.fixture
def plain() -> Iterator[Path]:
    """A directory on a file system that is in every Linux, and that other users can reach."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module", params=["owner", "shared"])
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount of either kind: with the kernel's writeback cache, and without it. All scenarios run on it."""
    flags = ["--shared"] if request.param == "shared" else []
    mount = Mount(
        tmp_path_factory.mktemp(request.param), "memory://", "--allow-other", *flags, environment={}
    )
    with discarded_after([mount]):
        yield mount.mount()


@pytest.mark.parametrize("user", [ROOT, SOMEBODY], ids=["root", "somebody"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_same_answers_as_a_plain_file_system(name: str, user: User, plain: Path, mounted: Mount) -> None:
    place = f"{name} {user.uid}"
    expected = run(SCENARIOS[name], plain / place, user)
    found = run(SCENARIOS[name], mounted.path / place, user)
    for number, (should, is_) in enumerate(zip(expected, found, strict=True)):
        assert should == is_, f"call {number}: {should.call}"


@pytest.mark.parametrize("store", ["directory", "server"])
def test_another_mount_shows_the_same(store: str, new_mount: NewMount, tmp_path: Path) -> None:
    """Names, kinds, permissions, owners, sizes, inode numbers and times, to the nanosecond."""
    url = None
    if store == "directory":
        (tmp_path / "bucket").mkdir()
        url = f"file://{tmp_path / 'bucket'}"
    mount = new_mount(url, "--allow-other").mount()
    # SeaweedFS takes a backslash in a key for a slash.
    scenarios = {name: SCENARIOS[name] for name in SCENARIOS if store == "directory" or name != "names"}
    for user in (ROOT, SOMEBODY):
        for name, scenario in scenarios.items():
            run(scenario, mount.path / f"{name} {user.uid}", user)
    before = look_at(mount.path)
    mount.remount()
    after = look_at(mount.path)
    assert before.keys() == after.keys()
    assert {path: (seen, after[path]) for path, seen in before.items() if seen != after[path]} == {}


def look_at(root: Path) -> dict[str, Seen]:
    """Return what lstat(2) tells of everything below; links of directories are counted when they are listed."""
    found = {}
    for path, seen in look_below(str(root)):
        if path != str(root):
            kind = stat.S_IFMT(os.lstat(path).st_mode)
            fields = tuple(field for field in seen.fields if kind != stat.S_IFDIR or field[0] != "links")
            found[path] = Seen(seen.number, fields, seen.mtime_ns, seen.ctime_ns)
    return found
