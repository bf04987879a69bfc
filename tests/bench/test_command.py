"""`scripts/bench` as a whole: one failing file system does not end it, and what ends it takes no figure away."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.bench.__main__ import main
from tests.bench.bench import Bench
from tests.bench.delay import Delay
from tests.bench.report import Report
from tests.bench.runs import Run
from tests.bench.verdicts import CLIENT, PLAIN
from tests.support.bucket import Bucket
from tests.support.seaweedfs import SeaweedFS

SMALL: Final = ["--size", "smoke", "--workloads", "commits,stream", "--mib", "1", "--also", "0=commits"]


@pytest.fixture(autouse=True)
def _one_server(s3_server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the command use the server of the tests, and leave signals as they were."""
    for name in ("start", "close"):
        monkeypatch.setattr(s3_server, name, lambda: None)
    monkeypatch.setattr("tests.bench.__main__.SeaweedFS", lambda: s3_server)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def measured(place: Path, *words: str) -> Report:
    main([*SMALL, "--directory", str(place), "--output", str(place / "results"), *words])
    return Report.from_json((place / "results" / "results.json").read_text())


def test_what_cannot_be_started_does_not_end_the_run(tmp_path: Path) -> None:
    report = measured(tmp_path, "--file-systems", "goofys,directory", "--once", "stream", "--runs", "2")
    done = [(run.round_trip_ms, run.workload, run.file_system) for run in report.runs if not run.failure]
    first = [(20, "limits", CLIENT), (20, "commits", PLAIN), (20, "stream", PLAIN), (0, "limits", CLIENT)]
    assert done == [*first, (20, "limits", CLIENT), (20, "commits", PLAIN), (0, "limits", CLIENT)]
    failures = {(run.file_system, run.failure) for run in report.runs if run.failure}
    assert failures == {("goofys", "failed: goofys is not installed")}
    assert {"results.md", "overview.png"} <= {path.name for path in (tmp_path / "results").iterdir()}


def test_an_interrupted_run_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Run(workload="commits", file_system=PLAIN, round_trip_ms=20, figures=[])

    def runs(*_: object) -> Iterator[Run]:
        yield first
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "runs", runs)
    assert measured(tmp_path).runs == [first]


def test_only_puts_of_the_log_are_counted(s3_server: SeaweedFS, s3_prefix: str) -> None:
    with Delay(int(s3_server.endpoint.rpartition(":")[2]), round_trip_seconds=0) as delay:
        bucket = Bucket(s3_server.client(f"http://127.0.0.1:{delay.port}"), s3_server.bucket, s3_prefix)
        for key in (".fusefs/journal/1/1", ".fusefs/journal/1/2", ".fusefs/lease", "journal/1"):
            bucket.put(key, b"PUT /b/.fusefs/journal/1/1")
        bucket.sizes()
        assert delay.log_puts() == 2
        bucket.put(".fusefs/journal/1/3", bytes(10**6))
        assert delay.log_puts() == 3
