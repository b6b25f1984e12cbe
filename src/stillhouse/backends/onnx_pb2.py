"""The messages of onnx.proto.

They lie in a descriptor pool of their own. The package onnx puts messages of the same names into protobuf's default
pool, and a process may import both.
"""

from importlib.resources import files

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString(files(__package__).joinpath("onnx.binpb").read_bytes()).file:
    _pool.AddSerializedFile(_file.SerializeToString())
DESCRIPTOR = _pool.FindFileByName("onnx.proto")
globals().update({name: GetMessageClass(message) for name, message in DESCRIPTOR.message_types_by_name.items()})
