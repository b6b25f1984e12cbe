"""The gRPC services as Markdown, out of their descriptors. Meanings are the comments of the .proto file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_tools import protoc

from stillhouse.serve.api import grpc
from tools.docs.markdown import code, format_table

PROTO = Path(grpc.__file__).with_name("inference.proto")
_MESSAGE, _SERVICE, _FIELD, _NESTED, _METHOD = 4, 6, 2, 3, 2
"""Field numbers of descriptor.proto by which comments are located."""
_Location = tuple[int, ...]


def render_grpc_api() -> str:
    """Return the section of the gRPC API: methods of each service, then the messages of the inference service."""
    inference = compile_proto(PROTO)
    standard = [_copy(module.DESCRIPTOR) for module in (health_pb2, reflection_pb2)]
    parts = ["## gRPC\n", *(_services(file) for file in (inference, *standard)), f"### Messages of {PROTO.name}\n"]
    comments = read_comments(inference)
    for number, message in enumerate(inference.message_type):
        parts += _messages(message, (_MESSAGE, number), message.name, comments)
    return "\n".join(parts)


def compile_proto(path: Path) -> FileDescriptorProto:
    """Compile a .proto file, with its comments.

    Raises:
        ValueError: protoc refuses the file.
    """
    with TemporaryDirectory() as directory:
        out = Path(directory) / "descriptors"
        options = [f"-I{path.parent}", "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *options, path.name]):
            raise ValueError(f"protoc cannot compile {path}; its message is above")
        return FileDescriptorSet.FromString(out.read_bytes()).file[0]


def read_comments(file: FileDescriptorProto) -> Mapping[_Location, str]:
    """Return the comments above or behind the elements of a file, by their location in its descriptor."""
    return {
        tuple(location.path): " ".join((location.leading_comments or location.trailing_comments).split())
        for location in file.source_code_info.location
    }


def _services(file: FileDescriptorProto) -> str:
    comments = read_comments(file)
    sections = []
    for number, service in enumerate(file.service):
        rows = [
            [code(method.name), *_signature(method, file.package), comments.get((_SERVICE, number, _METHOD, index), "")]
            for index, method in enumerate(service.method)
        ]
        table = format_table(["method", "request", "response", "meaning"], rows)
        sections.append(f"### {file.package}.{service.name}\n\n{table}")
    return "\n".join(sections)


def _signature(method: MethodDescriptorProto, package: str) -> tuple[str, str]:
    request, response = (_short(name, package) for name in (method.input_type, method.output_type))
    return (
        f"stream of {code(request)}" if method.client_streaming else code(request),
        f"stream of {code(response)}" if method.server_streaming else code(response),
    )


def _messages(
    message: DescriptorProto, location: _Location, name: str, comments: Mapping[_Location, str]
) -> Iterator[str]:
    """Yield the section of a message that has fields, and of each message inside it."""
    nested = {entry.name: entry for entry in message.nested_type if entry.options.map_entry}
    if message.field:
        rows = [
            [code(field.name), _field_type(field, message, nested), comments.get((*location, _FIELD, number), "")]
            for number, field in enumerate(message.field)
        ]
        comment = comments.get(location, "")
        table = format_table(["field", "type", "meaning"], rows)
        yield f"#### {name}\n" + (f"{comment}\n" if comment else "") + f"\n{table}"
    for number, inner in enumerate(message.nested_type):
        if inner.name not in nested:
            yield from _messages(inner, (*location, _NESTED, number), f"{name}.{inner.name}", comments)


def _field_type(field: FieldDescriptorProto, message: DescriptorProto, maps: Mapping[str, DescriptorProto]) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry:
        return f"map of {_type_name(entry.field[0])} to {_type_name(entry.field[1])}"
    prefix = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    choice = f", one of {code(message.oneof_decl[field.oneof_index].name)}" if field.HasField("oneof_index") else ""
    return f"{prefix}{_type_name(field)}{choice}"


def _type_name(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return code(_short(field.type_name, field.type_name.split(".")[1]))
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _short(name: str, package: str) -> str:
    return name.removeprefix(f".{package}.")


def _copy(descriptor: FileDescriptor) -> FileDescriptorProto:
    file = FileDescriptorProto()
    descriptor.CopyToProto(file)
    return file
