"""Times and sizes as people write them."""

import re

from stillhouse.errors import InvalidRequest

_SECONDS = {"": 1, "S": 1, "M": 60, "H": 3600, "D": 86400}
_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Z]*)")


def parse_duration(text: str) -> float:
    """Seconds out of 90, 90s, 10m, 1h, 2d.

    Raises:
        InvalidRequest: anything else, and no time at all.

    >>> read_seconds("10m")
    600.0
    """
    found = _NUMBER.fullmatch(text.strip().upper())
    if not found or found[2] not in _SECONDS or float(found[1]) == 0:
        raise InvalidRequest(f"{text!r} is no time", allowed="a time such as 90s, 10m or 1h")
    return float(found[1]) * _SECONDS[found[2]]


def parse_size(text: str) -> int:
    """Bytes out of 4GiB, 500MiB, 1000.

    Raises:
        InvalidRequest: anything else, and nothing at all.

    >>> read_bytes("4GiB")
    4294967296
    """
    found = _NUMBER.fullmatch(text.strip().upper())
    unit = found[2].removesuffix("B") if found else "?"
    if not found or unit not in _BYTES or float(found[1]) == 0:
        raise InvalidRequest(f"{text!r} is no size", allowed="a size such as 4GiB or 500MiB")
    return int(float(found[1]) * _BYTES[unit])
