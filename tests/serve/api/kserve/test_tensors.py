"""Named tensors: the same request in any encoding. Triton's client encodes them."""

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest
from stillhouse.serve.api.kserve.tensors import (
    INPUTS,
    InputTensor,
    OutputTensor,
    image_tensors,
    parse_inputs,
    preview_tensors,
    select_outputs,
)
from stillhouse.serve.engine.output import PreviewImage

SEEDS = st.integers(-(2**63), 2**63 - 1)
COUNTS = st.integers(-(2**31), 2**31 - 1)
SINGLES = st.floats(width=32)
PICTURES = st.tuples(st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False))


def raw(name: str, value: Any) -> InputTensor:
    """Return a tensor with raw contents."""
    datatype = INPUTS[name].datatype
    if datatype == "BYTES":
        return InputTensor(name, datatype, [1], serialize_byte_tensor(np.array([value.encode()], np.object_)).item())
    return InputTensor(
        name, datatype, [1], np.array([value], {"INT64": "<i8", "INT32": "<i4", "FP32": "<f4"}[datatype]).tobytes()
    )


def plain(name: str, value: Any) -> InputTensor:
    """Return a tensor with elements."""
    return InputTensor(name, INPUTS[name].datatype, [1], [value])


def same(tensor: object, other: object) -> bool:
    return tensor == other or (tensor != tensor and other != other)


@given(st.text(), st.text(), SEEDS, COUNTS, SINGLES)
def test_raw_and_json_tensors_are_equivalent(
    prompt: str, negative: str, seed: int, steps: int, guidance: float
) -> None:
    meant = {"PROMPT": prompt, "NEGATIVE_PROMPT": negative, "SEED": seed, "STEPS": steps, "GUIDANCE": guidance}
    for pack in (raw, plain):
        request = parse_inputs([pack(name, value) for name, value in meant.items()], seed=0)
        assert (request.prompt, request.negative_prompt) == (prompt, negative)
        assert (request.seed, request.steps) == (seed, steps)
        assert same(np.float32(request.guidance or 0.0), np.float32(guidance))


@given(st.integers(-999_999, 999_999), st.integers(0, 5))
def test_fp32_decimal_round_trips(digits: int, places: int) -> None:
    meant = digits / 10**places
    assert parse_inputs([plain("PROMPT", ""), raw("GUIDANCE", meant)], seed=0).guidance == meant


def test_missing_inputs_take_defaults_and_the_random_seed() -> None:
    request = parse_inputs([plain("PROMPT", "a red circle")], seed=7)
    assert (request.seed, request.steps, request.guidance, request.negative_prompt) == (7, None, None, "")


@pytest.mark.parametrize("name", INPUTS)
@given(content=st.binary(max_size=40) | st.lists(st.none() | st.integers() | st.text() | st.binary() | st.floats()))
def test_any_tensor_is_parsed_or_refused(name: str, content: Any) -> None:
    others = [] if name == "PROMPT" else [plain("PROMPT", "")]
    try:
        parse_inputs([*others, InputTensor(name, INPUTS[name].datatype, [1], content)], seed=0)
    except InvalidRequest as error:
        assert name in str(error) and "allowed: " in str(error)


REFUSED = [
    (InputTensor("PROMT", "BYTES", [1], ["a"]), "there is no input 'PROMT'; allowed: PROMPT, NEGATIVE_PROMPT, SEED"),
    (InputTensor("IMAGE", "UINT8", [1], [1]), "there is no input 'IMAGE'"),
    (InputTensor("P" * 10**6, "BYTES", [1], ["a"]), "there is no input 'P{64}'"),
    (InputTensor("SEED", "INT32", [1], [1]), r"input SEED is INT32 \[1\]; allowed: INT64 \[1\]"),
    (InputTensor("SEED", "INT64", [1, 1], [1]), r"input SEED is INT64 \[1, 1\]; allowed: INT64 \[1\]"),
    (InputTensor("SEED", "INT64", [], [1]), r"input SEED is INT64 \[\]"),
    (InputTensor("SEED", "INT64", [1] * 10**6, [1]), "input SEED is INT64"),
    (InputTensor("SEED", "INT64", [1], [1, 2]), "input SEED has 2 elements; allowed: 1 element"),
    (InputTensor("SEED", "INT64", [1], []), "input SEED has 0 elements"),
    (InputTensor("SEED", "INT64", [1], bytes(7)), r"input SEED has 7 bytes; allowed: 8 bytes for INT64 \[1\]"),
    (InputTensor("SEED", "INT64", [1], [2**63]), "input SEED holds 'a number with too many digits'; allowed: an INT64"),
    (InputTensor("SEED", "INT64", [1], [7.0]), "input SEED holds 7.0; allowed: an INT64"),
    (InputTensor("SEED", "INT64", [1], [True]), "input SEED holds True"),
    (InputTensor("STEPS", "INT32", [1], [2**31]), "input STEPS holds 2147483648; allowed: an INT32"),
    (InputTensor("STEPS", "INT32", [1], ["3"]), "input STEPS holds '3'"),
    (InputTensor("GUIDANCE", "FP32", [1], [1e39]), r"input GUIDANCE holds 1e\+39; allowed: an FP32"),
    (InputTensor("GUIDANCE", "FP32", [1], [10**400]), "input GUIDANCE holds 'a number with too many digits'"),
    (
        InputTensor("NEGATIVE_PROMPT", "BYTES", [1], b"abc"),
        "input NEGATIVE_PROMPT has 3 bytes that are not a length-prefixed text; all",
    ),
    (
        InputTensor("NEGATIVE_PROMPT", "BYTES", [1], b"\x03\0\0\0ab"),
        "input NEGATIVE_PROMPT has 6 bytes that are not a length-prefixed text",
    ),
    (InputTensor("NEGATIVE_PROMPT", "BYTES", [1], b"\x01\0\0\0\xff"), "input NEGATIVE_PROMPT is not UTF-8"),
    (InputTensor("NEGATIVE_PROMPT", "BYTES", [1], [7]), "input NEGATIVE_PROMPT holds 7; allowed: a text"),
    (InputTensor("PROMPT", "BYTES", [1], ["b"]), "there are two inputs named PROMPT; allowed: each input once"),
]


@pytest.mark.parametrize(("tensor", "message"), REFUSED)
def test_error_names_what_is_allowed(tensor: InputTensor, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        parse_inputs([plain("PROMPT", "a"), tensor], seed=0)
    assert len(str(caught.value)) < 400


def test_only_the_prompt_is_required() -> None:
    message = r"the request has no prompt; allowed: a request with the input PROMPT, BYTES \[1\]"
    with pytest.raises(InvalidRequest, match=message):
        parse_inputs([plain("SEED", 7)], seed=0)


@given(PICTURES, st.integers(0, 2**63 - 1))
def test_image_outputs_are_pixels_and_seed(shape: Any, seed: int) -> None:
    height, width, random = shape
    content = random.randbytes(height * width * 3)
    image, seed_tensor = image_tensors(ImageRequest("", seed=seed, width=width, height=height), content)
    assert (image.name, image.datatype, image.shape, image.content) == ("IMAGE", "UINT8", (height, width, 3), content)
    assert math.prod(image.shape) == len(image.content)
    assert (seed_tensor.name, seed_tensor.datatype, seed_tensor.shape, struct.unpack("<q", seed_tensor.content)) == (
        "SEED",
        "INT64",
        (1,),
        (seed,),
    )


@given(st.binary(), COUNTS)
def test_preview_outputs_are_a_file_and_a_step(content: bytes, index: int) -> None:
    preview, step = preview_tensors(PreviewImage("one", index, content))
    assert (preview.name, preview.datatype, preview.shape) == ("PREVIEW", "BYTES", (1,))
    assert deserialize_bytes_tensor(preview.content).tolist() == [content]
    assert (step.name, step.datatype, struct.unpack("<i", step.content)) == ("STEP", "INT32", (index,))


def test_outputs_are_selected_by_name_in_order() -> None:
    outputs = [OutputTensor("IMAGE", "UINT8", (1, 1, 3), b"abc"), OutputTensor("SEED", "INT64", (1,), bytes(8))]
    assert [tensor.name for tensor in select_outputs(outputs, ["SEED", "IMAGE"])] == ["SEED", "IMAGE"]
    assert [tensor.name for tensor in select_outputs(outputs, ["SEED"])] == ["SEED"]
    assert select_outputs(outputs, []) == outputs
