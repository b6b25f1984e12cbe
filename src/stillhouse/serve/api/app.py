"""The HTTP application: all routes, error handlers and the OpenAPI document."""

import logging
from collections.abc import Sequence
from typing import Any

from litestar import Litestar, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from stillhouse import __version__
from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.serve.api import health, jobs, openai, studio
from stillhouse.serve.api.http import CLIENT_CLOSED_REQUEST, ApiRequest, ClientDisconnected, error_response
from stillhouse.serve.service import Service
from stillhouse.units import parse_size

log = logging.getLogger(__name__)


def make_app(service: Service, extra_handlers: Sequence[Any] = ()) -> Litestar:
    """Return the HTTP application that serves a service. Its startup opens the service and its shutdown closes it.

    Args:
        service: service that is not yet open.
        extra_handlers: Litestar route handlers of further APIs.
    """

    async def open_service(app: Litestar) -> None:
        service.open()

    async def close_service(app: Litestar) -> None:
        await service.close()

    return Litestar(
        route_handlers=[
            openai.create_images,
            openai.edit_images,
            openai.list_models,
            openai.get_model,
            jobs.create_job,
            jobs.list_jobs,
            jobs.get_job,
            jobs.stream_job,
            jobs.get_job_image,
            jobs.get_image,
            jobs.cancel_job,
            health.get_liveness,
            health.get_readiness,
            health.get_metrics,
            health.get_state,
            *extra_handlers,
        ],
        state=State({"service": service}),
        on_startup=[open_service],
        on_shutdown=[close_service],
        exception_handlers={
            StillhouseError: error_response,
            HTTPException: error_response,
            ClientDisconnected: _client_disconnected,
            RecursionError: _too_deep,
            UnicodeDecodeError: _not_utf8,
            Exception: _unexpected,
        },
        openapi_config=OpenAPIConfig(
            "Stillhouse",
            __version__,
            path="/docs",
            use_handler_docstrings=True,
            render_plugins=[studio.DocsPage(), JsonRenderPlugin(path="/openapi.json")],
        ),
        request_max_body_size=parse_size(service.settings.max_body),
        multipart_form_part_limit=64,
        logging_config=None,
    )


def _client_disconnected(request: ApiRequest, error: ClientDisconnected) -> Response[None]:
    """Return an empty response with status 499. Litestar needs a response, although the client has disconnected."""
    return Response(None, status_code=CLIENT_CLOSED_REQUEST)


def _too_deep(request: ApiRequest, error: RecursionError) -> Response[Any]:
    """Return a response with status 400, because only a body that is nested too deeply causes a RecursionError."""
    return error_response(request, InvalidRequest("the body is nested too deeply", allowed="an object of plain values"))


def _not_utf8(request: ApiRequest, error: UnicodeDecodeError) -> Response[Any]:
    """Return a response with status 400, because only a body or a field of a form is decoded."""
    message = f"the body is no UTF-8: {error.reason} at byte {error.start}"
    return error_response(request, InvalidRequest(message, allowed="text in UTF-8"))


def _unexpected(request: ApiRequest, error: Exception) -> Response[Any]:
    log.error("internal server error", exc_info=error, extra={"path": request.url.path})
    return error_response(request, error)
