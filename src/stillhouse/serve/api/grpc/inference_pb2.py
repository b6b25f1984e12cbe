"""The messages of inference.proto.

In a pool of their own: Triton's clients put messages of the same names into the pool that all programs share, and a
process may want both.
"""

from importlib.resources import files

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString(files(__package__).joinpath("inference.binpb").read_bytes()).file:
    _pool.AddSerializedFile(_file.SerializeToString())
DESCRIPTOR = _pool.FindFileByName("inference.proto")
globals().update({name: GetMessageClass(message) for name, message in DESCRIPTOR.message_types_by_name.items()})
