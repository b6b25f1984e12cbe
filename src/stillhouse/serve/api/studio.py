"""The studio, the server's web interface: the page at `/`, the API documentation at `/docs` and acceleration reports.

The files of the pages are read once, at import. A name in a request is looked up among these files, so that no other
file can be reached.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from litestar import Request, Response, Router, get
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.params import FromPath

from stillhouse import __version__
from stillhouse.diffusion import SAMPLERS
from stillhouse.errors import NotAllowed
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Manifest
from stillhouse.serve.api.http import ApiRequest, NotFound, authenticate_request, get_service
from stillhouse.serve.client import Client
from stillhouse.serve.service import Service
from stillhouse.shapes.caption import random_captions

FILES = Path(__file__).parents[1] / "studio"
ASSET_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Media types of the studio's files by file name suffix; files with other suffixes are not served."""
REPORT = "report.html"
EXAMPLES = 24
"""Number of example prompts that the page offers for each embedded model (one that this package contains)."""

_SELF = "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
PAGE_POLICY = f"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; {_SELF}"
"""Content-Security-Policy of pages: files of this server are allowed, inline scripts and styles are not."""
FRAME_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self' 'unsafe-inline'; "
    f"img-src 'self' data:; {_SELF}"
)
"""Content-Security-Policy of the page that shows a report: inline styles are allowed, the report's scripts are not."""
REPORT_POLICY = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; {_SELF}"
"""Content-Security-Policy of an acceleration report: no scripts, no requests, only inline styles and images."""
_COMMON_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file as served over HTTP.

    Args:
        content: bytes of the file.
        media_type: value of the header Content-Type.
        policy: value of the header Content-Security-Policy.
    """

    content: bytes
    media_type: str
    policy: str = PAGE_POLICY

    @property
    def etag(self) -> str:
        """Return the ETag, a hash of the content."""
        return f'"{sha256(self.content).hexdigest()[:32]}"'

    @property
    def headers(self) -> dict[str, str]:
        """Return the response headers. Browsers cache the file and revalidate it each time."""
        return {**_COMMON_HEADERS, "etag": self.etag, "content-security-policy": self.policy}


def read_assets(directory: Path) -> Mapping[str, Asset]:
    """Read the files of a directory whose suffix is in `ASSET_MEDIA_TYPES`, and return them by file name."""
    return {
        path.name: Asset(
            path.read_bytes(), ASSET_MEDIA_TYPES[path.suffix], FRAME_POLICY if path.name == REPORT else PAGE_POLICY
        )
        for path in sorted(directory.iterdir())
        if path.suffix in ASSET_MEDIA_TYPES
    }


ASSETS = read_assets(FILES)


@get("/", include_in_schema=False)
async def get_page(request: ApiRequest) -> Response[bytes]:
    """Return the HTML page of the studio."""
    return _asset_response(request, ASSETS["index.html"])


@get("/studio/{name:str}", include_in_schema=False)
async def get_asset(request: ApiRequest, name: FromPath[str]) -> Response[bytes]:
    """Return a file of the studio, such as a script or a style sheet, by its name."""
    if name not in ASSETS:
        raise NotFound(f"there is no file {name!r} in the studio")
    return _asset_response(request, ASSETS[name])


@get("/v1/studio", tags=["Studio"], summary="Studio settings")
async def get_facts(request: ApiRequest) -> dict[str, Any]:
    """Return whether API keys are required, whether the key of this request is accepted, all samplers, and facts about
    each model.

    A wrong key is no error here: `is_authenticated` is false where other routes would return 401.
    """
    service = get_service(request)
    facts: dict[str, Any] = {
        "version": __version__,
        "requires_key": service.settings.keys,
        "samplers": {name: sampler.summary for name, sampler in SAMPLERS.items()},
    }
    try:
        client = await authenticate_request(request)
    except NotAllowed as error:
        has_key = "authorization" in request.headers
        return {**facts, "is_authenticated": False, "reason": str(error) if has_key else "", "models": {}}
    return {**facts, "is_authenticated": True, "models": await asyncio.to_thread(_model_facts, service, client)}


@get("/v1/models/{name:str}/report", tags=["Studio"], summary="Acceleration report", media_type="text/html")
async def get_report(request: ApiRequest, name: FromPath[str]) -> Response[bytes]:
    """Return the HTML acceleration report of a model's pipeline, or 404 if it has none."""
    path = _report_path(request, await authenticate_request(request), name)
    try:
        content = await asyncio.to_thread(path.read_bytes)
    except OSError:
        fix = "make a pipeline with a report by `stillhouse accelerate`"
        raise NotFound(f"the pipeline of model {name!r} has no report", fix=fix) from None
    return _asset_response(request, Asset(content, ASSET_MEDIA_TYPES[".html"], REPORT_POLICY))


HANDLERS = (get_page, get_asset, get_facts, get_report)
"""Route handlers of the studio, to be passed to `make_app`."""


class DocsPage(OpenAPIRenderPlugin):
    """Litestar plugin for the page `/docs`, which shows the API that `/docs/openapi.json` describes."""

    def __init__(self) -> None:
        super().__init__(path="/", media_type=ASSET_MEDIA_TYPES[".html"])  # type: ignore[arg-type]

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the HTML of the page. The arguments are not used, because the page fetches the schema itself."""
        return ASSETS["docs.html"].content

    def receive_router(self, router: Router) -> None:
        """Set the response headers of the page's route to those of the studio's other pages, in place."""
        router.response_headers = {**_COMMON_HEADERS, "content-security-policy": PAGE_POLICY}  # type: ignore[assignment]


def _asset_response(request: ApiRequest, asset: Asset) -> Response[bytes]:
    client_etags = {etag.strip().removeprefix("W/") for etag in request.headers.get("if-none-match", "").split(",")}
    if asset.etag in client_etags:
        return Response(b"", status_code=304, headers=asset.headers)
    return Response(asset.content, media_type=asset.media_type, headers=asset.headers)


def _report_path(request: ApiRequest, client: Client, name: str) -> Path:
    tiers = get_service(request).settings.tiers
    allowed = [tier for tier in tiers if tier in client.tiers]
    if name not in allowed:
        raise NotFound(f"there is no model {name!r}", allowed=", ".join(allowed))
    return find_pipeline(tiers[name].pipeline) / REPORT


def _model_facts(service: Service, client: Client) -> dict[str, Any]:
    """Return facts about the models that a client may use, by model name.

    `report` says whether the model's pipeline has an acceleration report, `examples` are prompts, and `distilled` holds
    the limits of a distilled model (None for other models).
    """
    return {
        name: {
            "report": (find_pipeline(tier.pipeline) / REPORT).is_file(),
            "examples": _examples(service.dispatcher.manifests[name]),
            "distilled": _distilled_limits(service.dispatcher.manifests[name]),
        }
        for name, tier in service.settings.tiers.items()
        if name in client.tiers
    }


def _examples(manifest: Manifest) -> tuple[str, ...]:
    """Return prompts like those of the model's training data; empty for a model that this package does not contain."""
    return tuple(_shapes_captions()) if manifest.name.partition("-")[0] == "shapes" else ()


def _distilled_limits(manifest: Manifest) -> Mapping[str, Any] | None:
    """Return the limits of a distilled model; None for a model that is not distilled.

    `fixed` names the request fields that clients cannot choose. `guidance` is the smallest and largest guidance scale.
    """
    distilled = manifest.distilled
    if distilled is None:
        return None
    fixed = ("steps", "sampler") if distilled.timesteps else ()
    return {"fixed": (*fixed, "negative_prompt"), "guidance": distilled.guidance}


@cache
def _shapes_captions() -> list[str]:
    return random_captions(EXAMPLES, seed=1)
