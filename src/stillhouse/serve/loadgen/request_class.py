"""A kind of request, as the command line tells it: how many of all are of it, and what it asks for."""

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
"""What a kind may ask for, and how it is read."""
_SYNTAX = "NAME=SHARE[:FIELD=VALUE...], for example pro=0.2:steps=35"


@dataclass(frozen=True, slots=True)
class RequestClass:
    """Requests that are alike.

    Args:
        name: in the report.
        share: of all requests, above 0 up to 1.
        model: that is asked for.
        fields: what is asked of it beside the prompt, by the names of `FIELDS`; what is left out, the server decides.
        alone: seconds that such a picture takes when nobody else asks; None, they are measured.
    """

    name: str
    share: float
    model: str
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    isolated_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Flood:
    """So many requests of one kind, all at one moment: seconds from the beginning."""

    count: int
    time: float
    request_class: str


def parse_request_class(text: str) -> RequestClass:
    """A kind out of `free=0.8:steps=3`.

    The fields are those of `FIELDS`, `model` where it is not the name, and `alone` where its seconds are known.

    Raises:
        InvalidRequest: another form, a field that there is not, or a share outside 0 to 1.

    >>> read_kind("pro=0.2:steps=35:model=shapes")
    Kind(name='pro', share=0.2, model='shapes', fields={'steps': 35}, alone=None)
    """
    first, *rest = text.split(":")
    name, _, share = first.partition("=")
    told: dict[str, FieldValue] = {}
    for part in rest:
        known, _, value = part.partition("=")
        check_choice("field of a kind", known, (*FIELD_TYPES, "model", "alone"))
        told[known] = _parse_value(FIELD_TYPES.get(known, float if known == "alone" else str), value, text)
    kind = RequestClass(
        name, float(_parse_value(float, share, text)), str(told.pop("model", name)), told, _pop_isolated_seconds(told)
    )
    if not name:
        raise InvalidRequest(f"a kind {text!r}", allowed=_SYNTAX)
    check_number(f"the share of {name!r}", kind.share, 1e-6, 1)
    return kind


def parse_flood(text: str) -> Flood:
    """A flood out of `20@30s:pro`.

    Raises:
        InvalidRequest: another form, or more than 10,000 requests.

    >>> read_flood("20@30:pro")
    Flood(count=20, at=30.0, kind='pro')
    """
    count, _, rest = text.partition("@")
    at, _, kind = rest.partition(":")
    if not (count.isascii() and count.isdecimal()) or not 1 <= int(count) <= 10_000 or not kind:
        raise InvalidRequest(f"a flood {text!r}", allowed="N@SECONDS:KIND with N up to 10000, for example 20@30:pro")
    return Flood(int(count), parse_duration(at), kind)


def check_request_classes(classes: tuple[RequestClass, ...], flood: Flood | None) -> None:
    """Refuse kinds whose shares are not of one whole, two of one name, and a flood of none of them."""
    names = [kind.name for kind in classes]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"kinds {', '.join(names)}", allowed="a name of its own for each")
    check_number("the sum of all shares", sum(kind.share for kind in classes), 1 - 1e-9, 1 + 1e-9)
    if flood:
        check_choice("kind", flood.request_class, names)


def _pop_isolated_seconds(fields: dict[str, FieldValue]) -> float | None:
    if "alone" not in fields:
        return None
    alone = fields.pop("alone")
    check_number("alone", alone, 1e-6, 1e6)
    return float(alone)


def _parse_value(parse: Callable[[str], FieldValue], value: str, text: str) -> FieldValue:
    try:
        if value:
            return parse(value)
    except ValueError:
        pass
    raise InvalidRequest(f"a kind {text!r}", allowed=_SYNTAX)
