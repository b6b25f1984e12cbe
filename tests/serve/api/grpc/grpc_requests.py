"""gRPC requests of the tests, and what they inspect."""

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.serve.running import Running

PROMPT = "a small red circle left of a big blue square"
LONG = {"SEED": 7, "STEPS": 150}
"""Inputs of a slow request."""
KINDS: dict[str, tuple[str, Any]] = {
    "PROMPT": ("BYTES", np.object_),
    "NEGATIVE_PROMPT": ("BYTES", np.object_),
    "SEED": ("INT64", np.int64),
    "STEPS": ("INT32", np.int32),
    "GUIDANCE": ("FP32", np.float32),
}


def inputs(**values: Any) -> list[triton.InferInput]:
    tensors = []
    for name, value in {"PROMPT": PROMPT, **values}.items():
        datatype, dtype = KINDS[name]
        tensor = triton.InferInput(name, [1], datatype)
        tensor.set_data_from_numpy(np.array([value], dtype))
        tensors.append(tensor)
    return tensors


def message(model: str = "free", **contents: Any) -> Any:
    """Return a request whose elements are in typed fields, not in raw contents."""
    fields = {"BYTES": "bytes_contents", "INT64": "int64_contents", "INT32": "int_contents", "FP32": "fp32_contents"}
    request = pb.ModelInferRequest(model_name=model)
    for name, value in {"PROMPT": PROMPT.encode(), **contents}.items():
        datatype = KINDS[name][0]
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[1])
        getattr(tensor.contents, fields[datatype]).append(value)
    return request


def refusal(client: triton.InferenceServerClient, model: str = "free", **options: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, **{"inputs": inputs(), **options})
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def cancelled(server: Running) -> float:
    """Return the number of requests cancelled by a disconnect."""
    lines = server.get("/metrics")[1].decode().splitlines()
    return sum(float(line.split()[1]) for line in lines if 'cancelled_total{reason="disconnect"}' in line)


def is_idle(server: Running, **headers: str) -> bool:
    status, state = server.get("/v1/state", **headers)
    assert status == 200, state
    return not json.loads(state)["requests"]


def facts(result: triton.InferResult) -> dict[str, Any]:
    """Return the parameters of a response."""
    fields = result.get_response().parameters
    return {name: getattr(item, item.WhichOneof("parameter_choice")) for name, item in fields.items()}
