"""An S3 client that signs and sends, and looks at nothing it does not need: what the store takes by itself."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlencode, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.support.seaweedfs import ACCESS_KEY, REGION, SECRET_KEY

_THREADS = 4


class RawClient:
    """One connection to one bucket."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        self._endpoint, self._bucket = endpoint, bucket
        self._connection = http.client.HTTPConnection(urlsplit(endpoint).netloc)
        self._auth = S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", REGION)

    def put_empty(self, key: str) -> None:
        self._ask("PUT", f"/{quote(key)}")

    def list_pages(self, prefix: str) -> Iterator[bytes]:
        """Yield the answers that list all keys with this prefix."""
        query = {"list-type": "2", "prefix": prefix, "delimiter": "/"}
        while True:
            yield (page := self._ask("GET", "?" + urlencode(sorted(query.items()))))
            token = re.search(rb"<NextContinuationToken>(.*?)<", page)
            if token is None:
                return
            query["continuation-token"] = token[1].decode()

    def close(self) -> None:
        self._connection.close()

    def _ask(self, method: str, path: str) -> bytes:
        request = AWSRequest(method=method, url=f"{self._endpoint}/{self._bucket}{path}")
        self._auth.add_auth(request)
        self._connection.request(method, f"/{self._bucket}{path}", headers=dict(request.headers.items()))
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise OSError(f"{method} of {path}: {answer.status} {content[:200].decode(errors='replace')}")
        return content


def put_many(endpoint: str, bucket: str, prefix: str, count: int) -> None:
    """Put empty objects, several at a time, with six digits as their names."""

    def put(first: int) -> None:
        client = RawClient(endpoint, bucket)
        for number in range(first, count, _THREADS):
            client.put_empty(f"{prefix}{number:06}")
        client.close()

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(put, range(_THREADS)))
