"""Durations and sizes as command lines and settings write them."""

import re

from stillhouse.errors import InvalidRequest

_SECONDS = {"": 1, "S": 1, "M": 60, "H": 3600, "D": 86400}
_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Z]*)")


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as 90, 90s, 10m, 1h or 2d. A number without a unit is in seconds.

    Raises:
        InvalidRequest: the text is no duration, or a duration of 0.

    >>> parse_duration("10m")
    600.0
    """
    match = _NUMBER.fullmatch(text.strip().upper())
    if not match or match[2] not in _SECONDS or float(match[1]) == 0:
        raise InvalidRequest(f"{text!r} is no duration", allowed="a duration such as 90s, 10m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 4GiB, 500MB or 1000. A number without a unit is in bytes.

    Raises:
        InvalidRequest: the text is no size, or a size of 0.

    >>> parse_size("4GiB")
    4294967296
    """
    match = _NUMBER.fullmatch(text.strip().upper())
    unit = match[2].removesuffix("B") if match else "?"
    if not match or unit not in _BYTES or float(match[1]) == 0:
        raise InvalidRequest(f"{text!r} is no size", allowed="a size such as 4GiB or 500MiB")
    return int(float(match[1]) * _BYTES[unit])
