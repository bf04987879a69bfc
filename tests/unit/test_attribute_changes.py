"""What is set of an inode's attributes, what follows from it, and what is left alone."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.attribute_changes import AttributeChanges, with_owner_and_mode, with_times, without_set_id_bits
from fusefs.attributes import fresh, nearest_time

BEFORE = fresh(mode=stat.S_IFREG | 0o6755, uid=1000, gid=1001, now_ns=1)
NOW_NS = 2
OWNER = 1000

times = st.none() | st.integers(-(2**62), 2**62)


@given(times, times, times)
def test_times_that_are_given_are_set_and_the_others_stay(
    atime_ns: int | None, mtime_ns: int | None, ctime_ns: int | None
) -> None:
    changes = AttributeChanges(atime_ns=atime_ns, mtime_ns=mtime_ns, ctime_ns=ctime_ns)
    after = with_times(BEFORE, changes, NOW_NS)
    assert after == replace(
        BEFORE,
        atime_ns=BEFORE.atime_ns if atime_ns is None else atime_ns,
        mtime_ns=BEFORE.mtime_ns if mtime_ns is None else mtime_ns,
        ctime_ns=NOW_NS if ctime_ns is None else ctime_ns,
    )


def test_a_time_that_metadata_cannot_hold_is_the_nearest_that_it_can() -> None:
    after = with_times(BEFORE, AttributeChanges(mtime_ns=2**80), NOW_NS)
    assert after is not None
    assert after.mtime_ns == nearest_time(2**80) < 2**80


def test_a_request_that_sets_nothing_moves_ctime() -> None:
    """chown(path, -1, -1)."""
    assert with_times(BEFORE, AttributeChanges(), NOW_NS) == replace(BEFORE, ctime_ns=NOW_NS)
    assert with_owner_and_mode(BEFORE, AttributeChanges(), NOW_NS, kernel_keeps_times=False) is None


@pytest.mark.parametrize(
    "changes", [AttributeChanges(mode=0o600), AttributeChanges(uid=7), AttributeChanges(size=0)]
)
def test_what_is_about_no_time_sets_none(changes: AttributeChanges) -> None:
    assert with_times(BEFORE, changes, NOW_NS) is None


@pytest.mark.parametrize("changes", [AttributeChanges(size=0), AttributeChanges(mtime_ns=7)])
def test_what_is_about_neither_owner_nor_mode_sets_none(changes: AttributeChanges) -> None:
    assert with_owner_and_mode(BEFORE, changes, NOW_NS, kernel_keeps_times=False) is None


@pytest.mark.parametrize("kernel_keeps_times", [False, True])
def test_owner_and_group_are_set_one_by_one_and_ctime_moves(*, kernel_keeps_times: bool) -> None:
    for changes, expected in (
        (AttributeChanges(uid=0), replace(BEFORE, uid=0, ctime_ns=NOW_NS)),
        (AttributeChanges(gid=0), replace(BEFORE, gid=0, ctime_ns=NOW_NS)),
        (AttributeChanges(uid=7, gid=8), replace(BEFORE, uid=7, gid=8, ctime_ns=NOW_NS)),
    ):
        after = with_owner_and_mode(BEFORE, changes, NOW_NS, kernel_keeps_times=kernel_keeps_times)
        assert after == expected


@given(st.integers(0, 0xFFFF))
def test_a_mode_sets_permissions_and_never_the_type(mode: int) -> None:
    after = with_owner_and_mode(BEFORE, AttributeChanges(mode=mode), NOW_NS, kernel_keeps_times=False)
    assert after == replace(BEFORE, mode=stat.S_IFREG | mode & 0o7777, ctime_ns=NOW_NS)


@pytest.mark.parametrize(("kernel_keeps_times", "ctime_ns"), [(False, NOW_NS), (True, BEFORE.ctime_ns)])
def test_a_mode_that_comes_with_a_size_leaves_ctime_to_a_kernel_that_keeps_times(
    *, kernel_keeps_times: bool, ctime_ns: int
) -> None:
    """truncate(2) by somebody else than the owner: the kernel takes set-ID bits away in the same request."""
    changes = AttributeChanges(size=0, mode=0o755)
    after = with_owner_and_mode(BEFORE, changes, NOW_NS, kernel_keeps_times=kernel_keeps_times)
    assert after == replace(BEFORE, mode=stat.S_IFREG | 0o755, ctime_ns=ctime_ns)


@pytest.mark.parametrize(
    ("writer_uid", "mode", "left"),
    [
        (OWNER, 0o6755, 0o755),
        (OWNER, 0o4644, 0o644),
        (OWNER, 0o2755, 0o755),
        (OWNER, 0o2745, 0o2745),  # without the group's right to execute it is no set-ID bit
        (OWNER, 0o1777, 0o1777),
        (0, 0o6755, 0o6755),
    ],
)
def test_set_id_bits_go_when_anybody_but_root_writes(writer_uid: int, mode: int, left: int) -> None:
    before = replace(BEFORE, mode=stat.S_IFREG | mode)
    assert without_set_id_bits(before, writer_uid) == replace(BEFORE, mode=stat.S_IFREG | left)
