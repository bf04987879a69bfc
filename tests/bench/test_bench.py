"""The benchmark yields figures, and its checks would notice a file system that lies."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Final

import pytest

from tests.bench.arena import MIB, Sizes
from tests.bench.bench import owner_of, run_workload
from tests.bench.file_systems import FileSystem, fusefs
from tests.bench.limits import Limits
from tests.bench.references import NullFileSystem, PlainDirectory
from tests.bench.report import Report
from tests.bench.runs import Run, rows
from tests.bench.usage import Requests, parse_metrics, server_counter, uncounted
from tests.bench.workloads import WORKLOADS
from tests.support.seaweedfs import SeaweedFS

TINY: Final = Sizes(
    commits=3,
    wal_bytes=64 * 1024,
    large_bytes=64 * 1024,
    stream_bytes=2 * MIB,
    files=5,
    random_reads=3,
    inserts=3,
    tree_files=20,
    git_files=10,
    listed={"some": 5, "many": 12},
    redis_commits=3,
    pgbench_seconds=1,
    pgbench_clients=[1],
    patience_seconds=5,
    limit_seconds=300,
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


class Silent(PlainDirectory):
    """Answers nothing until it is ended by force."""

    name = "silent"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._ended = Event()

    def mount(self) -> None:
        self._ended.wait()
        raise OSError("gone")

    def abandon(self) -> None:
        self._ended.set()


class Refusing(PlainDirectory):
    """Cannot be mounted."""

    name = "refusing"

    def mount(self) -> None:
        raise PermissionError("no")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that PostgreSQL's user can reach."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def on_fusefs(directory: Path, workload: str) -> FileSystem:
    (directory / "bucket").mkdir()
    owner = owner_of(workload)
    return fusefs(directory, f"file://{directory / 'bucket'}", environment={}, bucket=None, owner=owner)


@pytest.mark.parametrize("workload", [each for each in WORKLOADS if each != "postgresql"])
def test_every_workload_yields_figures_and_finds_nothing_lost(workload: str, place: Path) -> None:
    run = run_workload(workload, PlainDirectory(place), uncounted, TINY)
    assert run.failure is None
    assert run.figures
    assert all(figure.value > 0 and figure.span.seconds > 0 for figure in run.figures)


@pytest.mark.parametrize("workload", ["commits", "small-files", "postgresql"])
def test_fusefs_is_measured_through_a_mount(workload: str, place: Path) -> None:
    system = on_fusefs(place, workload)
    try:
        run = run_workload(workload, system, uncounted, TINY)
    finally:
        system.close()
    assert run.failure is None
    assert run.figures
    assert max(figure.span.peak_rss_bytes for figure in run.figures) > MIB


@pytest.mark.parametrize("workload", [each for each in WORKLOADS if each not in ("postgresql", "redis")])
def test_a_file_system_that_lies_is_shown(workload: str, place: Path) -> None:
    run = run_workload(workload, Forgetful(place), uncounted, TINY)
    assert run.failure is not None
    assert run.failure.startswith(("LOST", "failed"))


def test_a_file_system_that_does_not_answer_is_given_up(place: Path) -> None:
    run = run_workload("commits", Silent(place), uncounted, replace(TINY, limit_seconds=0.1))
    assert run.failure == "did not end in 0.1 s"


def test_the_null_file_system_is_a_limit_that_keeps_nothing(place: Path) -> None:
    system = NullFileSystem(place)
    try:
        run = run_workload("commits", system, uncounted, TINY)
    finally:
        system.close()
    assert run.failure is None


def test_a_file_system_that_fails_is_shown(place: Path) -> None:
    run = run_workload("commits", Refusing(place), uncounted, TINY)
    assert run.failure == "failed: no"
    assert "| commits | refusing |" in _report([run]).as_markdown()


def _report(runs: Sequence[Run]) -> Report:
    return Report(command="scripts/bench --runs 2", machine="a machine", sizes=TINY, runs=runs)


def test_the_report_has_every_figure(place: Path) -> None:
    runs = [
        run_workload("appends", PlainDirectory(place / str(number)), uncounted, TINY) for number in range(2)
    ]
    report = _report(runs)
    for told in (report.as_json(), report.as_markdown()):
        assert "scripts/bench --runs 2" in told
        assert all(figure.what in told for run in runs for figure in run.figures)
    assert Report.from_json(report.as_json()) == report


def test_a_row_has_all_runs_of_a_figure(place: Path) -> None:
    runs: list[Run] = []
    for number, system in enumerate((PlainDirectory, Forgetful, PlainDirectory)):
        runs.append(run_workload("commits", system(place / str(number)), uncounted, TINY))
    table = [row for row in rows(runs) if row.what.endswith("p50")]
    assert [(row.file_system, len(row.values), len(row.failures)) for row in table] == [
        ("plain directory", 2, 0),
        ("forgetful", 1, 1),
    ]
    assert len(json.loads(_report(runs).as_json())["runs"]) == 3


def test_limits_are_those_of_one_client(s3_server: SeaweedFS) -> None:
    limits = Limits(
        s3_server.client(), s3_server.bucket, TINY, server_counter(s3_server.metrics_url, lambda: 0)
    )
    figures = [*limits.commits(), *limits.streams()]
    assert [figure.span.requests.count for figure in figures] == [TINY.commits, 1, 1, TINY.random_reads]
    assert all(figure.value > 0 for figure in figures)


def test_a_request_that_is_counted_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'SeaweedFS_s3_in_flight_requests{type="PUT"} %d\nSeaweedFS_s3_request_total{type="PUT"} %d\n'
    readings = iter([text % (1, 2), text % (1, 2), text % (0, 2), text % (0, 3)])
    monkeypatch.setattr("urllib.request.urlopen", lambda _url, timeout: io.BytesIO(next(readings)))
    assert server_counter("http://metrics", lambda: 0)().count == 3


def test_requests_are_summed_over_kinds() -> None:
    text = """# TYPE SeaweedFS_s3_request_total counter
SeaweedFS_s3_request_total{bucket="b",code="200",type="PUT"} 2
SeaweedFS_s3_request_total{bucket="b",code="404",type="GET"} 3
SeaweedFS_s3_bucket_traffic_received_bytes_total{bucket="b"} 1.5e+03
SeaweedFS_s3_bucket_traffic_sent_bytes_total{bucket="b"} 7
"""
    assert parse_metrics(text) == Requests(count=5, bytes_sent=1500, bytes_received=7)
