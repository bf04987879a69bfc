"""A mount and a plain directory stay the same, whatever calls they get; `scripts/soak` goes on with other calls."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.support.differential import Differential, run
from tests.support.moments import Entry, Moment, is_between
from tests.support.seaweedfs import SeaweedFS
from tests.support.twins import Difference
from tests.support.variants import VARIANTS, open_arena


@pytest.mark.parametrize(("variant", "seed"), [("directory", 4), ("s3", 5), ("small-parts", 6)])
def test_same_as_a_plain_directory(variant: str, seed: int, s3_server: SeaweedFS, tmp_path: Path) -> None:
    with open_arena(VARIANTS[variant], tmp_path, s3_server, seed=seed) as arena:
        run(arena, random_seed=seed, runs=3, steps=40)


def test_a_failure_is_told_at_once(
    s3_server: SeaweedFS, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hypothesis repeats a failure, and forgets what it was where it does not come again."""
    with open_arena(VARIANTS["directory"], tmp_path, s3_server, seed=1) as arena:
        machine = Differential(arena)
        with pytest.raises(Difference), machine.told("step", {"path": "file"}):
            raise Difference("of one run")
        assert "of one run\nthe steps in " in capsys.readouterr().err
        machine.teardown()


def _file(content: bytes | None, *, links: int = 1) -> Entry:
    return Entry(stat.S_IFREG | 0o644, (0, 0), links, content)


@pytest.mark.parametrize(
    ("found", "is_one"),
    [
        ({"a": _file(b"1"), "b": _file(b"1")}, True),
        ({"a": _file(b"1"), "b": _file(b"2")}, True),
        ({"a": _file(b"1"), "b": _file(b"half of 2")}, True),
        ({"a": _file(b"1")}, True),
        ({"a": _file(b"2"), "b": _file(b"1")}, False),
        ({"a": _file(b"1", links=2), "b": _file(b"1")}, False),
        ({"a": _file(b"1"), "b": _file(b"1"), "c": _file(b"1")}, False),
        ({"b": _file(b"1")}, False),
    ],
)
def test_what_a_crash_may_leave(found: Moment, is_one: bool) -> None:
    """Only what the step has changed may be anything."""
    before, after = {"a": _file(b"1"), "b": _file(b"1")}, {"a": _file(b"1"), "b": _file(b"2")}
    assert is_between(found, before, after) is is_one


def test_what_only_the_kernel_may_know_may_be_anything() -> None:
    before = {"a": _file(None), "b": _file(b"1")}
    assert is_between({"a": _file(b"any"), "b": _file(b"1")}, before, before)
    assert not is_between({"a": _file(b"any"), "b": _file(b"any")}, before, before)
    assert not is_between({"b": _file(b"1")}, before, before)
