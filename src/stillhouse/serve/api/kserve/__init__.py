"""KServe's inference protocol, version 2: the HTTP routes and the parts shared with gRPC."""
