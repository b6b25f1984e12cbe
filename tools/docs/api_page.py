"""docs/api.md: the HTTP API out of its OpenAPI document, and the gRPC services out of their descriptors."""

from tools.docs.grpc_api import render_grpc_api
from tools.docs.http_api import render_http_api
from tools.docs.markdown import NOTICE


def render_api_page() -> str:
    """Return the page."""
    return f"{NOTICE}\n# API of the server\n\n{render_http_api()}\n{render_grpc_api()}"
