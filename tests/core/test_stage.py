"""Sparse files, and few descriptors for many of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "stage", max_open_files=3)
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


@given(operations=operations)
def test_what_was_never_written_reads_as_zeros(operations: list[tuple[object, ...]]) -> None:
    """A stage file is an endless array of zeros, but for what was written and not cut."""
    size = 10_000
    with TemporaryDirectory() as directory:
        stage = Stage(Path(directory))
        file = stage.new_file()
        model = bytearray(size)
        for operation in operations:
            match operation:
                case ("write", int(offset), bytes(data)):
                    file.write(offset, data)
                    model[offset : offset + len(data)] = data
                case ("truncate", int(offset)):
                    file.truncate(offset)
                    model[offset:] = bytes(size - offset)
                case ("punch_hole", int(offset), int(length)):
                    file.punch_hole(offset, length)
                    end = min(offset + length, size)
                    model[offset:end] = bytes(end - offset)
                case _:
                    file.discard()
                    model = bytearray(size)
            assert file.read(0, size) == model
        stage.close()


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


def test_a_file_moves_out_whole(stage: Stage, tmp_path: Path) -> None:
    """The bytes are somebody else's then, with holes up to the size; here the file is empty."""
    file = stage.new_file()
    file.write(10, b"bytes")
    file.move_to(tmp_path / "rescued", 20)
    assert (tmp_path / "rescued").read_bytes() == bytes(10) + b"bytes" + bytes(5)
    assert file.read(0, 20) == bytes(20)
    file.write(0, b"again")
    assert (tmp_path / "rescued").read_bytes()[:5] == bytes(5)
