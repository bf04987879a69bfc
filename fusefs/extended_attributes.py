"""Extended attributes of one inode as text, and the two places in a bucket for it.

The text is s3fs's (its `build_xattrs`): a JSON object of names and values in Base64, URL-encoded, in the metadata
`xattr` of the object. Where it is too long for that, it is an object of its own, `.fusefs/xattrs/` and the text's
SHA-256, and the metadata `xattr-object` has the digest. Such an object never changes, so a file can be copied and
renamed with the reference alone; several files may refer to one, and none removes it.

s3fs writes a name as it is, quotes included, which is not JSON; it is read all the same.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote

from fusefs.keys import RESERVED_PREFIX

OBJECTS_PREFIX: Final = f"{RESERVED_PREFIX}xattrs/"

INLINE_LIMIT: Final = 1_024
"""Characters of text in an object's metadata, which can have 2 KiB with everything else that is in it."""

MAX_TOTAL: Final = 1024 * 1024
"""Bytes of all names and values of one inode; Linux lets a value have 64 KiB, and the list of names too."""

NAMESPACES: Final = (b"user.", b"security.", b"trusted.")
PRIVILEGED: Final = b"trusted."
"""Names that only root is shown."""

_REFERENCE: Final = "@"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_PAIR: Final = re.compile(r'"(.*?)":"([A-Za-z0-9+/=]*)"(?=[,}])', re.DOTALL)


def encode(attributes: Mapping[bytes, bytes]) -> str:
    """Return the text; "" for none."""
    if not attributes:
        return ""
    pairs = {
        name.decode(errors="surrogateescape"): base64.b64encode(value).decode()
        for name, value in sorted(attributes.items())
    }
    return quote(json.dumps(pairs, separators=(",", ":"), ensure_ascii=_has_odd_bytes(pairs)), safe="")


def decode(text: str) -> dict[bytes, bytes]:
    """Return what a text says; what nobody can read in it is left out."""
    plain = unquote(text)
    try:
        pairs = [(str(name), str(value)) for name, value in dict(json.loads(plain)).items()]
    except (ValueError, TypeError):
        pairs = _PAIR.findall(plain)
    found = {}
    for name, value in pairs:
        try:
            found[name.encode(errors="surrogateescape")] = base64.b64decode(value, validate=True)
        except (binascii.Error, UnicodeEncodeError):
            continue
    return found


def to_metadata(text: str) -> dict[str, str]:
    """Return the metadata that carries a text, or the reference to the object that does."""
    if is_reference(text):
        return {"xattr-object": text.removeprefix(_REFERENCE)}
    if len(text) > INLINE_LIMIT:
        return {"xattr-object": hashlib.sha256(text.encode()).hexdigest()}
    return {"xattr": text} if text else {}


def from_metadata(metadata: Mapping[str, str]) -> str:
    """Return the text that metadata carries, or a reference; "" for none."""
    digest = metadata.get("xattr-object", "")
    return f"{_REFERENCE}{digest}" if _DIGEST.fullmatch(digest) else metadata.get("xattr", "")


def is_reference(text: str) -> bool:
    """Return whether the text is still in its object, and has to be fetched."""
    return text.startswith(_REFERENCE)


def object_key(text: str) -> str | None:
    """Return the key of the object that holds a text, or that a reference means; None if it needs none."""
    digest = to_metadata(text).get("xattr-object")
    return OBJECTS_PREFIX + digest if digest is not None else None


def _has_odd_bytes(pairs: Mapping[str, str]) -> bool:
    """Return whether a name has bytes that are not UTF-8: those can be written as JSON's escapes alone."""
    return any("\udc80" <= at <= "\udcff" for name in pairs for at in name)
