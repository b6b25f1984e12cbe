"""KServe's inference protocol, version 2, over gRPC."""
