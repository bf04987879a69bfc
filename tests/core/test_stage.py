"""Sparse files, and few descriptors for many of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.stage import BLOCK_BYTES, MAX_WRITE_BYTES, MEMORY_FILE_BYTES, Stage, StageFile
from tests.core.small_disk import refuse_holes


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "stage", max_open_files=3, memory_bytes=0)
    yield stage
    stage.close()


def _open_descriptors(directory: Path) -> int:
    links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _exists(name)]
    return sum(link.startswith(str(directory)) for link in links)


def _exists(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


def test_nothing_is_made_on_disk_before_the_first_write(stage: Stage, tmp_path: Path) -> None:
    file = stage.new_file()
    assert file.read(5, 3) == bytes(3)
    file.truncate(0)
    file.punch_hole(0, 10)
    file.discard()
    assert list((tmp_path / "stage").iterdir()) == []


operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 9_000), st.binary(min_size=1, max_size=500)),
        st.tuples(st.just("truncate"), st.integers(0, 9_000)),
        st.tuples(st.just("punch_hole"), st.integers(0, 9_000), st.integers(1, 5_000)),
        st.tuples(st.just("discard")),
    )
)


@given(operations=operations, memory_bytes=st.integers(0, 12_000), has_holes=st.booleans())
def test_what_was_never_written_reads_as_zeros(
    operations: list[tuple[object, ...]], memory_bytes: int, has_holes: bool
) -> None:
    """A stage file is an endless array of zeros, but for what was written and not cut; that alone takes space."""
    size = 10_000
    written: set[int] = set()
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patched:
        if not has_holes:
            refuse_holes(patched)
        stage = Stage(Path(directory), memory_bytes=memory_bytes)
        file = stage.new_file()
        model = bytearray(size)
        for operation in operations:
            match operation:
                case ("write", int(offset), bytes(data)):
                    file.write(offset, data)
                    model[offset : offset + len(data)] = data
                    written.update(range(offset // BLOCK_BYTES, -(-(offset + len(data)) // BLOCK_BYTES)))
                case ("truncate", int(offset)):
                    file.truncate(offset)
                    model[offset:] = bytes(size - offset)
                    written.intersection_update(range(-(-offset // BLOCK_BYTES)))
                case ("punch_hole", int(offset), int(length)):
                    file.punch_hole(offset, length)
                    end = min(offset + length, size)
                    model[offset:end] = bytes(end - offset)
                    if has_holes:
                        written.difference_update(
                            range(-(-offset // BLOCK_BYTES), (offset + length) // BLOCK_BYTES)
                        )
                case _:
                    file.discard()
                    model = bytearray(size)
                    written.clear()
            assert file.read(0, size) == model
            # A hole that is punched beyond the end takes the last block with it, on some file systems.
            assert file.is_in_memory or file.allocated >= _on_disk_in(file)
            assert memory_bytes or file.allocated == BLOCK_BYTES * len(written)
        stage.close()


def test_a_read_is_whole_however_little_the_kernel_gives_at_once(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pread(2) gives no more than 0x7ffff000 bytes, and the parts of a huge object have more."""
    pread = os.pread
    monkeypatch.setattr(
        os, "pread", lambda descriptor, length, offset: pread(descriptor, min(length, 100), offset)
    )
    file = stage.new_file()
    body = bytes(range(250)) * 4
    file.write(0, body)
    assert file.read(0, 1_000) == body
    assert file.read(950, 100) == body[950:] + bytes(50)
    assert file.read(2_000, 300) == bytes(300)
    assert file.cut(300, at_most=700) == body[300:]


def _on_disk_in(file: StageFile) -> int:
    """Return how many bytes of a file the disk has, as it says itself, in whole blocks."""
    ranges = file.data_in(0, 20_000)
    return BLOCK_BYTES * len(
        {block for start, end in ranges for block in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))}
    )


def test_what_was_taken_over_takes_as_much_as_before(stage: Stage, tmp_path: Path) -> None:
    file = stage.new_file()
    file.write(10 * BLOCK_BYTES, b"x" * 5000)
    file.leave_at(tmp_path / "kept", 100 * BLOCK_BYTES, b"trailer")
    assert file.allocated == 0
    file = stage.new_file()
    file.take_over(tmp_path / "kept")
    assert file.cut(100 * BLOCK_BYTES, 10) == b"trailer"
    assert file.allocated == 2 * BLOCK_BYTES


def test_many_files_need_few_descriptors(stage: Stage, tmp_path: Path) -> None:
    """The one that was not used for longest is closed, and opened again when it is used."""
    files = [stage.new_file() for _ in range(20)]
    for number, file in enumerate(files):
        file.write(0, str(number).encode())
    assert _open_descriptors(tmp_path) == 3
    assert [file.read(0, 2).rstrip(b"\0") for file in files] == [str(n).encode() for n in range(20)]
    for file in files:
        file.discard()
    assert _open_descriptors(tmp_path) == 0
    assert list((tmp_path / "stage").iterdir()) == []


def test_a_file_that_somebody_has_removed_is_not_read_as_zeros(stage: Stage, tmp_path: Path) -> None:
    """They would go up as the bytes of a file; a program that clears caches may have found the directory."""
    file, *others = [stage.new_file() for _ in range(4)]
    for each in (file, *others):
        each.write(0, bytes([1]) * BLOCK_BYTES)
    for path in (tmp_path / "stage").iterdir():
        path.unlink()
    for use in (lambda: file.read(0, 2), lambda: file.write(0, b"2"), lambda: file.data_in(0, 2)):
        with pytest.raises(OSError, match="is gone") as raised:
            use()
        assert raised.value.errno == errno.EIO
    assert list((tmp_path / "stage").iterdir()) == []


def test_a_file_moves_out_whole(stage: Stage, tmp_path: Path) -> None:
    """The bytes are somebody else's then, with holes up to the size; here the file is empty."""
    file = stage.new_file()
    file.write(10, b"bytes")
    file.move_to(tmp_path / "rescued", 20)
    assert (tmp_path / "rescued").read_bytes() == bytes(10) + b"bytes" + bytes(5)
    assert file.read(0, 20) == bytes(20)
    file.write(0, b"again")
    assert (tmp_path / "rescued").read_bytes()[:5] == bytes(5)


def test_a_file_system_without_holes_gives_nothing_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever wants no more than the space is told, once in the log, and the bytes are as they were."""
    refuse_holes(monkeypatch)
    files = [stage.new_file() for _ in range(3)]
    for file in files:
        file.write(0, b"0123456789")
        assert not file.give_back(2, 5)
        assert file.read(0, 10) == b"0123456789"
    assert len(caplog.messages) == 1
    files[0].punch_hole(2, 5)
    assert files[0].read(0, 10) == b"01" + bytes(5) + b"789"


def test_a_used_up_quota_is_a_full_disk(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bytes as of files; for whoever writes, something has to give way in both cases."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    for call in ("pwrite", "open"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, refuse)
            with pytest.raises(OSError, match="quota") as full:
                stage.new_file().write(0, b"bytes")
            assert full.value.errno == errno.ENOSPC


def _no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _on_disk(tmp_path: Path) -> int:
    return len(list((tmp_path / "stage").iterdir()))


def test_small_files_are_in_memory_until_there_is_no_room(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage", memory_bytes=1_000)
    first, second = stage.new_file(), stage.new_file()
    first.write(0, bytes(range(250)) * 4)
    assert _on_disk(tmp_path) == 0
    second.write(0, b"x")
    assert _on_disk(tmp_path) == 1
    first.truncate(500)
    third = stage.new_file()
    third.write(499, b"y")
    assert _on_disk(tmp_path) == 1
    for file in (first, second, third):
        file.discard()
    first.write(999, b"z")
    assert _on_disk(tmp_path) == 0
    stage.close()


def test_a_file_that_grows_goes_to_the_disk_and_gives_its_memory_back(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage", memory_bytes=MEMORY_FILE_BYTES)
    file, other = stage.new_file(), stage.new_file()
    file.write(0, b"a" * MEMORY_FILE_BYTES)
    assert _on_disk(tmp_path) == 0
    file.write(MEMORY_FILE_BYTES, b"b")
    assert _on_disk(tmp_path) == 1
    assert file.read(MEMORY_FILE_BYTES - 1, 3) == b"ab\0"
    other.write(0, b"c" * MEMORY_FILE_BYTES)
    assert _on_disk(tmp_path) == 1
    stage.close()


def test_a_full_disk_takes_nothing_from_a_file_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path / "stage")
    file = stage.new_file()
    file.write(0, b"content")
    with monkeypatch.context() as patched:
        for full in (lambda *_: 3, _no_space):
            patched.setattr(os, "pwrite", full)
            with pytest.raises(OSError, match="No space"):
                file.write(MEMORY_FILE_BYTES, b"more")
            assert _open_descriptors(tmp_path) == 0
    assert file.read(0, 7) == b"content"
    assert _on_disk(tmp_path) == 0
    assert file.write(MEMORY_FILE_BYTES, b"more") == 4
    assert file.read(0, 7) == b"content"
    stage.close()


def test_a_long_write_is_taken_in_pieces(stage: Stage) -> None:
    """Each is small enough that no page cache takes huge pages for it, and a caller that goes on has written all."""
    data = os.urandom(2 * MAX_WRITE_BYTES + 5)
    file, sizes, position = stage.new_file(), [], 0
    while position < len(data):
        sizes.append(file.write(7 + position, data[position:]))
        position += sizes[-1]
    assert sizes == [MAX_WRITE_BYTES, MAX_WRITE_BYTES, 5]
    assert file.read(0, 7 + len(data)) == bytes(7) + data
