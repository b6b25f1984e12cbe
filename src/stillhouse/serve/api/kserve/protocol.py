"""KServe's protocol, version 2 (Open Inference Protocol): what is no tensor in it, for HTTP and gRPC alike."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stillhouse.check import check_choice, check_integer
from stillhouse.errors import InvalidRequest, NotAllowed
from stillhouse.pipelines.manifest import Manifest
from stillhouse.serve.api.http import NotFound
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
from stillhouse.serve.api.seeds import random_seed
from stillhouse.serve.client import Client
from stillhouse.serve.request_handle import GenerationRequest, RequestHandle
from stillhouse.serve.worker.messages import RequestOutput

SERVER = "stillhouse"
VERSION = "1"
"""The only one that each model has."""
EXTENSIONS = ("binary_tensor_data",)
MAX_PREVIEWS = 10
MAX_TIMEOUT = 10**13
"""Microseconds, some months."""
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
# The last one asks for an answer that says that it is the last, be it empty; here the last one is the picture itself.
_PARAMETERS = ("timeout", "previews", "priority", *_SEQUENCE, "triton_enable_empty_final_response")


class RequestOptions(NamedTuple):
    """What a request's parameters say: seconds within which it must begin, and how many previews are sent."""

    queue_timeout: float | None = None
    previews: int = 0


def check_model(tiers: Collection[str], name: str, version: str, client: Client | None = None) -> None:
    """Refuse a model that is not served, or not to this caller; an empty version is any.

    Raises:
        Missing: there is none of that name, or of that version.
        NotAllowed: the caller may not ask for it.
    """
    if name not in tiers:
        allowed = tiers if client is None else [tier for tier in tiers if tier in client.tiers]
        raise NotFound(f"there is no model {name[:MAX_ECHO]!r}", allowed=", ".join(allowed))
    if version not in ("", VERSION):
        raise NotFound(f"model {name!r} has no version {version[:MAX_ECHO]!r}", allowed=VERSION)
    if client is not None and name not in client.tiers:
        raise NotAllowed(f"model {name!r} with this key", allowed=", ".join(sorted(client.tiers)))


def describe_model(name: str, manifest: Manifest) -> dict[str, Any]:
    """A model's metadata, as JSON has it."""
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
    """The order for one picture; its seed is drawn where none is given.

    Raises:
        InvalidRequest: an input or a parameter that does not exist, or is not as it must be.
    """
    terms = parse_parameters(parameters, is_stream)
    request = parse_inputs(inputs, random_seed())
    return GenerationRequest(
        request, client, model, "raw", terms.previews, terms.queue_timeout, traceparent=traceparent
    )


def parse_parameters(parameters: Mapping[str, object], is_stream: bool = False) -> RequestOptions:
    """What a request's parameters say.

    `timeout` is in microseconds, and 0 means none, as in Triton. A `priority` is refused: who goes first is a matter
    of the tier, and a request that said otherwise would be answered as if it had not.

    Raises:
        InvalidRequest: a parameter that does not exist, has no meaning here, or is out of its range.

    >>> terms_of({"timeout": 1_500_000})
    Terms(patience=1.5, previews=0)
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
    """Refuse outputs that do not exist or are asked for twice."""
    for number, name in enumerate(names):
        check_choice("output", name[:MAX_ECHO], OUTPUTS)
        if name in names[:number]:
            raise InvalidRequest(f"output {name} asked for twice", allowed="one of each")


def response_parameters(handle: RequestHandle, output: RequestOutput) -> dict[str, str | float]:
    """The parameters of an answer: how it went, in milliseconds, and whether another tier's way of drawing was used."""
    facts: dict[str, str | float] = {
        "request_id": handle.id,
        "queue_ms": round(1000 * output.queue_seconds, 1),
        "denoise_ms": round(1000 * output.denoise_seconds, 1),
        "batch_peers": round(output.batch_peers, 2),
    }
    return facts | ({"degraded_to": handle.degraded_to} if handle.degraded_to else {})


def _tensor_metadata(spec: ModelTensor) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
