"""HTTP and gRPC APIs of the server."""
