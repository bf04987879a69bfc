"""Measures fusefs, other file systems and the limits over one S3 server."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.bench.arena import MIB, Sizes
from tests.bench.bench import Bench
from tests.bench.peers import PEERS
from tests.bench.publication import RESULTS, publish, write
from tests.bench.report import Report, machine
from tests.bench.workloads import WORKLOADS
from tests.support.seaweedfs import SeaweedFS

FULL: Final = Sizes(
    commits=100,
    wal_bytes=16 * MIB,
    large_bytes=512 * MIB,
    stream_bytes=1024 * MIB,
    files=2000,
    random_reads=100,
    inserts=100,
    tree_files=600,
    git_files=100,
    listed={"some": 10_000, "many": 100_000},
    redis_commits=60,
    pgbench_seconds=4,
    pgbench_clients=[1, 8, 64],
    patience_seconds=3,
    limit_seconds=75,
)
SIZES: Final[Mapping[str, Sizes]] = {
    "full": FULL,
    "quick": replace(
        FULL,
        commits=60,
        large_bytes=64 * MIB,
        stream_bytes=256 * MIB,
        files=300,
        tree_files=150,
        git_files=30,
        listed={"some": 1000, "many": 10_000},
        redis_commits=30,
        patience_seconds=2,
        limit_seconds=40,
    ),
    "smoke": replace(
        FULL,
        commits=10,
        wal_bytes=MIB,
        large_bytes=8 * MIB,
        stream_bytes=16 * MIB,
        files=30,
        random_reads=10,
        inserts=10,
        tree_files=20,
        git_files=10,
        listed={"some": 50, "many": 200},
        redis_commits=5,
        pgbench_seconds=1,
        pgbench_clients=[1, 8],
        patience_seconds=1,
        limit_seconds=40,
    ),
}
SYSTEMS: Final = ("fusefs", "fusefs-local", "directory", "null", *PEERS)
GIVEN: Final = ("geesefs", "goofys", "mount-s3")
"""Peers that no package has: they run where a binary is given."""

ONCE: Final = ("stream", "large-append", "tree", "git", "listings", "renames")
"""They take long, and their figures are of many repetitions already."""

ALSO: Final = ("0=stream,commits", "5=commits", "50=commits")
"""At other round trips only what is drawn over them, and what is bound by the machine."""


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(
                f"no such: {', '.join(sorted(unknown))}; known: {', '.join(known)}"
            )
        return names

    return parse


def _also(text: str) -> tuple[float, list[str]]:
    round_trip, _, names = text.partition("=")
    return float(round_trip), _names([*WORKLOADS])(names)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full", help="how much is done (full)")
    parser.add_argument(
        "--workloads", type=_names([*WORKLOADS]), default=[*WORKLOADS], help="names, with commas"
    )
    parser.add_argument("--file-systems", type=_names(SYSTEMS), help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--round-trip", type=float, default=20, help="added milliseconds (20)")
    parser.add_argument(
        "--also",
        type=_also,
        nargs="*",
        default=[_also(each) for each in ALSO],
        metavar="MS=WORKLOAD,...",
        help=f"what is measured at other round trips too ({' '.join(ALSO)})",
    )
    parser.add_argument("--runs", type=int, default=3, help="how often (3)")
    parser.add_argument(
        "--once",
        type=_names([*WORKLOADS]),
        default=[*ONCE],
        help=f"what is not repeated ({','.join(ONCE)})",
    )
    parser.add_argument("--minutes", type=float, default=600, help="begin nothing after this time")
    parser.add_argument("--mib", type=int, help="size of the stream")
    parser.add_argument("--output", type=Path, help="a directory for results.json, results.md and pictures")
    parser.add_argument(
        "--publish", action="store_true", help=f"put them into {RESULTS.name}/, and into README.md"
    )
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="for caches and data"
    )
    for name in GIVEN:
        parser.add_argument(f"--{name}", type=Path, metavar="BINARY", help="compare with it too")
    arguments = parser.parse_args(words)
    arguments.binaries = {
        name: path for name in GIVEN if (path := getattr(arguments, name.replace("-", "_")))
    }
    if arguments.file_systems is None:
        arguments.file_systems = [name for name in SYSTEMS if name not in GIVEN or name in arguments.binaries]
    return arguments


def measure(arguments: argparse.Namespace, command: str) -> Iterator[Report]:
    """Carry out what was asked for; yield the report again and again, with one more run each time."""
    sizes = SIZES[arguments.size]
    if arguments.mib:
        sizes = replace(sizes, stream_bytes=arguments.mib * MIB)
    plan = {arguments.round_trip: arguments.workloads}
    for round_trip, workloads in arguments.also:
        plan[round_trip] = [each for each in workloads if each in arguments.workloads]
    report = Report(command=command, machine=machine(), sizes=sizes, runs=[])
    server = SeaweedFS()
    try:
        server.start()
        bench = Bench(
            server,
            arguments.directory,
            sizes=sizes,
            systems=arguments.file_systems,
            binaries=arguments.binaries,
            minutes=arguments.minutes,
            once=arguments.once,
        )
        for run in bench.runs(arguments.runs, {each: plan[each] for each in plan if plan[each]}):
            report = replace(report, runs=[*report.runs, run])
            yield report
    finally:
        server.close()


def _measured(arguments: argparse.Namespace, command: str, places: Sequence[Path]) -> Report:
    """Return the last report; each one is written, so that what ends this process takes no figure away."""
    reports = measure(arguments, command)
    report = next(reports)
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    try:
        for report in reports:
            for place in places:
                (place / "results.json").write_text(report.as_json())
    except KeyboardInterrupt:
        print("interrupted: this is what was measured", file=sys.stderr)
    return report


def main(words: Sequence[str]) -> None:
    arguments = parse_arguments(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    places = [arguments.output] * bool(arguments.output) + [RESULTS] * arguments.publish
    report = _measured(arguments, shlex.join(["scripts/bench", *words]), places)
    print(report.as_markdown())
    if arguments.output:
        write(report, arguments.output)
    if arguments.publish:
        publish(report)


if __name__ == "__main__":
    main(sys.argv[1:])
