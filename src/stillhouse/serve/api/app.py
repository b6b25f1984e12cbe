"""The application: every door over HTTP, and what they have in common."""

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
from stillhouse.serve.api.http import GONE, Asked, Gone, explained
from stillhouse.serve.service import Service
from stillhouse.units import read_bytes

log = logging.getLogger(__name__)


def app_of(service: Service, more: Sequence[Any] = ()) -> Litestar:
    """The application of a service; it opens the service when it starts, and closes it when it stops.

    Args:
        service: not yet open.
        more: route handlers of other doors.
    """

    async def opened(app: Litestar) -> None:
        service.open()

    async def closed(app: Litestar) -> None:
        await service.close()

    return Litestar(
        route_handlers=[
            openai.generations,
            openai.edits,
            openai.models,
            openai.model,
            jobs.submit,
            jobs.listing,
            jobs.show,
            jobs.watch,
            jobs.picture,
            jobs.pictures,
            jobs.cancel,
            health.live,
            health.ready,
            health.metrics,
            health.state,
            *more,
        ],
        state=State({"service": service}),
        on_startup=[opened],
        on_shutdown=[closed],
        exception_handlers={
            StillhouseError: explained,
            HTTPException: explained,
            Gone: _gone,
            RecursionError: _too_deep,
            Exception: _unexpected,
        },
        openapi_config=OpenAPIConfig(
            "Stillhouse",
            __version__,
            path="/docs",
            use_handler_docstrings=True,
            render_plugins=[studio.DocsPage(), JsonRenderPlugin(path="/openapi.json")],
        ),
        request_max_body_size=read_bytes(service.settings.body),
        multipart_form_part_limit=64,
        logging_config=None,
    )


def _gone(request: Asked, error: Gone) -> Response[None]:
    """Nobody reads this answer."""
    return Response(None, status_code=GONE)


def _too_deep(request: Asked, error: RecursionError) -> Response[Any]:
    """Bodies that are nested deeper than anything that is asked for: nothing of ours recurses over a request."""
    return explained(request, InvalidRequest("a body that is nested too deeply", allowed="an object of plain values"))


def _unexpected(request: Asked, error: Exception) -> Response[Any]:
    log.error("an error of the server", exc_info=error, extra={"path": request.url.path})
    return explained(request, error)
