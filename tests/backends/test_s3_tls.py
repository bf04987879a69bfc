"""The S3 store over TLS: a real server behind a certificate that this test has made."""

from __future__ import annotations

import ssl
import subprocess
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from backends.base import MIB, Capabilities
from backends.errors import StorageError
from backends.s3 import S3Storage
from tests.backends.s3_helpers import Wire, options_of
from tests.support.seaweedfs import SeaweedFS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, and its key in the same file."""
    directory = tmp_path_factory.mktemp("tls")
    key, signed, both = (directory / name for name in ("key.pem", "signed.pem", "both.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(signed)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    both.write_bytes(signed.read_bytes() + key.read_bytes())
    return both


async def pass_on(source: trio.abc.ReceiveStream, target: trio.abc.SendStream) -> None:
    async for data in source:
        await target.send_all(data)


async def serve(server: SeaweedFS, client: trio.SSLStream[trio.SocketStream]) -> None:
    """Pass the bytes of one connection on, without TLS, and back."""
    address = urlsplit(server.endpoint)
    assert address.hostname is not None
    assert address.port is not None
    try:
        async with (
            client,
            await trio.open_tcp_stream(address.hostname, address.port) as inner,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(pass_on, inner, client)
            await pass_on(client, inner)
            nursery.cancel_scope.cancel()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client went away, as it does when it trusts no certificate


@pytest.fixture
async def endpoint(s3_server: SeaweedFS, certificate: Path, nursery: trio.Nursery) -> str:
    """The server's address over TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1", https_compatible=True)
    listener = listeners[0].transport_listener
    assert isinstance(listener, trio.SocketListener)
    port = listener.socket.getsockname()[1]
    nursery.start_soon(partial(trio.serve_listeners, partial(serve, s3_server), listeners))
    return f"https://127.0.0.1:{port}"


async def test_a_private_authority_is_trusted_if_it_is_named(
    s3_server: SeaweedFS, s3_prefix: str, endpoint: str, certificate: Path
) -> None:
    """Nothing is framed in chunks with a trailer, which botocore does over TLS and many stores refuse."""
    wire = Wire()
    options = options_of(s3_server, endpoint=endpoint, ca_bundle=str(certificate))
    storage = S3Storage(options, probe_prefix=s3_prefix, client_factory=wire.factory)
    assert await storage.probe() == Capabilities()
    body = bytes(5 * MIB)
    await storage.put(s3_prefix + "k", body)
    upload = await storage.create_multipart(s3_prefix + "k")
    await upload.complete([await upload.upload_part(1, body)])
    assert (await storage.get_range(s3_prefix + "k")).data == body
    await storage.delete_many([s3_prefix + "k"])
    await storage.aclose()
    for request in wire.requests:
        sent = {name.lower(): str(value).lower() for name, value in request.headers.items()}
        assert "x-amz-trailer" not in sent
        assert "aws-chunked" not in sent.get("content-encoding", "")
        assert request.url.startswith(endpoint)


@pytest.mark.parametrize("read_only", [True, False])
async def test_a_certificate_that_nobody_vouches_for_is_refused(
    s3_server: SeaweedFS, endpoint: str, read_only: bool
) -> None:
    storage = S3Storage(options_of(s3_server, endpoint=endpoint))
    with pytest.raises(StorageError, match="certificate is not trusted") as caught:
        await storage.probe(read_only=read_only)
    assert not caught.value.retryable
    assert "\n" not in str(caught.value)
    await storage.aclose()


async def test_a_certificate_is_not_looked_at_if_that_was_said_in_words(
    s3_server: SeaweedFS, s3_prefix: str, endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log says so, and no request warns of it again."""
    storage = S3Storage(options_of(s3_server, endpoint=endpoint, verify_tls=False))
    await storage.put(s3_prefix + "k", b"content")
    assert (await storage.get_range(s3_prefix + "k")).data == b"content"
    await storage.aclose()
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "the certificate of the service is not checked: verify_tls is off"
    ]


@pytest.mark.parametrize("quick", [False, True])
async def test_the_usual_variable_names_the_authority_too(
    s3_server: SeaweedFS,
    s3_prefix: str,
    endpoint: str,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    quick: bool,
) -> None:
    """obstore does not know it, which one request shows: the rest goes another way."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    storage = S3Storage(options_of(s3_server, endpoint=endpoint), quick=quick)
    await storage.probe(read_only=True)
    await storage.put(s3_prefix + "k", b"content")
    assert (await storage.get_range(s3_prefix + "k")).data == b"content"
    await storage.delete(s3_prefix + "k")
    await storage.aclose()
    assert len([record for record in caplog.records if "obstore" in record.message]) == quick
