"""The benchmark yields figures, and its checks would notice a file system that lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.bench.__main__ import run_workload
from tests.bench.arena import MIB, Sizes
from tests.bench.file_systems import FileSystem, PlainDirectory, fusefs
from tests.bench.report import Run, as_json, as_markdown, rows
from tests.bench.usage import Requests, parse_metrics, uncounted
from tests.bench.workloads import WORKLOADS

TINY: Final = Sizes(
    commits=3,
    wal_bytes=64 * 1024,
    large_bytes=64 * 1024,
    stream_bytes=2 * MIB,
    files=5,
    random_reads=3,
    inserts=3,
    patience_seconds=5,
)


class Forgetful(PlainDirectory):
    """Loses the end of every file with its host, and in an unmount: what it has acknowledged was not stored."""

    name = "forgetful"

    def umount(self) -> None:
        self.lose_host()

    def lose_host(self) -> None:
        for path in self.path.rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:-1])


class Refusing(PlainDirectory):
    """Cannot be mounted."""

    name = "refusing"

    def mount(self) -> None:
        raise PermissionError("no")


def on_fusefs(directory: Path) -> FileSystem:
    (directory / "bucket").mkdir()
    return fusefs(directory, f"file://{directory / 'bucket'}", environment={}, bucket=None)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_workload_yields_figures_and_finds_nothing_lost(workload: str, tmp_path: Path) -> None:
    run = run_workload(workload, PlainDirectory(tmp_path), uncounted, TINY)
    assert run.failure is None
    assert run.figures
    assert all(figure.value > 0 and figure.span.seconds > 0 for figure in run.figures)


@pytest.mark.parametrize("workload", ["appends", "small-files"])
def test_fusefs_is_measured_through_a_mount(workload: str, tmp_path: Path) -> None:
    system = on_fusefs(tmp_path)
    try:
        run = run_workload(workload, system, uncounted, TINY)
    finally:
        system.close()
    assert run.failure is None
    assert run.figures
    assert max(figure.span.peak_rss_bytes for figure in run.figures) > MIB


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_file_system_that_lies_is_shown(workload: str, tmp_path: Path) -> None:
    run = run_workload(workload, Forgetful(tmp_path), uncounted, TINY)
    assert run.failure is not None
    assert run.failure.startswith(("LOST", "failed"))


def test_a_file_system_that_fails_is_shown(tmp_path: Path) -> None:
    run = run_workload("commits", Refusing(tmp_path), uncounted, TINY)
    assert run.failure == "failed: no"
    assert "| commits | refusing |" in as_markdown([run], command="scripts/bench")


@pytest.mark.parametrize("text", [as_json, as_markdown])
def test_the_report_has_every_figure(text: Callable[..., str], tmp_path: Path) -> None:
    runs = [
        run_workload("appends", PlainDirectory(tmp_path / str(number)), uncounted, TINY)
        for number in range(2)
    ]
    told = text(runs, command="scripts/bench --runs 2")
    assert "scripts/bench --runs 2" in told
    assert all(figure.what in told for run in runs for figure in run.figures)


def test_a_row_has_all_runs_of_a_figure(tmp_path: Path) -> None:
    runs: list[Run] = []
    for number, system in enumerate((PlainDirectory, Forgetful, PlainDirectory)):
        runs.append(run_workload("commits", system(tmp_path / str(number)), uncounted, TINY))
    table = [row for row in rows(runs) if row.what.endswith("p50")]
    assert [(row.file_system, len(row.values), len(row.failures)) for row in table] == [
        ("plain directory", 2, 0),
        ("forgetful", 1, 1),
    ]
    assert len(json.loads(as_json(runs, command=""))["runs"]) == 3


def test_requests_are_summed_over_kinds() -> None:
    text = """# TYPE SeaweedFS_s3_request_total counter
SeaweedFS_s3_request_total{bucket="b",code="200",type="PUT"} 2
SeaweedFS_s3_request_total{bucket="b",code="404",type="GET"} 3
SeaweedFS_s3_bucket_traffic_received_bytes_total{bucket="b"} 1.5e+03
SeaweedFS_s3_bucket_traffic_sent_bytes_total{bucket="b"} 7
"""
    assert parse_metrics(text) == Requests(count=5, bytes_sent=1500, bytes_received=7)
