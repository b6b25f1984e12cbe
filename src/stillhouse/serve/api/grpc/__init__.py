"""KServe's protocol, version 2, over gRPC, as Triton Inference Server's clients speak it."""
