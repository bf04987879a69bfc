"""A small change of a large object sends little, as the server sees it: the rest is copied where it is."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import Mount, wait_until
from tests.support.recording_proxy import ReceivedRequest, RecordingProxy
from tests.support.seaweedfs import SeaweedFS

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
#: SeaweedFS keeps text in little room and copies it quickly.
KEY = "large.txt"
#: The object is made of copies of this.
PIECE = (b"0123456789abcdef" * (MIB // 16)) * 64


@pytest.fixture
def proxy(s3_server: SeaweedFS) -> Iterator[RecordingProxy]:
    with RecordingProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def recorded_mount(proxy: RecordingProxy, bucket: Bucket, new_mount: NewMount) -> Mount:
    """A mount whose requests are noted, of a bucket with an object of 1 GiB that was made inside the server."""
    bucket.put("piece.txt", PIECE)
    bucket.put_copies(KEY, "piece.txt", GIB // len(PIECE))
    mount = new_mount(None, "--endpoint", proxy.endpoint).mount()
    assert os.stat(mount.path / KEY).st_size == GIB
    return mount


def requests_of_a_change(
    mount: Mount, proxy: RecordingProxy, bucket: Bucket, offset: int, data: bytes
) -> list[ReceivedRequest]:
    """Write, and return what the server received until the bytes were in the object."""
    etag = bucket.etag(KEY)
    proxy.requests.clear()
    descriptor = os.open(mount.path / KEY, os.O_WRONLY)
    try:
        assert os.pwrite(descriptor, data, offset) == len(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    wait_until(lambda: bucket.etag(KEY) != etag, "the publication")
    return list(proxy.requests)


def sent(requests: list[ReceivedRequest]) -> int:
    return sum(request.body_size for request in requests if request.is_upload_of_part)


def copies(requests: list[ReceivedRequest]) -> int:
    return sum(request.is_copy_of_part for request in requests)


def test_little_is_sent_for_a_small_change_of_a_gibibyte(
    recorded_mount: Mount, proxy: RecordingProxy, bucket: Bucket
) -> None:
    """1 KiB appended: at most 5 MiB + 1 KiB uploaded and one copy. 8 KiB overwritten in the middle: at most 10 MiB."""
    appended = os.urandom(KIB)
    requests = requests_of_a_change(recorded_mount, proxy, bucket, GIB, appended)
    assert sent(requests) <= 5 * MIB + KIB
    assert copies(requests) == 1
    others = sum(request.body_size for request in requests) - sent(requests)
    assert others < 16 * KIB, "the log and the list of parts"
    assert not [request for request in requests if request.method == "GET" and request.key.endswith(KEY)]
    assert bucket.sizes()[KEY] == GIB + KIB
    assert bucket.read_range(KEY, GIB - len(PIECE), len(PIECE) + KIB) == PIECE + appended

    changed = os.urandom(8 * KIB)
    requests = requests_of_a_change(recorded_mount, proxy, bucket, GIB // 2, changed)
    assert sent(requests) <= 10 * MIB
    assert copies(requests) == 2
    assert bucket.sizes()[KEY] == GIB + KIB
    assert bucket.read_range(KEY, GIB // 2 - MIB, 2 * MIB) == PIECE[-MIB:] + changed + PIECE[8 * KIB : MIB]
    assert bucket.read_range(KEY, 0, MIB) == PIECE[:MIB]
    assert bucket.read_range(KEY, GIB - MIB, MIB + KIB) == PIECE[-MIB:] + appended


def test_what_a_stream_has_sent_is_not_sent_to_the_log(
    new_mount: NewMount, proxy: RecordingProxy, bucket: Bucket
) -> None:
    """1 GiB that is written at once, with an fsync every 64 MiB: the server receives at most 1.1 GiB in all, however
    long that takes.
    """
    mount = new_mount(None, "--endpoint", proxy.endpoint).mount()
    proxy.requests.clear()
    with open(mount.path / "stream", "wb", buffering=0) as file:
        for _ in range(GIB // len(PIECE)):
            assert file.write(PIECE) == len(PIECE)
            os.fsync(file.fileno())
            in_log = sum(each.body_size for each in proxy.requests if "/.fusefs/journal/" in each.key)
            assert sent(list(proxy.requests)) + in_log >= file.tell(), "what was acknowledged is nowhere else"
    mount.umount()
    assert sum(request.body_size for request in proxy.requests) <= 1.1 * GIB
    assert bucket.sizes()["stream"] == GIB
    assert bucket.read_range("stream", GIB - len(PIECE), len(PIECE)) == PIECE


@pytest.mark.parametrize("order", ["fsync, rename, close", "close, rename"])
def test_what_is_written_under_a_temporary_name_is_sent_once(
    order: str, new_mount: NewMount, proxy: RecordingProxy, bucket: Bucket
) -> None:
    """A large new file that is renamed before it is in the bucket goes up once: its object is under the old name first,
    and the store copies it.
    """
    bucket.put("f", b"before")
    # The parts that are full when fsync comes are sent then; a commit before that would carry what is not.
    mount = new_mount(None, "--endpoint", proxy.endpoint, "--commit-interval", "60 s").mount()
    temporary, final = mount.path / ".f.tmp", mount.path / "f"
    assert final.read_bytes() == b"before"
    proxy.requests.clear()
    with temporary.open("wb", buffering=0) as file:
        for _ in range(66):
            file.write(PIECE[:MIB])
        for step in order.split(", "):
            match step:
                case "fsync":
                    os.fsync(file.fileno())
                case "rename":
                    temporary.rename(final)
                case _:
                    file.close()
    mount.umount()
    received = sum(request.body_size for request in proxy.requests)
    print(f"{order}: {received / MIB:.2f} MiB in {len(proxy.requests)} requests")
    assert received <= 71 * MIB
    assert bucket.sizes() == {"f": 66 * MIB}
    assert bucket.read_range("f", 0, 66 * MIB) == PIECE + PIECE[: 2 * MIB]
