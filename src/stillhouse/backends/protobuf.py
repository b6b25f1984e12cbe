"""Protobuf messages, read without their schema (protobuf.dev/programming-guides/encoding)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Fields: TypeAlias = Mapping[int, list[Any]]
"""Every field's values by its number; a number without values gives an empty list."""


def first_text(values: list[Any]) -> str:
    """The first of a field's values as text; "" where it has none."""
    return str(values[0], "utf-8") if values else ""


def parse_fields(message: memoryview) -> Fields:
    """A message taken apart, one level deep: numbers, and the bytes of strings and of messages inside.

    Raises:
        ValueError, KeyError, IndexError: it is none, or a part of one.
    """
    found: defaultdict[int, list[Any]] = defaultdict(list)
    for number, value in _iterate_fields(message):
        found[number].append(value)
    return found


def _iterate_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Each field of a message: its number and its value, an int or the bytes of what is inside."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        value: int | memoryview
        if (wire := tag & 7) == 0:
            value, at = _varint(message, at)
        else:
            length, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = message[at : at + length], at + length
        if at > end:
            raise ValueError("it ends in the middle of a field")
        yield tag >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
