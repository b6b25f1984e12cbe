"""HTTP bodies: Triton's client bodies are parsed, and responses are parsed by Triton's client."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest
from stillhouse.serve.api.kserve.http_body import ParsedBody, format_body, parse_body
from stillhouse.serve.api.kserve.tensors import image_tensors, parse_inputs

NOTHING = ParsedBody([], {}, None, {}, False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


def inputs(is_binary: bool, **values: Any) -> list[InferInput]:
    types = {"PROMPT": ("BYTES", np.object_), "SEED": ("INT64", np.int64), "GUIDANCE": ("FP32", np.float32)}
    tensors = []
    for name, value in values.items():
        datatype, dtype = types[name]
        tensor = InferInput(name, [1], datatype)
        tensor.set_data_from_numpy(np.array([value], dtype), binary_data=is_binary)
        tensors.append(tensor)
    return tensors


def body(*tensors: InferInput, **options: Any) -> tuple[bytes, str | None]:
    content, size = InferenceServerClient.generate_request_body(list(tensors), **options)
    return content, None if size is None else str(size)


@given(st.booleans(), st.text(), st.integers(0, 2**63 - 1))
def test_triton_client_body_is_parsed(is_binary: bool, prompt: str, seed: int) -> None:
    reading = parse_body(*body(*inputs(is_binary, PROMPT=prompt, SEED=seed, GUIDANCE=7.3), request_id="one"))
    request = parse_inputs(reading.inputs, seed=0)
    assert (request.prompt, request.seed, request.guidance, reading.id) == (prompt, seed, 7.3, "one")
    assert reading.is_binary and not reading.requested and not reading.parameters


def test_outputs_are_requested_as_binary_or_json() -> None:
    requested = [InferRequestedOutput("SEED", binary_data=False), InferRequestedOutput("IMAGE")]
    reading = parse_body(*body(*inputs(True, PROMPT="a"), outputs=requested, timeout=5))
    assert list(reading.requested.items()) == [("SEED", False), ("IMAGE", True)]
    assert reading.parameters == {"timeout": 5}


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_triton_client_parses_the_response(height: int, width: int, data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=height * width * 3, max_size=height * width * 3))
    outputs = image_tensors(ImageRequest("", seed=2**63 - 1, width=width, height=height), content)
    requested = {output.name: data.draw(st.booleans()) for output in outputs}
    written, length = format_body({"model_name": "free"}, outputs, NOTHING._replace(requested=requested))
    assert (length is None) == (not any(requested.values()))
    result = InferResult.from_response_body(written, header_length=length)
    image = np.frombuffer(content, np.uint8).reshape(height, width, 3)
    np.testing.assert_array_equal(result.as_numpy("IMAGE"), image)
    np.testing.assert_array_equal(result.as_numpy("SEED"), [2**63 - 1])


@given(st.binary(), st.none() | st.text() | st.integers().map(str))
def test_any_bytes_are_parsed_or_refused(content: bytes, length: str | None) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(content, length)


@given(JSON, st.binary(max_size=20), st.booleans())
def test_any_json_is_parsed_or_refused(document: Any, tail: bytes, is_told: bool) -> None:
    head = json.dumps({"inputs": [{"name": "PROMPT", "datatype": "BYTES", "shape": [1], "parameters": document}]})
    try:
        parse_body(head.encode() + tail, str(len(head)) if is_told else None)
    except InvalidRequest as error:
        assert len(str(error)) < 400


def prompt(**extra: Any) -> dict[str, Any]:
    return {"name": "PROMPT", "datatype": "BYTES", "shape": [1], **extra}


NO_SIZE = "binary_data_size of input PROMPT is not a number of bytes; allowed: a whole number from 0"


def seed(**parameters: Any) -> dict[str, Any]:
    return {"inputs": [], "outputs": [{"name": "SEED", "parameters": parameters}]}


@pytest.mark.parametrize(
    ("document", "tail", "message"),
    [
        ({}, b"", "the body is not valid: .*missing required field `inputs`"),
        ({"input": []}, b"", "the body is not valid: .*(missing required field|unknown field)"),
        (
            {"inputs": [prompt(data=["a"])], "id": 7},
            b"",
            r"the body is not valid: Expected `str \| null`, got `int` - at `\$.id`",
        ),
        ({"inputs": [prompt(data="a")]}, b"", r"the body is not valid: Expected `array \| null`"),
        ({"inputs": [prompt(parameters={"binary_data_size": 9})]}, b"12345", "is 9, but only 5 bytes are left"),
        ({"inputs": [prompt(parameters={"binary_data_size": 4})]}, b"12345", "1 bytes of the body belong to no input"),
        ({"inputs": [prompt(parameters={"binary_data_size": -1})]}, b"", NO_SIZE),
        ({"inputs": [prompt(parameters={"binary_data_size": 2.0})]}, b"12", NO_SIZE),
        ({"inputs": [prompt(data=[], parameters={"binary_data_size": 0})]}, b"", "has data and binary_data_size"),
        ({"inputs": [prompt(parameters={"shared_memory": "a"})]}, b"", "parameter 'shared_memory' of input PROMPT"),
        (
            seed(classification=1),
            b"",
            "parameter 'classification' of output SEED is not supported; allowed: only binary_data$",
        ),
        (seed(binary_data=1), b"", "binary_data is not a boolean"),
        ({"inputs": [], "outputs": [{"name": "IMAGES"}]}, b"", "there is no output 'IMAGES'"),
        ({"inputs": [], "parameters": {"binary_data_output": "yes"}}, b"", "binary_data_output is not a boolean"),
    ],
)
def test_error_names_the_place(document: dict[str, Any], tail: bytes, message: str) -> None:
    head = json.dumps(document).encode()
    with pytest.raises(InvalidRequest, match=message):
        parse_body(head + tail, str(len(head)))


@pytest.mark.parametrize("length", ["0", "-1", "99", "many", "", "1" * 10**4, "\u0661", "1_0"])
def test_invalid_header_length_is_refused(length: str) -> None:
    with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length is .*allowed: a number from 1 to 13"):
        parse_body(b'{"inputs":[]}', length)


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the body"):
        parse_body(b'{"inputs":[{"name":"PROMPT","datatype":"BYTES","shape":[1],"data":' + b"[" * 10**5, None)
