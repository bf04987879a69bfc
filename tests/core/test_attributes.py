"""POSIX attributes through an object's user metadata, in the form that s3fs writes."""

from __future__ import annotations

import stat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.rules import check_metadata
from fusefs.attributes import Attributes, Defaults, fresh, from_metadata, to_metadata

DEFAULTS = Defaults(uid=1000, gid=1001, file_mode=0o640, directory_mode=0o750)
STORED_AT_NS = 1_700_000_000_123_456_789
SECOND = 1_000_000_000

kinds = st.sampled_from([stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
permissions = st.integers(0, 0o7777)
owners = st.integers(0, 2**32 - 2)
times = st.integers(-(10**12 - 1) * SECOND, 10**12 * SECOND - 1)


def parse(metadata: dict[str, str], *, directory: bool = False) -> Attributes:
    return from_metadata(metadata, directory=directory, stored_at_ns=STORED_AT_NS, defaults=DEFAULTS)


@st.composite
def attributes(draw: st.DrawFn, kinds: st.SearchStrategy[int]) -> Attributes:
    return Attributes(
        mode=draw(kinds) | draw(permissions),
        uid=draw(owners),
        gid=draw(owners),
        atime_ns=draw(times),
        mtime_ns=draw(times),
        ctime_ns=draw(times),
        rdev=draw(st.integers(0, 2**32 - 1)),
    )


@given(attributes(kinds))
def test_what_is_written_is_read_again_to_the_nanosecond(written: Attributes) -> None:
    assert parse(to_metadata(written)) == written


@given(attributes(st.just(stat.S_IFDIR)))
def test_a_directory_keeps_its_attributes(written: Attributes) -> None:
    assert parse(to_metadata(written), directory=True) == written


@given(attributes(kinds))
def test_a_store_takes_the_metadata(written: Attributes) -> None:
    check_metadata(to_metadata(written))


def test_metadata_has_the_form_of_s3fs() -> None:
    """s3fs writes st_mode in decimal with its type, and tv_sec.tv_nsec with nine digits."""
    written = Attributes(
        mode=stat.S_IFREG | 0o644,
        uid=0,
        gid=10,
        atime_ns=5 * SECOND,
        mtime_ns=1_600_000_000 * SECOND + 42,
        ctime_ns=-1,
    )
    assert to_metadata(written) == {
        "mode": "33188",
        "uid": "0",
        "gid": "10",
        "atime": "5.000000000",
        "mtime": "1600000000.000000042",
        "ctime": "-1.999999999",
    }


@pytest.mark.parametrize(
    ("text", "mtime_ns"),
    [
        ("1600000000", 1_600_000_000 * SECOND),
        ("1600000000.5", 1_600_000_000 * SECOND + SECOND // 2),  # rclone leaves zeros at the end out
        ("1600000000.000000001", 1_600_000_000 * SECOND + 1),
        ("1600000000.0000000019", 1_600_000_000 * SECOND + 1),
        ("0", 0),
        ("-1", -SECOND),
        ("-1.999999999", -1),
    ],
)
def test_times_that_others_write(text: str, mtime_ns: int) -> None:
    read = parse({"mtime": text})
    assert read.mtime_ns == mtime_ns
    assert read.atime_ns == read.ctime_ns == mtime_ns, "what is not told is the same time"


def test_an_object_without_metadata_has_the_defaults_of_the_mount() -> None:
    assert parse({}) == fresh(mode=stat.S_IFREG | 0o640, uid=1000, gid=1001, now_ns=STORED_AT_NS)
    assert parse({}, directory=True).mode == stat.S_IFDIR | 0o750


def test_the_key_decides_whether_it_is_a_directory() -> None:
    assert parse({"mode": str(stat.S_IFDIR | 0o700)}).mode == stat.S_IFREG | 0o700
    assert parse({"mode": str(stat.S_IFREG | 0o600)}, directory=True).mode == stat.S_IFDIR | 0o600


@pytest.mark.parametrize("mode", [0o644, 0o030644, 0o170644])
def test_a_type_that_is_none_is_a_regular_file(mode: int) -> None:
    assert parse({"mode": str(mode)}).mode == stat.S_IFREG | 0o644


NAMES = st.sampled_from(["mode", "uid", "gid", "mtime", "atime", "ctime", "rdev", "other"])


@given(
    st.dictionaries(NAMES, st.text(max_size=40) | st.from_regex(r"[-+0-9.eE_]{0,40}", fullmatch=True)),
    st.booleans(),
)
@example({"mtime": "1E+9999999"}, False)
@example(
    {"mtime": "NaN", "atime": "Infinity", "ctime": "1" * 40, "uid": "-1", "gid": "٣", "mode": "1e3"}, False
)
@example({"mtime": ".", "atime": "-", "ctime": "1.", "uid": "4294967295"}, True)
def test_garbage_falls_back_to_defaults(metadata: dict[str, str], directory: bool) -> None:
    """Whatever others have written there, the file can be shown; what is shown can be stored and read again."""
    read = parse(metadata, directory=directory)
    assert stat.S_ISDIR(read.mode) == directory
    assert parse(to_metadata(read), directory=directory) == read


def test_defaults_stand_in_for_each_value_alone() -> None:
    read = parse({"mtime": "yesterday", "uid": "4294967295", "gid": "7", "mode": "rwx", "rdev": "-1"})
    assert read.mtime_ns == STORED_AT_NS
    assert (read.uid, read.gid, read.rdev) == (1000, 7, 0)
    assert read.mode == stat.S_IFREG | 0o640


def test_a_change_moves_ctime_and_with_contents_mtime() -> None:
    before = fresh(mode=stat.S_IFREG | 0o644, uid=1, gid=1, now_ns=10)
    assert (before.changed(20).ctime_ns, before.changed(20).mtime_ns) == (20, 10)
    assert before.changed(20, contents=True).mtime_ns == 20
    assert before.changed(20, contents=True).atime_ns == 10
