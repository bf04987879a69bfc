"""Carries out workloads on file systems over one S3 server, one after the other.

Runs are interleaved: every workload goes once over all file systems before it is repeated, so that what disturbs the
machine for a while disturbs all of them.
"""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import boto3
from botocore.config import Config

from tests.bench.arena import Arena, DataLost, Figure, Sizes
from tests.bench.delay import Delay
from tests.bench.file_systems import FileSystem, FileSystemError, Owner, fusefs
from tests.bench.limits import NAME as LIMITS
from tests.bench.limits import Limits, measure_listings
from tests.bench.peers import PEERS, Place
from tests.bench.raw_client import put_many
from tests.bench.references import NullFileSystem, PlainDirectory
from tests.bench.runs import Run
from tests.bench.time_limit import OutOfTime, time_limit
from tests.bench.usage import RequestCounter, server_counter
from tests.bench.workloads import LIMITED, WORKLOADS
from tests.support.bucket import Bucket
from tests.support.postgresql import USER as DATABASE_USER
from tests.support.seaweedfs import ACCESS_KEY, REGION, SECRET_KEY, SeaweedFS

OURS: Final = ".fusefs/"
_LISTED: Final = "listed/"
_DATABASE: Final = "postgresql"
_NO_WAY: Final = ("directory", "null")
"""No request of theirs goes over the way to the store: they are measured over the first one only."""


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
        with time_limit(sizes.limit_seconds, system.abandon):
            system.mount()
            WORKLOADS[workload](arena)
            system.umount()
    except DataLost as error:
        failure = f"LOST: {error}"
    except OutOfTime as error:
        failure = str(error)
    except Exception as error:  # whatever a program of somebody else does, the others are measured
        failure = failed(error)
    return Run(
        workload=workload,
        file_system=system.name,
        round_trip_ms=round_trip_ms,
        figures=arena.figures,
        failure=failure,
    )


def owner_of(workload: str) -> Owner | None:
    """Return whose mount it has to be: PostgreSQL refuses to run as root, and to use a directory of somebody else."""
    if workload != _DATABASE or os.getuid() != 0:
        return None
    user = pwd.getpwnam(DATABASE_USER)
    return Owner(uid=user.pw_uid, gid=user.pw_gid)


def failed(error: Exception) -> str:
    """Return what a report says of an error, in a line."""
    told = str(error) or type(error).__name__
    return f"failed: {' '.join(told.split())[-300:]}"


class SharedBucket(Bucket):
    """A prefix with objects of somebody else, which stay when a file system goes."""

    __slots__ = ()

    def clear(self) -> None:
        for key in self.sizes(housekeeping=True):
            if key.startswith(OURS):
                self.delete(key)


class Bench:
    """One S3 server, and everything that is measured over it."""

    def __init__(
        self,
        server: SeaweedFS,
        directory: Path,
        *,
        sizes: Sizes,
        systems: Sequence[str],
        binaries: Mapping[str, Path],
        minutes: float,
        once: Collection[str] = (),
    ) -> None:
        """Nothing is begun after so many minutes; the workloads `once` are not repeated."""
        self._server = server
        self._directory = directory
        self._count_requests = server_counter(server.metrics_url, lambda: 0)
        self._systems = systems
        self._binaries = binaries
        self._sizes = sizes
        self._deadline = time.monotonic() + minutes * 60
        self._once = once
        self._listed = False
        self._hopeless: set[tuple[float, str, str]] = set()

    def runs(self, times: int, plan: Mapping[float, Sequence[str]]) -> Iterator[Run]:
        """Carry out the workloads that are planned for each round trip, as often, and as long as there is time."""
        for number in range(times):
            for round_trip, workloads in plan.items():
                now = [each for each in workloads if number == 0 or each not in self._once]
                if not now or time.monotonic() > self._deadline:
                    continue
                with self._way(round_trip) as endpoint:
                    yield self._limits(endpoint, round_trip, now)
                    for workload in now:
                        for name in self._wanted(workload, round_trip, first=round_trip == next(iter(plan))):
                            if time.monotonic() > self._deadline:
                                return
                            began = time.monotonic()
                            run = self._one(workload, name, endpoint, round_trip)
                            seconds = time.monotonic() - began
                            told = f"run {number + 1}, {round_trip:g} ms, {workload}, {name}: {seconds:.1f} s"
                            print(told, run.failure or "", file=sys.stderr, flush=True)
                            if run.failure and seconds > self._sizes.limit_seconds:
                                self._hopeless.add((round_trip, workload, name))
                            yield run

    def _wanted(self, workload: str, round_trip_ms: float, *, first: bool) -> Iterator[str]:
        """Yield the file systems that the workload says something about, but for those that did not end it before."""
        for name in self._systems:
            told = workload in LIMITED.get(name, WORKLOADS) and (first or name not in _NO_WAY)
            if told and (round_trip_ms, workload, name) not in self._hopeless:
                yield name

    def _limits(self, endpoint: str, round_trip_ms: float, workloads: Sequence[str]) -> Run:
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}),
        )
        figures: list[Figure] = []
        failure: str | None = None
        try:
            limits = Limits(client, self._server.bucket, self._sizes, self._count_requests)
            figures += limits.commits()
            if "stream" in workloads:
                figures += limits.streams()
            if "listings" in workloads:
                self._put_listed()
                figures += measure_listings(
                    endpoint, self._server.bucket, _LISTED, self._sizes, self._count_requests
                )
        except Exception as error:  # the file systems are measured nevertheless
            failure = failed(error)
        client.close()
        return Run(
            workload="limits",
            file_system=LIMITS,
            round_trip_ms=round_trip_ms,
            figures=figures,
            failure=failure,
        )

    def _put_listed(self) -> None:
        """Put the objects that are only listed; once, without delay."""
        for name, count in self._sizes.listed.items() if not self._listed else ():
            put_many(self._server.endpoint, self._server.bucket, f"{_LISTED}{name}/", count)
        self._listed = True

    @contextmanager
    def _way(self, round_trip_ms: float) -> Iterator[str]:
        """Yield the endpoint of the server at the end of a way of this length."""
        if round_trip_ms == 0:
            self._count_requests = server_counter(self._server.metrics_url, lambda: 0)
            yield self._server.endpoint
            return
        port = int(self._server.endpoint.rpartition(":")[2])
        with Delay(port, round_trip_seconds=round_trip_ms / 1e3) as delay:
            self._count_requests = server_counter(self._server.metrics_url, delay.log_puts)
            yield f"http://127.0.0.1:{delay.port}"

    def _one(self, workload: str, name: str, endpoint: str, round_trip_ms: float) -> Run:
        def nothing(error: Exception) -> Run:
            return Run(
                workload=workload,
                file_system=name,
                round_trip_ms=round_trip_ms,
                figures=[],
                failure=failed(error),
            )

        with tempfile.TemporaryDirectory(dir=self._directory, ignore_cleanup_errors=True) as place:
            try:
                system = self._make(name, Path(place), endpoint, workload)
            except (FileSystemError, OSError) as error:
                return nothing(error)
            try:
                return run_workload(
                    workload, system, self._count_requests, self._sizes, round_trip_ms=round_trip_ms
                )
            finally:
                with suppress(Exception):  # what stays behind harms no other prefix
                    system.close()

    def _make(self, name: str, directory: Path, endpoint: str, workload: str) -> FileSystem:
        if name == "directory":
            return PlainDirectory(directory)
        if name == "null":
            return NullFileSystem(directory)
        shared = workload == "listings"
        owner = owner_of(workload)
        prefix, kind = (_LISTED, SharedBucket) if shared else (f"b{uuid.uuid4().hex[:20]}/", Bucket)
        bucket = kind(self._server.client(), self._server.bucket, prefix)
        environment = self._server.environment
        if name.startswith("fusefs"):
            local = name == "fusefs-local"
            where = (bucket.url, "--endpoint", endpoint)
            return fusefs(
                directory, *where, environment=environment, bucket=bucket, local_log=local, owner=owner
            )
        place = Place(
            directory=directory,
            bucket=bucket,
            endpoint=endpoint,
            environment=environment,
            binaries=self._binaries,
            owner=owner,
        )
        return PEERS[name](place)
