"""Conversion between tensors and parameters and the messages of inference.proto."""

from collections.abc import Iterator, Mapping, Sequence

from stillhouse.errors import InvalidRequest
from stillhouse.serve.api.grpc.inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from stillhouse.serve.api.kserve.protocol import VERSION, check_outputs
from stillhouse.serve.api.kserve.tensors import MAX_ECHO, InputTensor, OutputTensor

_FIELDS = {"BYTES": "bytes_contents", "FP32": "fp32_contents", "INT32": "int_contents", "INT64": "int64_contents"}
_MAX_ELEMENTS = 2
"""Number of elements read per input. Inputs have one element; a second element shows that the input is invalid."""


def unpack_inputs(request: ModelInferRequest) -> Iterator[InputTensor]:
    """Yield the input tensors of a request, with their content from `raw_input_contents` if the request has any.

    Raises:
        InvalidRequest: the number of raw contents is wrong, or an input has parameters.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs", allowed="one for each, or none at all"
        )
    for number, tensor in enumerate(request.inputs):
        name, shape = tensor.name[:MAX_ECHO], tensor.shape[:8]
        for parameter in tensor.parameters:
            raise InvalidRequest(f"parameter {parameter[:MAX_ECHO]!r} of input {name}", allowed="none")
        if raw:
            if tensor.HasField("contents"):
                raise InvalidRequest(f"input {name} has contents and raw_input_contents", allowed="one of them")
            yield InputTensor(name, tensor.datatype, shape, raw[number])
        else:
            field = _FIELDS.get(tensor.datatype)
            yield InputTensor(
                name, tensor.datatype, shape, getattr(tensor.contents, field)[:_MAX_ELEMENTS] if field else ()
            )


def unpack_output_names(request: ModelInferRequest) -> Sequence[str]:
    """Return the names of requested outputs; empty if all outputs are requested.

    Raises:
        InvalidRequest: an output is unknown or has parameters.
    """
    names = [output.name for output in request.outputs]
    check_outputs(names)
    for output in request.outputs:
        for parameter in output.parameters:
            raise InvalidRequest(f"parameter {parameter[:MAX_ECHO]!r} of output {output.name}", allowed="none")
    return names


def unpack_parameters(request: ModelInferRequest) -> Mapping[str, object]:
    """Return the request parameters as Python values."""
    return {
        name: getattr(parameter, parameter.WhichOneof("parameter_choice") or "bool_param")
        for name, parameter in request.parameters.items()
    }


def make_infer_response(
    request: ModelInferRequest, outputs: Sequence[OutputTensor], parameters: Mapping[str, str | float | bool]
) -> ModelInferResponse:
    """Return a response message with these outputs and parameters."""
    return ModelInferResponse(
        model_name=request.model_name,
        model_version=VERSION,
        id=request.id,
        parameters={name: _parameter(value) for name, value in parameters.items()},
        outputs=[
            ModelInferResponse.InferOutputTensor(name=output.name, datatype=output.datatype, shape=output.shape)
            for output in outputs
        ],
        raw_output_contents=[output.content for output in outputs],
    )


def _parameter(value: str | float | bool) -> InferParameter:
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    return InferParameter(string_param=value) if isinstance(value, str) else InferParameter(double_param=value)
