"""KServe's protocol, version 2 (Open Inference Protocol): what is no tensor in it, for HTTP and gRPC alike."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stillhouse.check import check_choice, check_whole
from stillhouse.errors import InvalidRequest, NotAllowed
from stillhouse.pipelines.manifest import Manifest
from stillhouse.serve.api.http import Missing
from stillhouse.serve.api.kserve.tensors import INPUTS, NEGATIVE_PROMPT, OUTPUTS, SHOWN, Given, Spec, request_of, short
from stillhouse.serve.api.seeds import new_seed
from stillhouse.serve.client import Caller
from stillhouse.serve.request_handle import Order, Ticket
from stillhouse.serve.worker.messages import Closed

SERVER = "stillhouse"
VERSION = "1"
"""The only one that each model has."""
EXTENSIONS = ("binary_tensor_data",)
MOST_PREVIEWS = 10
LONGEST_TIMEOUT = 10**13
"""Microseconds, some months."""
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
# The last one asks for an answer that says that it is the last, be it empty; here the last one is the picture itself.
_PARAMETERS = ("timeout", "previews", "priority", *_SEQUENCE, "triton_enable_empty_final_response")


class Terms(NamedTuple):
    """What a request's parameters say: seconds within which it must begin, and how many previews are sent."""

    patience: float | None = None
    previews: int = 0


def check_model(tiers: Collection[str], name: str, version: str, caller: Caller | None = None) -> None:
    """Refuse a model that is not served, or not to this caller; an empty version is any.

    Raises:
        Missing: there is none of that name, or of that version.
        NotAllowed: the caller may not ask for it.
    """
    if name not in tiers:
        allowed = tiers if caller is None else [tier for tier in tiers if tier in caller.tiers]
        raise Missing(f"there is no model {name[:SHOWN]!r}", allowed=", ".join(allowed))
    if version not in ("", VERSION):
        raise Missing(f"model {name!r} has no version {version[:SHOWN]!r}", allowed=VERSION)
    if caller is not None and name not in caller.tiers:
        raise NotAllowed(f"model {name!r} with this key", allowed=", ".join(sorted(caller.tiers)))


def described(name: str, manifest: Manifest) -> dict[str, Any]:
    """A model's metadata, as JSON has it."""
    inputs = [spec for spec in INPUTS.values() if spec != NEGATIVE_PROMPT or not manifest.guidance_channels]
    return {
        "name": name,
        "versions": [VERSION],
        "platform": SERVER,
        "inputs": [_told(spec) for spec in inputs],
        "outputs": [_told(spec) for spec in OUTPUTS.values()],
    }


def order_of(
    inputs: Iterable[Given],
    parameters: Mapping[str, object],
    model: str,
    caller: Caller,
    *,
    is_stream: bool = False,
    trace: str | None = None,
) -> Order:
    """The order for one picture; its seed is drawn where none is given.

    Raises:
        InvalidRequest: an input or a parameter that does not exist, or is not as it must be.
    """
    terms = terms_of(parameters, is_stream)
    request = request_of(inputs, new_seed())
    return Order(request, caller, model, "raw", terms.previews, terms.patience, trace=trace)


def terms_of(parameters: Mapping[str, object], is_stream: bool = False) -> Terms:
    """What a request's parameters say.

    `timeout` is in microseconds, and 0 means none, as in Triton. A `priority` is refused: who goes first is a matter
    of the tier, and a request that said otherwise would be answered as if it had not.

    Raises:
        InvalidRequest: a parameter that does not exist, has no meaning here, or is out of its range.

    >>> terms_of({"timeout": 1_500_000})
    Terms(patience=1.5, previews=0)
    """
    for name in parameters:
        check_choice("parameter", name[:SHOWN], _PARAMETERS)
    timeout, previews = parameters.get("timeout", 0), parameters.get("previews", 0)
    check_whole("timeout", short(timeout), 0, LONGEST_TIMEOUT)
    check_whole("previews", short(previews), 0, MOST_PREVIEWS)
    assert isinstance(timeout, int) and isinstance(previews, int)
    if previews and not is_stream:
        raise InvalidRequest("previews of a single answer", allowed="previews with ModelStreamInfer, over gRPC")
    if parameters.get("priority"):
        fix = "ask for the model of a tier with a greater weight"
        raise InvalidRequest(f"priority is {short(parameters['priority'])!r}", allowed="0: tiers decide", fix=fix)
    if any(parameters.get(name) for name in _SEQUENCE):
        raise InvalidRequest("a sequence of requests", allowed="requests that do not depend on each other")
    return Terms(timeout / 1e6 if timeout else None, previews)


def check_outputs(names: Sequence[str]) -> None:
    """Refuse outputs that do not exist or are asked for twice."""
    for number, name in enumerate(names):
        check_choice("output", name[:SHOWN], OUTPUTS)
        if name in names[:number]:
            raise InvalidRequest(f"output {name} asked for twice", allowed="one of each")


def facts_of(ticket: Ticket, closed: Closed) -> dict[str, str | float]:
    """The parameters of an answer: how it went, in milliseconds, and whether another tier's way of drawing was used."""
    facts: dict[str, str | float] = {
        "request_id": ticket.id,
        "queue_ms": round(1000 * closed.waited, 1),
        "denoise_ms": round(1000 * closed.denoised, 1),
        "batch_peers": round(closed.peers, 2),
    }
    return facts | ({"degraded_to": ticket.degraded_to} if ticket.degraded_to else {})


def _told(spec: Spec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
