"""Peers that no package has run where a binary is given, with the options that let them find the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench.__main__ import GIVEN, parse_arguments
from tests.bench.file_systems import FileSystemError, Owner
from tests.bench.peers import PEERS, Place
from tests.support.bucket import Bucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """A program that says how it was called, and mounts nothing."""
    path = tmp_path / "program"
    path.write_text('#!/bin/sh\necho "$@"\nexit 1\n')
    path.chmod(0o755)
    return path


def said(name: str, binary: Path, s3_client: S3Client, owner: Owner | None = None) -> str:
    place = Place(
        directory=binary.parent / "place",
        bucket=Bucket(s3_client, "the-bucket", "prefix/"),
        endpoint="http://store:1",
        environment={},
        binaries={name: binary},
        owner=owner,
    )
    system = PEERS[name](place)
    with pytest.raises(FileSystemError) as raised:
        system.mount()
    return str(raised.value)


@pytest.mark.parametrize("name", GIVEN)
def test_a_given_binary_is_told_store_and_mount_point(name: str, binary: Path, s3_client: S3Client) -> None:
    words = said(name, binary, s3_client)
    assert "http://store:1" in words
    assert "the-bucket" in words
    assert "prefix" in words
    assert str(binary.parent / "place" / "mnt") in words


@pytest.mark.parametrize("name", GIVEN)
def test_a_peer_that_keeps_no_owners_is_told_one(name: str, binary: Path, s3_client: S3Client) -> None:
    assert "--uid 7 --gid 8 --dir-mode 0700" in said(name, binary, s3_client, Owner(uid=7, gid=8))


@pytest.mark.parametrize("name", GIVEN)
def test_a_given_binary_is_compared_with(name: str, binary: Path) -> None:
    assert name not in parse_arguments([]).file_systems
    assert name in parse_arguments([f"--{name}", str(binary)]).file_systems


def test_what_is_not_installed_is_named(tmp_path: Path, s3_client: S3Client) -> None:
    bucket = Bucket(s3_client, "the-bucket", "prefix/")
    place = Place(directory=tmp_path, bucket=bucket, endpoint="", environment={}, binaries={})
    with pytest.raises(FileSystemError, match="goofys is not installed"):
        PEERS["goofys"](place)
