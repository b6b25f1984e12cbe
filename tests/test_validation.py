from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from stillhouse.validation import InvalidDocument, convert


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
    pair: tuple[float, float] = (0.0, 1.0)

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
    outer = convert(Outer, WHOLE)
    assert outer == Outer(Inner(2.0, ("a", "b")), {"x": Inner(0.5)}, "round", None, {"free": [1]})
    assert type(outer.inner.number) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": {"number": "2"}}, "$.inner.number is '2'; allowed: float"),
        ({"inner": {}}, "$.inner.number is missing"),
        ({"inner": {"number": 2, "word": 1}}, "$.inner.word is not known here; allowed: number, words"),
        ({"inner": {"number": 2, "words": ["a", 1]}}, "$.inner.words[1] is 1; allowed: str"),
        ({"inner": {"number": 2, "words": "a"}}, "$.inner.words is 'a'; allowed: array"),
        ({"by_name": {"x": []}}, "$.by_name.x is []; allowed: object"),
        ({"by_name": {"x": {"number": 1}, "y": {"number": True}}}, "$.by_name.y.number is True; allowed: float"),
        ({"by_name": {"x": {"number": 1, "word": 1}}}, "$.by_name.x.word is not known here; allowed: number, words"),
        ({"kind": "oval"}, "$.kind is 'oval'; allowed: 'round', 'square'"),
        ({"limit": True}, "$.limit is True; allowed: int | null"),
        ({"limit": 1.0}, "$.limit is 1.0; allowed: int | null"),
        ({"pair": [1]}, "$.pair is [1]; allowed: array of length 2"),
        ({"pair": [1, "2"]}, "$.pair[1] is '2'; allowed: float"),
        ({"limit": 13}, "$ is refused: 13 brings bad luck"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidDocument) as error:
        convert(Outer, {**WHOLE, **change})
    assert str(error.value) == message
