"""Every call of POSIX on names and attributes answers and changes the same as on a plain file system."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.mounts import Mount
from tests.support.posix_attributes import ATTRIBUTES
from tests.support.posix_calls import ROOT, SOMEBODY, User, run
from tests.support.posix_entries import ENTRIES

SCENARIOS = ENTRIES | ATTRIBUTES


@pytest.fixture
def plain() -> Iterator[Path]:
    """A directory on a file system that is in every Linux, and that other users can reach."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["owner", "shared"])
def mounted(request: pytest.FixtureRequest, new_mount: NewMount) -> Mount:
    """A mount of either kind: with the kernel's writeback cache, and without it."""
    flags = ["--shared"] if request.param == "shared" else []
    return new_mount("memory://", "--allow-other", *flags).mount()


@pytest.mark.parametrize("user", [ROOT, SOMEBODY], ids=["root", "somebody"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_same_answers_as_a_plain_file_system(name: str, user: User, plain: Path, mounted: Mount) -> None:
    expected = run(SCENARIOS[name], plain / name, user)
    found = run(SCENARIOS[name], mounted.path / name, user)
    for number, (should, is_) in enumerate(zip(expected, found, strict=True)):
        assert should == is_, f"call {number}: {should.call}"
