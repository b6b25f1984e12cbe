"""Classes of requests and floods, as given on the command line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from stillhouse.check import check_choice, check_number
from stillhouse.errors import InvalidRequest
from stillhouse.units import parse_duration

FieldValue: TypeAlias = str | int | float
FIELD_TYPES: Mapping[str, Callable[[str], FieldValue]] = {
    "steps": int,
    "guidance": float,
    "sampler": str,
    "seed": int,
    "size": str,
}
"""Request fields that a class can set, with their parsers."""
_SYNTAX = "NAME=SHARE[:FIELD=VALUE...], for example pro=0.2:steps=35"


@dataclass(frozen=True, slots=True)
class RequestClass:
    """Requests with equal fields.

    Args:
        name: name in the report.
        share: share of all requests, above 0 up to 1.
        model: model to request.
        fields: fields of `FIELD_TYPES`; absent fields take the server's defaults.
        isolated_seconds: isolated latency; None measures it.
    """

    name: str
    share: float
    model: str
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    isolated_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Flood:
    """Additional requests at one time.

    Args:
        count: number of requests.
        time: seconds from the start.
        request_class: name of the class.
    """

    count: int
    time: float
    request_class: str


def parse_request_class(text: str) -> RequestClass:
    """Parse a class such as `free=0.8:steps=3`.

    Further fields are `model`, by default the name, and `isolated`, the isolated latency in seconds.

    Raises:
        InvalidRequest: the syntax or a field is wrong, or the share is not in 0 to 1.

    >>> parse_request_class("pro=0.2:steps=35:model=shapes")
    RequestClass(name='pro', share=0.2, model='shapes', fields={'steps': 35}, isolated_seconds=None)
    """
    first, *rest = text.split(":")
    name, _, share = first.partition("=")
    fields: dict[str, FieldValue] = {}
    for part in rest:
        field_name, _, value = part.partition("=")
        check_choice("field of a class", field_name, (*FIELD_TYPES, "model", "isolated"))
        fields[field_name] = _parse_value(
            FIELD_TYPES.get(field_name, float if field_name == "isolated" else str), value, text
        )
    request_class = RequestClass(
        name,
        float(_parse_value(float, share, text)),
        str(fields.pop("model", name)),
        fields,
        _pop_isolated_seconds(fields),
    )
    if not name:
        raise InvalidRequest(f"a class {text!r}", allowed=_SYNTAX)
    check_number(f"the share of {name!r}", request_class.share, 1e-6, 1)
    return request_class


def parse_flood(text: str) -> Flood:
    """Parse a flood such as `20@30s:pro`.

    Raises:
        InvalidRequest: the syntax is wrong, or there are more than 10,000 requests.

    >>> parse_flood("20@30:pro")
    Flood(count=20, time=30.0, request_class='pro')
    """
    count, _, rest = text.partition("@")
    time, _, request_class = rest.partition(":")
    if not (count.isascii() and count.isdecimal()) or not 1 <= int(count) <= 10_000 or not request_class:
        raise InvalidRequest(f"a flood {text!r}", allowed="N@SECONDS:CLASS with N up to 10000, for example 20@30:pro")
    return Flood(int(count), parse_duration(time), request_class)


def check_request_classes(classes: tuple[RequestClass, ...], flood: Flood | None) -> None:
    """Check that names are unique, shares sum to 1, and the flood's class exists."""
    names = [request_class.name for request_class in classes]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"classes {', '.join(names)}", allowed="a name of its own for each")
    check_number("the sum of all shares", sum(request_class.share for request_class in classes), 1 - 1e-9, 1 + 1e-9)
    if flood:
        check_choice("class", flood.request_class, names)


def _pop_isolated_seconds(fields: dict[str, FieldValue]) -> float | None:
    if "isolated" not in fields:
        return None
    seconds = fields.pop("isolated")
    check_number("isolated", seconds, 1e-6, 1e6)
    return float(seconds)


def _parse_value(parse: Callable[[str], FieldValue], value: str, text: str) -> FieldValue:
    try:
        if value:
            return parse(value)
    except ValueError:
        pass
    raise InvalidRequest(f"a class {text!r}", allowed=_SYNTAX)
