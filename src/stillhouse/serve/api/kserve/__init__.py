"""KServe's inference protocol, version 2, over HTTP; what its gRPC form shares with it."""
