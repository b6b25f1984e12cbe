"""The messages of ONNX files: made of onnx.proto, a part of the package onnx's own, and beside it in one process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc_tools import protoc

from stillhouse.backends import onnx_pb2

HERE = Path(onnx_pb2.__file__).parent


def test_what_is_shipped_was_made_of_the_proto(tmp_path: Path) -> None:
    out = [f"--descriptor_set_out={tmp_path / 'onnx.binpb'}", f"--pyi_out={tmp_path}"]
    assert protoc.main(["protoc", f"-I{HERE}", *out, "onnx.proto"]) == 0
    for name in ("onnx.binpb", "onnx_pb2.pyi"):
        assert (tmp_path / name).read_bytes() == (HERE / name).read_bytes()


def facts(field: FieldDescriptor) -> tuple[Any, ...]:
    kind = field.message_type or field.enum_type
    return field.name, field.number, field.type, kind and kind.full_name, field.is_repeated


def check(ours: Descriptor, theirs: Descriptor) -> None:
    assert {facts(field) for field in ours.fields} <= {facts(field) for field in theirs.fields}
    for name, nested in ours.nested_types_by_name.items():
        check(nested, theirs.nested_types_by_name[name])
    for name, enum in ours.enum_types_by_name.items():
        numbers = {value.name: value.number for value in theirs.enum_types_by_name[name].values}
        assert {value.name: value.number for value in enum.values}.items() <= numbers.items()


def test_every_field_is_one_of_the_packages() -> None:
    for name, message in onnx_pb2.DESCRIPTOR.message_types_by_name.items():
        check(message, getattr(onnx, name).DESCRIPTOR)


def test_the_package_may_be_imported_before_and_after() -> None:
    for modules in ("onnx, stillhouse.backends.onnx_pb2", "stillhouse.backends.onnx_pb2, onnx"):
        program = f"import {modules}; print(onnx.ModelProto is stillhouse.backends.onnx_pb2.ModelProto)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"
