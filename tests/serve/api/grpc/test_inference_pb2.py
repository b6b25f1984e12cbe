"""Messages: generated from inference.proto, and equal to those of Triton's client on the wire."""

from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc_tools import protoc
from tritonclient.grpc import service_pb2 as triton

from stillhouse.serve.api.grpc import inference_pb2

HERE = Path(inference_pb2.__file__).parent


def test_shipped_descriptor_matches_the_proto(tmp_path: Path) -> None:
    out = [f"--descriptor_set_out={tmp_path / 'inference.binpb'}", f"--pyi_out={tmp_path}"]
    assert protoc.main(["protoc", f"-I{HERE}", *out, "inference.proto"]) == 0
    for name in ("inference.binpb", "inference_pb2.pyi"):
        assert (tmp_path / name).read_bytes() == (HERE / name).read_bytes()


def facts(field: FieldDescriptor) -> tuple[Any, ...]:
    kind = field.message_type.full_name if field.message_type else None
    return field.name, field.number, field.type, kind, field.is_repeated


def check(ours: Descriptor, theirs: Descriptor) -> None:
    assert {facts(field) for field in ours.fields} == {facts(field) for field in theirs.fields}
    for name, nested in ours.nested_types_by_name.items():
        check(nested, theirs.nested_types_by_name[name])


def test_messages_and_methods_equal_tritons() -> None:
    for name, message in inference_pb2.DESCRIPTOR.message_types_by_name.items():
        check(message, triton.DESCRIPTOR.message_types_by_name[name])
    ours = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    theirs = triton.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert ours.full_name == theirs.full_name
    for method in ours.methods:
        other = theirs.methods_by_name[method.name]
        assert (method.client_streaming, method.server_streaming) == (other.client_streaming, other.server_streaming)
        assert method.input_type.full_name == other.input_type.full_name
        assert method.output_type.full_name == other.output_type.full_name
