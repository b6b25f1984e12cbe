"""KServe's protocol, version 2 (Open Inference Protocol): models, parameters and metadata for HTTP and gRPC."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stillhouse.check import check_choice, check_integer
from stillhouse.errors import InvalidRequest, NotAllowed
from stillhouse.pipelines.families import find_family
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
"""Version of every model in KServe's protocol; a model has no other version."""
EXTENSIONS = ("binary_tensor_data",)
MAX_PREVIEWS = 10
MAX_TIMEOUT = 10**13
"""Largest accepted value of the request parameter `timeout` in microseconds, about four months."""
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
# Clients may send triton_enable_empty_final_response, which asks Triton for an extra, empty final response. The
# parameter is allowed, but has no effect here, because the image is always the final response.
_PARAMETERS = ("timeout", "previews", "priority", *_SEQUENCE, "triton_enable_empty_final_response")


class RequestOptions(NamedTuple):
    """Options that the parameters of an inference request set.

    Args:
        queue_timeout: seconds within which the request must start; None is unlimited.
        previews: number of preview images to send while the image is denoised.
    """

    queue_timeout: float | None = None
    previews: int = 0


def check_model(tiers: Collection[str], name: str, version: str, client: Client | None = None) -> None:
    """Check that a model exists in a version, and that a client may use it.

    Args:
        tiers: names of all models.
        name: name of the model.
        version: version of the model; empty stands for any.
        client: client to check; None checks only that the model exists.

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
        raise NotAllowed(f"this key may not use model {name!r}", allowed=", ".join(sorted(client.tiers)))


def describe_model(name: str, manifest: Manifest) -> dict[str, Any]:
    """Return a model's metadata in KServe's format: name, versions, and name, datatype and shape of each tensor.

    The input NEGATIVE_PROMPT is left out for models whose denoiser takes the guidance scale as an input.
    """
    takes_guidance = find_family(manifest.family).takes_guidance(manifest)
    inputs = [spec for spec in INPUTS.values() if spec != NEGATIVE_PROMPT or not takes_guidance]
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
    """Return the generation request that an inference request describes, with a random seed if none is given.

    Args:
        inputs: input tensors.
        parameters: parameters of the inference request.
        model: name of the model.
        client: sender of the request.
        is_stream: whether the responses are streamed, so that previews can be sent.
        traceparent: `traceparent` header of the client (W3C Trace Context); None if absent.

    Raises:
        InvalidRequest: an input or parameter is unknown or invalid.
    """
    options = parse_parameters(parameters, is_stream)
    request = parse_inputs(inputs, random_seed())
    return GenerationRequest(
        request, client, model, "raw", options.previews, options.queue_timeout, traceparent=traceparent
    )


def parse_parameters(parameters: Mapping[str, object], is_stream: bool = False) -> RequestOptions:
    """Parse the parameters of an inference request.

    `timeout` is in microseconds; 0 means no limit, as in Triton. A `priority` other than 0 is rejected, because each
    model has a fixed priority. `previews` is accepted only if `is_stream` is true (the responses are streamed).

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
        allowed = "previews with the streaming gRPC method ModelStreamInfer"
        raise InvalidRequest("previews cannot be sent in a single response", allowed=allowed)
    if parameters.get("priority"):
        problem = f"priority is {shorten(parameters['priority'])!r}, but each model has a fixed priority"
        raise InvalidRequest(problem, allowed="0", fix="request a model with a greater weight in the server's settings")
    if any(parameters.get(name) for name in _SEQUENCE):
        allowed = "requests without sequence_id, sequence_start and sequence_end"
        raise InvalidRequest("a sequence of requests is not supported", allowed=allowed)
    return RequestOptions(timeout / 1e6 if timeout else None, previews)


def check_outputs(names: Sequence[str]) -> None:
    """Raise InvalidRequest if a requested output tensor does not exist or is requested twice."""
    for number, name in enumerate(names):
        check_choice("output", name[:MAX_ECHO], OUTPUTS)
        if name in names[:number]:
            raise InvalidRequest(f"output {name} is requested twice", allowed="each output once")


def response_parameters(handle: RequestHandle, output: RequestOutput) -> dict[str, str | float]:
    """Return the parameters of an inference response, which describe how the image was generated.

    The parameters are the request id, the times in the queue and in denoising in milliseconds, the mean number of other
    images in the same batches, and the model that replaced the requested one, if any.
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
