"""Kinds and floods as they are written on the command line."""

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


def test_a_kind_is_a_name_a_share_and_what_it_asks_for() -> None:
    assert parse_request_class("free=1") == RequestClass("free", 1.0, "free")
    text = "pro=0.2:model=shapes:steps=35:guidance=2:sampler=ddim:size=64x64:seed=7:isolated=0.4"
    asked: dict[str, FieldValue] = {"steps": 35, "guidance": 2.0, "sampler": "ddim", "size": "64x64", "seed": 7}
    assert parse_request_class(text) == RequestClass("pro", 0.2, "shapes", asked, isolated_seconds=0.4)


@pytest.mark.parametrize("text", ["", "free", "=1", "free=", "free=x", "free=0.5:steps", "free=0.5:steps=x"])
def test_another_form_is_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(InvalidRequest, match="NAME=SHARE"):
        parse_request_class(text)


def test_shares_fields_and_seconds_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="share of 'free'"):
        parse_request_class("free=1.5")
    with pytest.raises(InvalidRequest, match="did you mean 'steps'"):
        parse_request_class("free=1:step=3")
    with pytest.raises(InvalidRequest, match="isolated"):
        parse_request_class("free=1:isolated=0")


def test_a_flood_is_a_count_a_moment_and_a_kind() -> None:
    assert parse_flood("20@1m:pro") == Flood(20, 60.0, "pro")
    for text in ("", "20", "20@30", "20@30:", "0@30:pro", "-1@30:pro", "10001@30:pro", "x@30:pro"):
        with pytest.raises(InvalidRequest, match="N@SECONDS:CLASS"):
            parse_flood(text)
    with pytest.raises(InvalidRequest, match="no duration"):
        parse_flood("20@soon:pro")


def test_kinds_make_up_a_whole_have_names_and_hold_the_flood() -> None:
    free, pro = RequestClass("free", 0.8, "free"), RequestClass("pro", 0.2, "pro")
    check_request_classes((free, pro), Flood(1, 1.0, "pro"))
    with pytest.raises(InvalidRequest, match="sum of all shares"):
        check_request_classes((free,), None)
    with pytest.raises(InvalidRequest, match="name of its own"):
        check_request_classes((pro, *[pro] * 4), None)
    with pytest.raises(InvalidRequest, match="no class 'other'"):
        check_request_classes((free, pro), Flood(1, 1.0, "other"))
