"""What the report, the verdicts and the pictures make of runs, and that README.md tells what was published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.bench.__main__ import SIZES
from tests.bench.arena import MIB, Figure, Span
from tests.bench.plots import draw, draw_bars
from tests.bench.publication import README, published, with_section
from tests.bench.report import Report
from tests.bench.runs import Run, number, rows
from tests.bench.usage import Requests
from tests.bench.verdicts import CLIENT, NULL, OURS, PLAIN, TARGETS, Target, verdict

COMMIT: Final = "commit of 8 KiB, p50"
PUT: Final = "one PUT of 8 KiB, p50"
APPENDS: Final = "commits of 144 B, clients: 16"
WRITE: Final = "sequential write, to published"


def run(
    system: str, what: str, value: float, unit: str = "ms", *, failure: str | None = None, at: float = 20
) -> Run:
    span = Span(
        seconds=2, cpu_seconds=0.5, peak_rss_bytes=64 * MIB, requests=Requests(count=300, log_puts=50)
    )
    figure = Figure(what=what, value=value, unit=unit, span=span)
    return Run(workload="w", file_system=system, round_trip_ms=at, figures=[figure], failure=failure)


CANNED: Final = [
    run(OURS, COMMIT, 24),
    run(CLIENT, PUT, 22),
    run("JuiceFS", COMMIT, 26),
    run(OURS, COMMIT, 30),
    run(OURS, COMMIT, 25),
    run("rclone", COMMIT, 0.04, failure="LOST: wal has not the bytes that were acknowledged"),
    run(OURS, COMMIT, 6, at=5),
    run(OURS, APPENDS, 400, "1/s"),
    run(OURS, WRITE, 210, "MiB/s"),
    run("s3fs", WRITE, 190, "MiB/s"),
    run("rclone", WRITE, 900, "MiB/s", failure="did not end in 75 s"),
]


def report(runs: Sequence[Run] = CANNED) -> Report:
    return Report(command="scripts/bench", machine="a machine", sizes=SIZES["smoke"], runs=runs)


def target(title: str) -> Target:
    return next(each for each in TARGETS if each.title == title)


@pytest.mark.parametrize(
    ("title", "told"),
    [
        (COMMIT, ("25.0 ms", "<= 25.3 (1.15 x one PUT)", "reached")),
        ("commits per PUT into the log, 16 clients", ("16.0", ">= 10.0 (10)", "reached")),
        (WRITE, ("210 MiB/s", ">= 190 (best peer)", "reached")),
        ("sequential read, cold", ("", "best peer", "not measured: sequential read, cold of fusefs")),
    ],
)
def test_a_verdict_tells_both_figures_of_the_same_run(title: str, told: tuple[str, str, str]) -> None:
    assert verdict(target(title), CANNED) == told


def test_a_target_is_missed_by_a_worse_median() -> None:
    runs = [run(OURS, COMMIT, 30), run(CLIENT, PUT, 22)]
    assert verdict(target(COMMIT), runs) == ("30.0 ms", "<= 25.3 (1.15 x one PUT)", "missed")


def test_a_target_is_missed_by_a_run_that_failed() -> None:
    runs = [*CANNED, run(OURS, COMMIT, 24, failure="LOST: wal")]
    assert verdict(target(COMMIT), runs)[2] == "missed: a run has failed"


def test_a_peer_that_lost_data_is_no_reference() -> None:
    runs = [run(OURS, WRITE, 210, "MiB/s"), run("rclone", WRITE, 900, "MiB/s", failure="LOST: stream")]
    assert verdict(target(WRITE), runs)[2].startswith("not measured")


def test_what_sends_nothing_is_the_limit_at_every_round_trip() -> None:
    runs = [
        run(OURS, WRITE, 400, "MiB/s", at=0),
        run(CLIENT, "one PUT of the stream", 800, "MiB/s", at=0),
        run(NULL, WRITE, 450, "MiB/s"),
    ]
    found = verdict(target(f"{WRITE}, no added round trip"), runs)
    assert found == ("400 MiB/s", ">= 360 (0.8 x the smaller limit)", "reached")


def test_the_table_has_minimum_median_maximum_and_cost() -> None:
    assert (
        f"| {COMMIT} | {OURS} | 24.0 | 25.0 | 30.0 | ms | 3 | 64 | 0.50 | 300 | 0.0 | 0.0 |  |"
        in report().as_markdown()
    )


def test_a_run_without_figures_is_in_the_table() -> None:
    silent = Run(
        workload="git", file_system="s3fs", round_trip_ms=20, figures=[], failure="did not end in 75 s"
    )
    told = report([*CANNED, silent]).as_markdown()
    assert f"| git | s3fs |{'  |' * 10} did not end in 75 s |" in told


def test_the_json_is_read_as_it_was_written() -> None:
    assert Report.from_json(report().as_json()) == report()


def test_pictures_are_made(tmp_path: Path) -> None:
    names = {path.name for path in draw(report(), tmp_path)}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert {"overview.png", "commit-latency.png", "clients.png", "round-trip-5-ms.png"} <= names


def test_numbers_stay_within_the_frame(tmp_path: Path) -> None:
    many = [
        run(name, "unlink", value, "files/s") for name, value in ((OURS, 123456), (PLAIN, 0.5), ("s3fs", 9.0))
    ]
    few = [run(name, COMMIT, value) for name, value in ((OURS, 1234567), ("s3fs", 1200000))]
    picture: Any = draw_bars(list(rows([*many, *few])), "title")
    picture.savefig(tmp_path / "picture.png")
    for axis in picture.axes[:2]:
        frame = axis.get_window_extent()
        assert all(text.get_window_extent().x1 <= frame.x1 for text in axis.texts)


@pytest.mark.parametrize(
    ("value", "told"), [(0.0412, "0.041"), (1.5, "1.50"), (25.31, "25.3"), (585.2, "585"), (5850, "5,850")]
)
def test_a_number_has_no_powers_of_ten(value: float, told: str) -> None:
    assert number(value) == told


def test_readme_tells_what_was_published() -> None:
    text = README.read_text()
    assert with_section(text, published()) == text


def test_the_section_is_replaced_by_a_new_one() -> None:
    bare = with_section(README.read_text(), None)
    once = with_section(bare, report())
    assert with_section(once, report()) == once
    assert with_section(once, None) == bare
    assert "| write 8 KiB and fdatasync, median, ms | 25.0 | 26.0 | 0.040 \\* | – |" in once
