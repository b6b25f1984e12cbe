"""Conversion between gRPC messages of KServe's protocol (inference.proto) and tensors and parameters in Python."""

from collections.abc import Iterator, Mapping, Sequence

from stillhouse.errors import InvalidRequest
from stillhouse.serve.api.grpc.inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from stillhouse.serve.api.kserve.protocol import VERSION, check_outputs
from stillhouse.serve.api.kserve.tensors import MAX_ECHO, InputTensor, OutputTensor

_FIELDS = {"BYTES": "bytes_contents", "FP32": "fp32_contents", "INT32": "int_contents", "INT64": "int64_contents"}
_MAX_ELEMENTS = 2
"""Number of elements read from an input tensor. A valid input has one element; two suffice to detect an invalid one."""


def unpack_inputs(request: ModelInferRequest) -> Iterator[InputTensor]:
    """Yield the input tensors of a request. Their elements are read from `raw_input_contents`, or else from `contents`.

    Raises:
        InvalidRequest: the number of raw contents is wrong, or an input has parameters or both kinds of contents.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"the request has {len(raw)} raw_input_contents for {len(request.inputs)} inputs",
            allowed="one for each input, or none at all",
        )
    for number, tensor in enumerate(request.inputs):
        name, shape = tensor.name[:MAX_ECHO], tensor.shape[:8]
        for parameter in tensor.parameters:
            problem = f"parameter {parameter[:MAX_ECHO]!r} of input {name} is not supported"
            raise InvalidRequest(problem, allowed="inputs without parameters")
        if raw:
            if tensor.HasField("contents"):
                allowed = "either contents or raw_input_contents"
                raise InvalidRequest(f"input {name} has contents and raw_input_contents", allowed=allowed)
            yield InputTensor(name, tensor.datatype, shape, raw[number])
        else:
            field = _FIELDS.get(tensor.datatype)
            yield InputTensor(
                name, tensor.datatype, shape, getattr(tensor.contents, field)[:_MAX_ELEMENTS] if field else ()
            )


def unpack_output_names(request: ModelInferRequest) -> Sequence[str]:
    """Return the names of the requested output tensors; an empty sequence stands for all outputs.

    Raises:
        InvalidRequest: an output is unknown or has parameters.
    """
    names = [output.name for output in request.outputs]
    check_outputs(names)
    for output in request.outputs:
        for parameter in output.parameters:
            problem = f"parameter {parameter[:MAX_ECHO]!r} of output {output.name} is not supported"
            raise InvalidRequest(problem, allowed="outputs without parameters")
    return names


def unpack_parameters(request: ModelInferRequest) -> Mapping[str, object]:
    """Return the parameters of a request as Python values, by name."""
    return {
        name: getattr(parameter, parameter.WhichOneof("parameter_choice") or "bool_param")
        for name, parameter in request.parameters.items()
    }


def make_infer_response(
    request: ModelInferRequest, outputs: Sequence[OutputTensor], parameters: Mapping[str, str | float | bool]
) -> ModelInferResponse:
    """Return the response message to a request, with the output tensors as raw bytes.

    Args:
        request: message of the request, whose model name and id the response repeats.
        outputs, parameters: output tensors, and parameters of the response by name.
    """
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
