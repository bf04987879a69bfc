"""Extended attributes of one inode as text, and the two places in a bucket for it.

The text is s3fs's (its `build_xattrs`): a JSON object of names and values in Base64, URL-encoded, in the metadata
`xattr` of the object. Where it is too long for that, it is an object of its own, `.fusefs/xattrs/NAME`, and the
metadata `xattr-object` has the name. Such an object never changes, so a file is renamed with the reference alone. The
name is 32 random digits, anew for each change, and stands behind the text. So one inode alone refers to it, and it is
deleted when that has others or is gone. A plus behind the name says that there may be more who refer to it, and that
it stays; so does one whose name is a SHA-256, as earlier versions have made them.

s3fs writes a name as it is, quotes included, which is not JSON; it is read all the same. It also leaves a longer text
in the metadata, where it stays until it is changed here: `~=` stands behind such a one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, unquote

from backends.base import MIB
from fusefs.keys import RESERVED_PREFIX

OBJECTS_PREFIX: Final = f"{RESERVED_PREFIX}xattrs/"

INLINE_LIMIT: Final = 1_024
"""Characters of text in an object's metadata, which can have 2 KiB with everything else that is in it."""

MAX_TOTAL: Final = MIB
"""Bytes of all names and values of one inode; Linux lets a value have 64 KiB, and the list of names too."""

NAMESPACES: Final = (b"user.", b"security.", b"trusted.")
PRIVILEGED: Final = b"trusted."
"""Names that only root is shown."""

LEFT_KEY: Final = "xattr-left"
"""In the metadata of the log's records: names of objects that the inode had before, and that may be there still."""

_REFERENCE: Final = "@"
_INLINE: Final = "~="
_SHARED: Final = "+"
_NAME: Final = re.compile(r"[0-9a-f]{64}|[0-9a-f]{32}\+?")
_NAMED_TEXT: Final = re.compile(r"(.*%7D)~([0-9a-f]{32}\+?)", re.DOTALL)
_OWN_NAME_LENGTH: Final = 32
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
    plain = unquote(_split(text)[0])
    try:
        pairs = [(str(name), str(value)) for name, value in dict(json.loads(plain)).items()]
    except (ValueError, TypeError, RecursionError):
        pairs = _PAIR.findall(plain)
    found = {}
    for name, value in pairs:
        try:
            found[name.encode(errors="surrogateescape")] = base64.b64decode(value, validate=True)
        except ValueError:
            continue
    return found


def named(text: str) -> str:
    """Return a new text with the name of the object that it will have, if it is too long for metadata."""
    return f"{text}~{secrets.token_hex(16)}" if len(text) > INLINE_LIMIT else text


def loaded(text: str, reference: str) -> str:
    """Return the text that an object has, with the name by which `reference` refers to it. Raises ValueError."""
    if is_reference(text):
        raise ValueError("it is no text")
    plain, name = _split(text)
    return f"{plain}~{reference.removeprefix(_REFERENCE)}" if name else text


def shared(text: str) -> str:
    """Return a text, or a reference, that says that more may refer to its object, if it has one."""
    return text if own_key(text) is None else text + _SHARED


def to_metadata(text: str) -> dict[str, str]:
    """Return the metadata that carries a text, or the reference to the object that does."""
    name = _object_name(text)
    if name is not None:
        return {"xattr-object": name}
    return {"xattr": text.removesuffix(_INLINE)} if text else {}


def from_metadata(metadata: Mapping[str, str]) -> str:
    """Return the text that metadata carries, or a reference; "" for none."""
    name = metadata.get("xattr-object", "")
    if _NAME.fullmatch(name):
        return f"{_REFERENCE}{name}"
    text = metadata.get("xattr", "")
    if is_reference(text):
        return ""  # it would be one to whatever it names
    is_foreign = len(text) > INLINE_LIMIT and _split(text) == (text, "")
    return text + _INLINE if is_foreign else text


def is_reference(text: str) -> bool:
    """Return whether the text is still in its object, and has to be fetched."""
    return text.startswith(_REFERENCE)


def object_key(text: str) -> str | None:
    """Return the key of the object that holds a text, or that a reference means; None if it needs none."""
    name = _object_name(text)
    return OBJECTS_PREFIX + name.removesuffix(_SHARED) if name is not None else None


def own_key(text: str) -> str | None:
    """Return the same if nobody else refers to that object, and None otherwise."""
    name = _object_name(text)
    return OBJECTS_PREFIX + name if name is not None and len(name) == _OWN_NAME_LENGTH else None


def left_metadata(keys: Iterable[str]) -> dict[str, str]:
    """Return what a record of the log says of objects that are there still."""
    names = " ".join(key.removeprefix(OBJECTS_PREFIX) for key in keys)
    return {LEFT_KEY: names} if names else {}


def left_keys(metadata: Mapping[str, str]) -> list[str]:
    """Return of which objects a record says that."""
    return [OBJECTS_PREFIX + name for name in metadata.get(LEFT_KEY, "").split() if _NAME.fullmatch(name)]


def _object_name(text: str) -> str | None:
    if is_reference(text):
        return text.removeprefix(_REFERENCE)
    if len(text) <= INLINE_LIMIT or text.endswith(_INLINE):
        return None
    return _split(text)[1] or hashlib.sha256(text.encode()).hexdigest()


def _split(text: str) -> tuple[str, str]:
    """Return a text without its name, and the name; "" if it has none."""
    if text.endswith(_INLINE):
        return text.removesuffix(_INLINE), ""
    found = _NAMED_TEXT.fullmatch(text)
    return (found[1], found[2]) if found else (text, "")


def _has_odd_bytes(pairs: Mapping[str, str]) -> bool:
    """Return whether a name has bytes that are not UTF-8: those can be written as JSON's escapes alone."""
    return any("\udc80" <= at <= "\udcff" for name in pairs for at in name)
