"""Sizes, durations and permission bits as people write them in a configuration file or on a command line, and read.

Every parser takes a number or a string, returns the value in its base unit (bytes, seconds, bits), and raises
`ValueError` with a message that reads well after the name of a key: what it must be, and what it was.
"""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from typing import Final

_SIZE_UNITS: Final = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_DURATION_UNITS: Final = {"ms": Fraction(1, 1000), "s": Fraction(1), "min": Fraction(60), "h": Fraction(3600)}
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)
_PERMISSIONS: Final = re.compile(r"(?:0o)?([0-7]{3,4})", re.ASCII)

_MAX_SIZE: Final = (1 << 63) - 1
#: Clocks and timeouts take no infinity; nobody waits for longer than this.
_MAX_SECONDS: Final = 365 * 24 * 3600
_LONGEST_SHOWN: Final = 60


def shown(value: object) -> str:
    """Return `value` as TOML would write it, cut short: how messages quote what they refuse."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, bool | str) else str(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def parse_size(value: object) -> int:
    """Return bytes: `8388608`, "8388608", "8 MiB", "1.5 GB"."""
    complaint = f'must be a number of bytes, or a string such as "8 MiB" (got {shown(value)})'
    if isinstance(value, int) and not isinstance(value, bool):
        size = Fraction(value)
    elif isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        number, unit = match.groups()
        if (unit or "B") not in _SIZE_UNITS:
            raise ValueError(complaint)
        size = Fraction(number) * _SIZE_UNITS[unit or "B"]
    else:
        raise ValueError(complaint)
    if size.denominator != 1 or not 0 <= size <= _MAX_SIZE:
        raise ValueError(complaint)
    return int(size)


def format_size(size: int) -> str:
    """Return "5 MiB" where a binary unit divides `size`, the plain number of bytes otherwise."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]} {unit}"
    return f"{size} bytes"


def brief_size(count: int) -> str:
    """Return bytes in three digits or four: "17 bytes", "1.2 MiB"."""
    if count < 1024:
        return f"{count} bytes"
    shown = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        shown /= 1024
        if shown < 1024:
            return f"{shown:.1f} {unit}"
    return f"{shown / 1024:.1f} TiB"


def counted(count: int, one: str, many: str) -> str:
    """Return "1 batch", "2 batches"."""
    return f"{count:,} {one if count == 1 else many}"


def parse_duration(value: object) -> float:
    """Return seconds: `5`, `0.5`, "5 s", "250 ms", "2 min", "1 h"."""
    complaint = f'must be a number of seconds, or a string such as "5 s" or "2 min" (got {shown(value)})'
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(complaint)
        seconds = Fraction(value)
    elif isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        number, unit = match.groups()
        if (unit or "s") not in _DURATION_UNITS:
            raise ValueError(complaint)
        seconds = Fraction(number) * _DURATION_UNITS[unit or "s"]
    else:
        raise ValueError(complaint)
    if not 0 <= seconds <= _MAX_SECONDS:
        raise ValueError(complaint)
    return float(seconds)


def parse_permissions(value: object) -> int:
    """Return permission bits from an octal string: "0644", "755", "0o700".

    A bare number is refused, because nobody can tell whether `644` was meant as octal.
    """
    match = _PERMISSIONS.fullmatch(value) if isinstance(value, str) else None
    bits = int(match[1], 8) if match else -1
    if not 0 <= bits <= 0o777:
        raise ValueError(f'must be permission bits in quotes, such as "0644" (got {shown(value)})')
    return bits
