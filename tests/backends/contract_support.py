"""What the parts of the contract share: data, helpers, and how a store is described."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Final

import trio

from backends.base import (
    MIB,
    Capabilities,
    IfMatch,
    ListPage,
    MultipartUpload,
    ObjectStorage,
    Part,
    PutMode,
    iterate_pages,
)
from backends.errors import (
    ConcurrentRequest,
    PreconditionFailed,
)

#: Conditions whose capability is missing are ignored without a word, instead of being looked at before acting.
IGNORES_MISSING_CONDITIONS: Final = "ignores missing conditions"
#: Conditional completions are honoured one after the other; several that race may win together (SeaweedFS 4.48).
COMPLETIONS_RACE: Final = "completions race"
#: Parts below the minimum are accepted anywhere (JuiceFS gateway).
ACCEPTS_SMALL_PARTS: Final = "accepts small parts"
#: The body of an object whose key ends with a slash is thrown away (SeaweedFS 4.48).
DROPS_MARKER_BODIES: Final = "drops marker bodies"
#: The ETag of a put is not the MD5 of its bytes (server-side encryption with a key service).
OPAQUE_ETAGS: Final = "opaque etags"

KNOWN_DEVIATIONS: Final = frozenset(
    {IGNORES_MISSING_CONDITIONS, COMPLETIONS_RACE, ACCEPTS_SMALL_PARTS, DROPS_MARKER_BODIES, OPAQUE_ETAGS}
)

#: Keys that have broken file systems, URLs, XML and shells. Each is put into an empty store, and all together.
NASTY_KEYS: Final[tuple[str, ...]] = (
    "plain",
    "with space",
    " leading and trailing ",
    "two  spaces",
    "plus+plus",
    "percent%2Fescaped",
    "percent%",
    "%2E%2E",
    "question?mark#hash&amp;=;,:@$!",
    "quotes'and\"more`",
    "back\\slash\\",
    "brackets[]{}()<>|^~*",
    "line\nfeed\ttab\rreturn",
    "\x01\x1b\x7f control",
    "umlaut-äöü-ß",
    "composed-é",
    "decomposed-e\u0301",
    "日本語/キー",
    "right-to-left-שלום",
    "emoji-😀/👩‍👩‍👧",
    "order-\uff5e",
    "order-😀",
    "UPPER/lower",
    "upper/LOWER",
    "/leading",
    "//two-leading",
    "trailing/",
    "trailing//",
    "empty//segment",
    "empty///segments",
    "/",
    "//",
    ".",
    "./dot",
    "a/.",
    "a/./b",
    "a/..",
    "a/../b",
    "...",
    ".hidden/.file",
    ".fusefs/reserved",
    ".fusefs-store/uploads",
    ".fusefs-store",
    "file",
    "file/below",
    "file/below/further",
    "file-",
    "file.txt",
    "~",
    "-rf",
    "s" * 255,
    "s" * 256,
    "é" * 200,
    "segments/" + "d" * 300 + "/" + "f" * 300,
    "CON",
    "con.txt.",
)

#: Keys that S3 refuses: they climb out of the bucket, or hold what no request can carry.
REFUSED_KEYS: Final = frozenset({"", "..", "../up", "a/../../b", "nul\0byte", "lone\ud800surrogate"})

#: The bytes of one part of the least legal size; every test that needs such a part uses these.
PART_DATA: Final = random.Random(5).randbytes(5 * MIB)
TAIL_DATA: Final = b"the last part may be small"

METADATA: Final[Mapping[str, str]] = {
    "mode": "33188",
    "empty": "",
    "spaces": "  leading, trailing and  double  ",
    "unicode": "Grüße, 世界 😀",
    "controls": "line\nfeed\ttab",
    "looks-encoded": "=?UTF-8?B?R3LDvMOfZQ==?= %41 %C3%BC",
    "with.dot_and-dash": "x",
}


class StoreDescription:
    """What a subclass of the contract says of its store."""

    expected_capabilities: ClassVar[Capabilities] = Capabilities()
    deviations: ClassVar[frozenset[str]] = frozenset()
    #: Of `NASTY_KEYS`: those that this store answers with `InvalidKey`.
    refused_keys: ClassVar[frozenset[str]] = frozenset()
    #: Of `NASTY_KEYS`: those that this store takes for another one, and that one (SeaweedFS collapses `//`).
    renamed_keys: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def honours(self, capability: bool) -> bool:
        """Whether a condition is looked at at all: by the store, or before acting where it cannot."""
        return capability or IGNORES_MISSING_CONDITIONS not in self.deviations

    def kept(self, key: str, body: bytes) -> bytes:
        """What is left of `body` under `key`."""
        return b"" if key.endswith("/") and DROPS_MARKER_BODIES in self.deviations else body


class SmallUpload:
    """An upload with its only part in place."""

    def __init__(self, upload: MultipartUpload, parts: Sequence[Part]) -> None:
        self.upload: Final = upload
        self.parts: Final = parts

    async def complete_all(self, *, mode: PutMode) -> str:
        return await self.upload.complete(self.parts, mode=mode)


async def small_upload(storage: ObjectStorage, key: str, data: bytes) -> SmallUpload:
    """Begin an upload of `data` in one part."""
    upload = await storage.create_multipart(key)
    return SmallUpload(upload, [await upload.upload_part(1, data)])


async def put_all(storage: ObjectStorage, keys: Iterable[str]) -> None:
    """Put empty objects, some at a time, but `x` and those below `x/` in turn.

    SeaweedFS keeps a tree: of such keys that are put at once it confirms all, and in one of 25 trials lists one less.
    """
    keys = list(keys)
    names = {key.rstrip("/") for key in keys}
    shared = {key[:end] for key in keys for end, letter in enumerate(key[:-1]) if letter == "/"} & names
    in_turn = [
        key for key in keys if key.rstrip("/") in shared or any(key.startswith(f"{name}/") for name in shared)
    ]
    for key in in_turn:
        await storage.put(key, b"")
    limiter = trio.CapacityLimiter(8)

    async def put(key: str) -> None:
        async with limiter:
            await storage.put(key, b"")

    async with trio.open_nursery() as nursery:
        for key in [key for key in keys if key not in in_turn]:
            nursery.start_soon(put, key)


async def race(attempt: Callable[[int], Awaitable[object]], count: int) -> list[int]:
    """Make all attempts at the same time and return the numbers of those that succeeded; others lost a condition.

    A `ConcurrentRequest` is asked again, as its docstring says.
    """
    winners: list[int] = []

    async def run(number: int) -> None:
        while True:
            try:
                await attempt(number)
            except ConcurrentRequest:
                continue
            except PreconditionFailed:
                return
            winners.append(number)
            return

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(run, number)
    return winners


async def try_to_add_one(storage: ObjectStorage) -> bool:
    """Read the counter and write the next value over that version; whether nobody else was faster."""
    before = await storage.get_range("counter")
    try:
        await storage.put("counter", str(int(before.data) + 1).encode(), mode=IfMatch(before.etag))
    except (PreconditionFailed, ConcurrentRequest):
        return False
    return True


async def all_pages(
    storage: ObjectStorage, prefix: str = "", *, delimiter: str = "", page_size: int = 1_000
) -> list[ListPage]:
    """Every page of a listing, each of at most `page_size` names."""
    pages = [await storage.list_prefix(prefix, delimiter=delimiter, page_size=page_size)]
    while pages[-1].next_token is not None:
        pages.append(
            await storage.list_prefix(
                prefix, delimiter=delimiter, page_token=pages[-1].next_token, page_size=page_size
            )
        )
    return pages


def page_names(page: ListPage) -> list[str]:
    """Keys and prefixes of a page, together in order."""
    return sorted([*(info.key for info in page.objects), *page.prefixes], key=str.encode)


async def names(
    storage: ObjectStorage, prefix: str, delimiter: str = "", *, start_after: str = ""
) -> list[str]:
    """Keys and prefixes of a whole listing."""
    pages = iterate_pages(storage, prefix, delimiter=delimiter, start_after=start_after)
    return [name async for page in pages for name in page_names(page)]


async def all_keys(storage: ObjectStorage) -> list[str]:
    """Every key in the order that the store lists them in."""
    return [info.key async for page in iterate_pages(storage) for info in page.objects]


def long_key(length: int) -> str:
    """A key of `length` bytes in segments that any file system could hold."""
    return ("k" * 99 + "/") * (length // 100) + "k" * (length % 100)
