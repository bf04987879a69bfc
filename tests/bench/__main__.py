"""The command line of the benchmark; `scripts/bench --help` tells the flags.

Runs are interleaved: every workload goes once over all file systems before it is repeated, so that what disturbs the
machine for a while disturbs all of them.
"""

from __future__ import annotations

import argparse
import shlex
import sqlite3
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import boto3
from botocore.config import Config

from tests.bench.arena import MIB, Arena, DataLost, Sizes
from tests.bench.delay import Delay
from tests.bench.file_systems import FileSystem, FileSystemError, PlainDirectory, fusefs
from tests.bench.limits import NAME as LIMITS
from tests.bench.limits import measure_limits
from tests.bench.peers import PEERS, Place
from tests.bench.plots import draw
from tests.bench.report import Run, as_json, as_markdown
from tests.bench.usage import RequestCounter, server_counter
from tests.bench.workloads import WORKLOADS
from tests.support.bucket import Bucket
from tests.support.seaweedfs import ACCESS_KEY, REGION, SECRET_KEY, SeaweedFS

FULL: Final = Sizes(
    commits=300,
    wal_bytes=16 * MIB,
    large_bytes=512 * MIB,
    stream_bytes=1024 * MIB,
    files=2000,
    random_reads=300,
    inserts=300,
    patience_seconds=60,
)
QUICK: Final = Sizes(
    commits=60,
    wal_bytes=16 * MIB,
    large_bytes=64 * MIB,
    stream_bytes=256 * MIB,
    files=300,
    random_reads=60,
    inserts=60,
    patience_seconds=5,
)

GIVEN: Final = ("geesefs", "goofys", "mount-s3")
"""Peers that no package has: they run where a binary is given."""


def run_workload(
    workload: str,
    system: FileSystem,
    count_requests: RequestCounter,
    sizes: Sizes,
    *,
    round_trip_ms: float = 0,
) -> Run:
    """Carry out one workload on a file system that is not mounted yet; what fails is part of the answer."""
    arena = Arena(system, count_requests, sizes)
    failure: str | None = None
    try:
        system.mount()
        WORKLOADS[workload](arena)
        system.umount()
    except DataLost as error:
        failure = f"LOST: {error}"
    except (OSError, sqlite3.Error, FileSystemError) as error:
        failure = f"failed: {error}"
    return Run(
        workload=workload,
        file_system=system.name,
        round_trip_ms=round_trip_ms,
        figures=arena.figures,
        failure=failure,
    )


class Bench:
    """One S3 server, and everything that is measured over it."""

    def __init__(self, arguments: argparse.Namespace, server: SeaweedFS, directory: Path) -> None:
        self._server = server
        self._directory = directory
        self._count_requests = server_counter(server.metrics_url)
        self._systems: list[str] = arguments.file_systems
        self._workloads: list[str] = arguments.workloads
        self._binaries = {
            name: path for name in GIVEN if (path := getattr(arguments, name.replace("-", "_")))
        }
        sizes = QUICK if arguments.quick else FULL
        self._sizes = replace(sizes, stream_bytes=arguments.mib * MIB) if arguments.mib else sizes

    def runs(self, times: int, round_trips_ms: Sequence[float]) -> Iterator[Run]:
        for number in range(times):
            for round_trip in round_trips_ms:
                with self._way(round_trip) as endpoint:
                    yield self._limits(endpoint, round_trip)
                    for workload in self._workloads:
                        for name in self._systems:
                            print(f"run {number + 1}, {round_trip:g} ms, {workload}, {name}", file=sys.stderr)
                            yield self._one(workload, name, endpoint, round_trip)

    @contextmanager
    def _way(self, round_trip_ms: float) -> Iterator[str]:
        """Yield the endpoint of the server at the end of a way of this length."""
        if round_trip_ms == 0:
            yield self._server.endpoint
            return
        port = int(self._server.endpoint.rpartition(":")[2])
        with Delay(port, round_trip_seconds=round_trip_ms / 1e3) as delay:
            yield f"http://127.0.0.1:{delay.port}"

    def _limits(self, endpoint: str, round_trip_ms: float) -> Run:
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}),
        )
        figures = measure_limits(client, self._server.bucket, self._sizes, self._count_requests)
        client.close()
        return Run(workload="limits", file_system=LIMITS, round_trip_ms=round_trip_ms, figures=figures)

    def _one(self, workload: str, name: str, endpoint: str, round_trip_ms: float) -> Run:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self._directory)))
            try:
                system = self._make(name, directory, endpoint)
            except FileSystemError as error:
                return Run(
                    workload=workload,
                    file_system=name,
                    round_trip_ms=round_trip_ms,
                    figures=[],
                    failure=f"failed: {error}",
                )
            stack.callback(system.close)
            return run_workload(
                workload, system, self._count_requests, self._sizes, round_trip_ms=round_trip_ms
            )

    def _make(self, name: str, directory: Path, endpoint: str) -> FileSystem:
        if name == "directory":
            return PlainDirectory(directory)
        bucket = Bucket(self._server.client(), self._server.bucket, f"b{uuid.uuid4().hex[:20]}/")
        environment = self._server.environment
        if name == "fusefs":
            return fusefs(
                directory, bucket.url, "--endpoint", endpoint, environment=environment, bucket=bucket
            )
        place = Place(
            directory=directory,
            bucket=bucket,
            endpoint=endpoint,
            environment=environment,
            binaries=self._binaries,
        )
        return PEERS[name](place)


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(
                f"no such: {', '.join(sorted(unknown))}; known: {', '.join(known)}"
            )
        return names

    return parse


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    systems = ["fusefs", "directory", *PEERS]
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="less of everything: some minutes instead of hours"
    )
    parser.add_argument(
        "--workloads", type=_names([*WORKLOADS]), default=[*WORKLOADS], help="names with commas"
    )
    parser.add_argument("--file-systems", type=_names(systems), help=f"of {', '.join(systems)}")
    parser.add_argument("--round-trips", default="0,20", help="added milliseconds, with commas (0,20)")
    parser.add_argument("--runs", type=int, help="how often (5; 3 with --quick)")
    parser.add_argument("--mib", type=int, help="size of the stream (1024; 256 with --quick)")
    parser.add_argument("--output", type=Path, help="a directory for results.json, results.md and pictures")
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="for caches and data"
    )
    for name in GIVEN:
        parser.add_argument(f"--{name}", type=Path, metavar="BINARY", help="compare with it too")
    arguments = parser.parse_args(words)
    if arguments.file_systems is None:
        given = [name for name in GIVEN if getattr(arguments, name.replace("-", "_"))]
        arguments.file_systems = [name for name in systems if name not in GIVEN or name in given]
    return arguments


def main(words: Sequence[str]) -> None:
    arguments = _arguments(words)
    command = shlex.join(["scripts/bench", *words])
    round_trips = [float(each) for each in arguments.round_trips.split(",")]
    server = SeaweedFS()
    try:
        server.start()
        bench = Bench(arguments, server, arguments.directory)
        runs = list(bench.runs(arguments.runs or (3 if arguments.quick else 5), round_trips))
    finally:
        server.close()
    text = as_markdown(runs, command=command)
    print(text)
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "results.json").write_text(as_json(runs, command=command))
        (arguments.output / "results.md").write_text(text)
        try:
            draw(runs, arguments.output)
        except ImportError:
            print("no pictures without matplotlib: pip install 'fusefs[bench]'", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
