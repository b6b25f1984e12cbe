from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from stillhouse.json_decode import DecodeError, decode


@dataclass(frozen=True)
class Inner:
    number: float
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    by_name: Mapping[str, Inner]
    kind: Literal["round", "square"]
    limit: int | None
    anything: Any = None

    def __post_init__(self) -> None:
        if self.limit == 13:
            raise ValueError("13 brings bad luck")


WHOLE = {
    "inner": {"number": 2, "words": ["a", "b"]},
    "by_name": {"x": {"number": 0.5}},
    "kind": "round",
    "limit": None,
    "anything": {"free": [1]},
}


def test_every_kind_of_value() -> None:
    outer = decode(Outer, WHOLE)
    assert outer == Outer(Inner(2.0, ("a", "b")), {"x": Inner(0.5)}, "round", None, {"free": [1]})
    assert type(outer.inner.number) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": {"number": "2"}}, "$.inner.number is '2', not a value of type float"),
        ({"inner": {}}, "$.inner.number is missing"),
        ({"inner": {"number": 2, "word": 1}}, "$.inner.word is not known here"),
        ({"inner": {"number": 2, "words": ["a", 1]}}, "$.inner.words[1] is 1, not a value of type str"),
        ({"inner": {"number": 2, "words": "a"}}, "$.inner.words is 'a', not a list"),
        ({"by_name": {"x": []}}, "$.by_name.x is [], not an object"),
        ({"kind": "oval"}, "$.kind is 'oval', not one of 'round', 'square'"),
        ({"limit": True}, "$.limit is True, not a value of type int"),
        ({"limit": 13}, "$ is refused: 13 brings bad luck"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(change: dict[str, object], message: str) -> None:
    with pytest.raises(DecodeError) as error:
        decode(Outer, {**WHOLE, **change})
    assert str(error.value) == message
