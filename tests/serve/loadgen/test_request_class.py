"""Classes and floods of the command line."""

import pytest

from stillhouse.errors import InvalidRequest
from stillhouse.serve.loadgen.request_class import (
    FieldValue,
    Flood,
    RequestClass,
    check_request_classes,
    parse_flood,
    parse_request_class,
)


def test_class_is_parsed() -> None:
    assert parse_request_class("free=1") == RequestClass("free", 1.0, "free")
    text = "pro=0.2:model=shapes:steps=35:guidance=2:sampler=ddim:size=64x64:seed=7:isolated=0.4"
    fields: dict[str, FieldValue] = {"steps": 35, "guidance": 2.0, "sampler": "ddim", "size": "64x64", "seed": 7}
    assert parse_request_class(text) == RequestClass("pro", 0.2, "shapes", fields, isolated_seconds=0.4)


@pytest.mark.parametrize("text", ["", "free", "=1", "free=", "free=x", "free=0.5:steps", "free=0.5:steps=x"])
def test_wrong_syntax_is_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(InvalidRequest, match="NAME=SHARE"):
        parse_request_class(text)


def test_invalid_shares_fields_and_seconds_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="share of 'free'"):
        parse_request_class("free=1.5")
    with pytest.raises(InvalidRequest, match="did you mean 'steps'"):
        parse_request_class("free=1:step=3")
    with pytest.raises(InvalidRequest, match="isolated"):
        parse_request_class("free=1:isolated=0")


def test_flood_is_parsed() -> None:
    assert parse_flood("20@1m:pro") == Flood(20, 60.0, "pro")
    for text in ("", "20", "20@30", "20@30:", "0@30:pro", "-1@30:pro", "10001@30:pro", "x@30:pro"):
        with pytest.raises(InvalidRequest, match="N@SECONDS:CLASS"):
            parse_flood(text)
    with pytest.raises(InvalidRequest, match="no duration"):
        parse_flood("20@soon:pro")


def test_classes_are_checked_together() -> None:
    free, pro = RequestClass("free", 0.8, "free"), RequestClass("pro", 0.2, "pro")
    check_request_classes((free, pro), Flood(1, 1.0, "pro"))
    with pytest.raises(InvalidRequest, match="sum of all shares"):
        check_request_classes((free,), None)
    with pytest.raises(InvalidRequest, match="name of its own"):
        check_request_classes((pro, *[pro] * 4), None)
    with pytest.raises(InvalidRequest, match="no class 'other'"):
        check_request_classes((free, pro), Flood(1, 1.0, "other"))
