"""Fixtures for all tests: the real S3 server, and an environment without anybody's AWS settings."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.seaweedfs import SeaweedFS

pytest.register_assert_rewrite("tests.backends.contract")

# Hypothesis takes seconds to build its tables of characters in a fresh checkout, and the machine may be busy.
settings.register_profile("fusefs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fusefs")

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="session", autouse=True)
def _no_outer_aws_settings() -> Iterator[None]:
    """Keep credentials, profiles and proxies of whoever runs the tests out of them, in child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AWS_") or name.lower() in {"http_proxy", "https_proxy", "all_proxy"}:
                patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """Let SIGINT end what the tests start: shells without job control ignore it for what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def s3_server(_no_outer_aws_settings: None) -> Iterator[SeaweedFS]:
    """A real S3 server with the bucket `s3_server.bucket`, started once for all tests."""
    server = SeaweedFS()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def s3_client(s3_server: SeaweedFS) -> Iterator[S3Client]:
    """A plain boto3 client, to look at the bucket without fusefs."""
    client = s3_server.client()
    yield client
    client.close()


@pytest.fixture
def s3_prefix() -> str:
    """A prefix in the bucket that no other test uses, ending in a slash."""
    return f"t{uuid.uuid4().hex}/"
