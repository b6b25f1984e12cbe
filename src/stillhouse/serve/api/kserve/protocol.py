"""KServe's protocol, version 2 (Open Inference Protocol): models, parameters and metadata for HTTP and gRPC."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stillhouse.check import check_choice, check_integer
from stillhouse.errors import InvalidRequest, NotAllowed
from stillhouse.pipelines.manifest import Manifest
from stillhouse.serve.api.http import NotFound, random_seed
from stillhouse.serve.api.kserve.tensors import (
    INPUTS,
    MAX_ECHO,
    NEGATIVE_PROMPT,
    OUTPUTS,
    InputTensor,
    ModelTensor,
    parse_inputs,
    shorten,
)
from stillhouse.serve.client import Client
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.request_handle import GenerationRequest, RequestHandle

SERVER = "stillhouse"
VERSION = "1"
"""The only version of every model."""
EXTENSIONS = ("binary_tensor_data",)
MAX_PREVIEWS = 10
MAX_TIMEOUT = 10**13
"""Largest timeout in microseconds, about four months."""
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
# triton_enable_empty_final_response asks for an extra, empty final response. It has no effect, because the image is
# always the final response.
_PARAMETERS = ("timeout", "previews", "priority", *_SEQUENCE, "triton_enable_empty_final_response")


class RequestOptions(NamedTuple):
    """Options from the request parameters.

    Args:
        queue_timeout: seconds within which the request must start; None is unlimited.
        previews: number of preview images.
    """

    queue_timeout: float | None = None
    previews: int = 0


def check_model(tiers: Collection[str], name: str, version: str, client: Client | None = None) -> None:
    """Check that a model and version exist and that the client may use them. An empty version matches any.

    Raises:
        NotFound: the model or version does not exist.
        NotAllowed: the client may not use the model.
    """
    if name not in tiers:
        allowed = tiers if client is None else [tier for tier in tiers if tier in client.tiers]
        raise NotFound(f"there is no model {name[:MAX_ECHO]!r}", allowed=", ".join(allowed))
    if version not in ("", VERSION):
        raise NotFound(f"model {name!r} has no version {version[:MAX_ECHO]!r}", allowed=VERSION)
    if client is not None and name not in client.tiers:
        raise NotAllowed(f"model {name!r} with this key", allowed=", ".join(sorted(client.tiers)))


def describe_model(name: str, manifest: Manifest) -> dict[str, Any]:
    """Return the metadata of a model as fields of JSON: name, versions, inputs and outputs."""
    inputs = [spec for spec in INPUTS.values() if spec != NEGATIVE_PROMPT or not manifest.guidance_channels]
    return {
        "name": name,
        "versions": [VERSION],
        "platform": SERVER,
        "inputs": [_tensor_metadata(spec) for spec in inputs],
        "outputs": [_tensor_metadata(spec) for spec in OUTPUTS.values()],
    }


def make_generation_request(
    inputs: Iterable[InputTensor],
    parameters: Mapping[str, object],
    model: str,
    client: Client,
    *,
    is_stream: bool = False,
    traceparent: str | None = None,
) -> GenerationRequest:
    """Return the generation request of an inference request, with a random seed if none is given.

    Raises:
        InvalidRequest: an input or parameter is unknown or invalid.
    """
    options = parse_parameters(parameters, is_stream)
    request = parse_inputs(inputs, random_seed())
    return GenerationRequest(
        request, client, model, "raw", options.previews, options.queue_timeout, traceparent=traceparent
    )


def parse_parameters(parameters: Mapping[str, object], is_stream: bool = False) -> RequestOptions:
    """Parse request parameters.

    `timeout` is in microseconds; 0 means no limit, as in Triton. A `priority` is rejected, because tiers set
    priorities.

    Raises:
        InvalidRequest: a parameter is unknown, not supported or out of range.

    >>> parse_parameters({"timeout": 1_500_000})
    RequestOptions(queue_timeout=1.5, previews=0)
    """
    for name in parameters:
        check_choice("parameter", name[:MAX_ECHO], _PARAMETERS)
    timeout, previews = parameters.get("timeout", 0), parameters.get("previews", 0)
    check_integer("timeout", shorten(timeout), 0, MAX_TIMEOUT)
    check_integer("previews", shorten(previews), 0, MAX_PREVIEWS)
    assert isinstance(timeout, int) and isinstance(previews, int)
    if previews and not is_stream:
        raise InvalidRequest("previews of a single answer", allowed="previews with ModelStreamInfer, over gRPC")
    if parameters.get("priority"):
        fix = "ask for the model of a tier with a greater weight"
        raise InvalidRequest(f"priority is {shorten(parameters['priority'])!r}", allowed="0: tiers decide", fix=fix)
    if any(parameters.get(name) for name in _SEQUENCE):
        raise InvalidRequest("a sequence of requests", allowed="requests that do not depend on each other")
    return RequestOptions(timeout / 1e6 if timeout else None, previews)


def check_outputs(names: Sequence[str]) -> None:
    """Check that requested outputs exist and are unique."""
    for number, name in enumerate(names):
        check_choice("output", name[:MAX_ECHO], OUTPUTS)
        if name in names[:number]:
            raise InvalidRequest(f"output {name} asked for twice", allowed="one of each")


def response_parameters(handle: RequestHandle, output: RequestOutput) -> dict[str, str | float]:
    """Return the parameters of a response.

    The parameters are the request id, times in milliseconds, batch peers, and the effective tier if the request was
    degraded.
    """
    parameters: dict[str, str | float] = {
        "request_id": handle.id,
        "queue_ms": round(1000 * output.queue_seconds, 1),
        "denoise_ms": round(1000 * output.denoise_seconds, 1),
        "batch_peers": round(output.batch_peers, 2),
    }
    return parameters | ({"degraded_to": handle.degraded_to} if handle.degraded_to else {})


def _tensor_metadata(spec: ModelTensor) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
