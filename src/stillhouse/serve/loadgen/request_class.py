"""Classes of requests, and floods (additional requests at one time), as given on the command line."""

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
"""Fields of requests that a class of requests can set, with the functions that parse their values."""
_SYNTAX = "NAME=SHARE[:FIELD=VALUE...], for example pro=0.2:steps=35"


@dataclass(frozen=True, slots=True)
class RequestClass:
    """A class of requests, which differ only in their prompts.

    Args:
        name: name of the class in the report.
        share: share of all requests, above 0 up to 1.
        model: name of the requested model.
        fields: values of request fields by name, see `FIELD_TYPES`. Absent fields take the server's defaults.
        isolated_seconds: latency of a request without other requests, in seconds; with None, it is measured.
    """

    name: str
    share: float
    model: str
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    isolated_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Flood:
    """Additional requests that are all sent at one time.

    Args:
        count: number of requests.
        time: time of sending in seconds from the start of the load test.
        request_class: name of the class of the requests.
    """

    count: int
    time: float
    request_class: str


def parse_request_class(text: str) -> RequestClass:
    """Parse a class of requests: `NAME=SHARE[:FIELD=VALUE...]`, for example `free=0.8:steps=3`.

    A field is a key of `FIELD_TYPES`, `model` (the requested model; by default, the model named NAME) or `isolated`
    (the latency of a request without other requests, in seconds; by default, it is measured).

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
        raise InvalidRequest(f"the class {text!r} has no name", allowed=_SYNTAX)
    check_number(f"the share of {name!r}", request_class.share, 1e-6, 1)
    return request_class


def parse_flood(text: str) -> Flood:
    """Parse a flood (additional requests at one time): `N@TIME:CLASS`.

    `20@30s:pro`, for example, sends 20 requests of the class `pro` 30 seconds after the start.

    Raises:
        InvalidRequest: the syntax is wrong, or N is not 1 to 10,000.

    >>> parse_flood("20@30:pro")
    Flood(count=20, time=30.0, request_class='pro')
    """
    count, _, rest = text.partition("@")
    time, _, request_class = rest.partition(":")
    if not (count.isascii() and count.isdecimal()) or not 1 <= int(count) <= 10_000 or not request_class:
        allowed = "N@SECONDS:CLASS with N from 1 to 10000, for example 20@30:pro"
        raise InvalidRequest(f"the flood {text!r} does not have the right form", allowed=allowed)
    return Flood(int(count), parse_duration(time), request_class)


def check_request_classes(classes: tuple[RequestClass, ...], flood: Flood | None) -> None:
    """Raise InvalidRequest unless class names are unique, shares sum to 1, and the flood's class exists."""
    names = [request_class.name for request_class in classes]
    if len(set(names)) < len(names):
        problem = f"several of the classes {', '.join(names)} have the same name"
        raise InvalidRequest(problem, allowed="a name of its own for each class")
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
    raise InvalidRequest(f"{value!r} is not a valid value in the class {text!r}", allowed=_SYNTAX)
