"""Dialects: how a picture is asked for, and how an answer is known to hold one."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from stillhouse.check import check_choice
from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.serve.loadgen.http_client import Message, Reply
from stillhouse.serve.loadgen.request_class import Kind, Value

Name: TypeAlias = Literal["openai", "kserve"]
Ask: TypeAlias = Callable[[Message], Awaitable[Reply]]
_JSON = {"content-type": "application/json"}
_FLOATS = ("FP16", "FP32", "FP64")


class Dialect(Protocol):
    """One protocol."""

    def message(self, kind: Kind, prompt: str) -> Message:
        """A request of that kind."""

    def has_picture(self, body: bytes) -> bool:
        """Whether an answer with a good status holds what was asked for."""


@dataclass(frozen=True, slots=True)
class OpenAI:
    """OpenAI's images."""

    def message(self, kind: Kind, prompt: str) -> Message:
        """See `Dialect`. Fields that this protocol does not have stand beside those that it has."""
        asked = {"model": kind.model, "prompt": prompt, "n": 1, **kind.fields}
        return Message("POST", "/v1/images/generations", json.dumps(asked).encode(), _JSON)

    def has_picture(self, body: bytes) -> bool:
        """See `Dialect`."""
        return b'"b64_json"' in body or b'"url"' in body


@dataclass(frozen=True, slots=True)
class Input:
    """An input of a model as its metadata tells it: the type, and whether a batch's axis is before its own."""

    datatype: str
    is_batched: bool


@dataclass(frozen=True, slots=True)
class KServe:
    """KServe v2 over HTTP.

    Args:
        inputs: by model and name.
        is_binary: whether pictures may come as bytes behind the JSON, which spares both sides thousands of numbers.
    """

    inputs: Mapping[str, Mapping[str, Input]]
    is_binary: bool = False

    def message(self, kind: Kind, prompt: str) -> Message:
        """See `Dialect`. Every field is the input of its name in capital letters."""
        known = self.inputs[kind.model]
        told = {"PROMPT": prompt, **{name.upper(): value for name, value in kind.fields.items()}}
        asked: dict[str, Any] = {"inputs": [_tensor(name, value, known[name]) for name, value in told.items()]}
        if self.is_binary:
            asked["parameters"] = {"binary_data_output": True}
        return Message("POST", f"/v2/models/{kind.model}/infer", json.dumps(asked).encode(), _JSON)

    def has_picture(self, body: bytes) -> bool:
        """See `Dialect`."""
        return b'"outputs"' in body


async def dialect_of(name: Name, kinds: Sequence[Kind], ask: Ask) -> Dialect:
    """The dialect of that name, after what must be known of the server was asked.

    Args:
        name: of the protocol.
        kinds: what will be asked for.
        ask: sends a message and waits for the reply.

    Raises:
        InvalidRequest: a model that does not take what a kind asks for.
        StillhouseError: the server does not answer as this protocol wants it.
    """
    if name == "openai":
        return OpenAI()
    server = await _told(ask, "/v2")
    inputs = {model: await _inputs(ask, model) for model in {kind.model for kind in kinds}}
    for kind in kinds:
        for field in ("prompt", *kind.fields):
            check_choice(f"input of model {kind.model!r}", field.upper(), inputs[kind.model])
    return KServe(inputs, "binary_tensor_data" in server.get("extensions", ()))


async def _inputs(ask: Ask, model: str) -> Mapping[str, Input]:
    told = await _told(ask, f"/v2/models/{model}")
    try:
        return {one["name"]: Input(one["datatype"], len(one["shape"]) > 1) for one in told["inputs"]}
    except (KeyError, TypeError) as error:
        raise StillhouseError(f"model {model!r} does not tell its inputs", fix="does it speak KServe v2?") from error


async def _told(ask: Ask, path: str) -> dict[str, Any]:
    reply = await ask(Message("GET", path))
    if not reply.is_good:
        said = reply.body[:200].decode(errors="replace")
        raise InvalidRequest(f"the server answers {path} with {reply.status}: {said}", fix="try --protocol openai")
    try:
        told = json.loads(reply.body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise StillhouseError(f"the server answers {path} without JSON", fix="try --protocol openai")
    return told


def _tensor(name: str, value: Value, known: Input) -> dict[str, Any]:
    data = float(value) if known.datatype in _FLOATS else value
    shape = [1, 1] if known.is_batched else [1]
    return {"name": name, "datatype": known.datatype, "shape": shape, "data": [data]}
