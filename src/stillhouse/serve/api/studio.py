"""The studio: the page at `/`, the readable API at `/docs`, and what pipelines' reports say.

The page's files are read once, when this is loaded. Whatever a client asks for, no path is opened for it.
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
"""Kinds of files that are served; others in the directory are not."""
REPORT = "report.html"
EXAMPLES = 24
"""Prompts that are suggested for a model that draws shapes."""

_SELF = "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
PAGE_POLICY = f"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; {_SELF}"
"""Nothing from elsewhere, nothing inline."""
FRAME_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self' 'unsafe-inline'; "
    f"img-src 'self' data:; {_SELF}"
)
"""Of the page that shows a report: reports bring their own styles, and no scripts of theirs run."""
REPORT_POLICY = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; {_SELF}"
"""Of a report by itself."""
_COMMON_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent.

    Args:
        content: its bytes.
        media: its type.
        policy: what the page may load, as Content-Security-Policy.
    """

    content: bytes
    media_type: str
    policy: str = PAGE_POLICY

    @property
    def etag(self) -> str:
        """Another one for other bytes."""
        return f'"{sha256(self.content).hexdigest()[:32]}"'

    @property
    def headers(self) -> dict[str, str]:
        """What is sent with it. Browsers keep it, and ask each time whether it is still the same."""
        return {**_COMMON_HEADERS, "etag": self.etag, "content-security-policy": self.policy}


def read_assets(directory: Path) -> Mapping[str, Asset]:
    """Every file that is served, by its name."""
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
    """The studio."""
    return _asset_response(request, ASSETS["index.html"])


@get("/studio/{name:str}", include_in_schema=False)
async def get_asset(request: ApiRequest, name: FromPath[str]) -> Response[bytes]:
    """One of its files."""
    if name not in ASSETS:
        raise NotFound(f"there is no file {name!r} in the studio")
    return _asset_response(request, ASSETS[name])


@get("/v1/studio", tags=["Studio"], summary="What a page should know before it asks for pictures")
async def get_facts(request: ApiRequest) -> dict[str, Any]:
    """Whether keys are needed and this one is known, all samplers, and of each model what `/v1/models` does not tell.

    It is never refused: `is_known` is false where everything else would be.
    """
    service = get_service(request)
    told: dict[str, Any] = {
        "version": __version__,
        "needs_key": service.settings.keys,
        "samplers": {name: sampler.summary for name, sampler in SAMPLERS.items()},
    }
    try:
        caller = await authenticate_request(request)
    except NotAllowed as error:
        has_sent = "authorization" in request.headers
        return {**told, "is_known": False, "why": str(error) if has_sent else "", "models": {}}
    return {**told, "is_known": True, "models": await asyncio.to_thread(_model_facts, service, caller)}


@get("/v1/models/{name:str}/report", tags=["Studio"], summary="How a model was accelerated", media_type="text/html")
async def get_report(request: ApiRequest, name: FromPath[str]) -> Response[bytes]:
    """The report of its pipeline, a page of HTML; 404 where there is none."""
    path = _report_path(request, await authenticate_request(request), name)
    try:
        content = await asyncio.to_thread(path.read_bytes)
    except OSError:
        fix = "`stillhouse accelerate` makes a pipeline with one"
        raise NotFound(f"the pipeline of model {name!r} has no report", fix=fix) from None
    return _asset_response(request, Asset(content, ASSET_MEDIA_TYPES[".html"], REPORT_POLICY))


HANDLERS = (get_page, get_asset, get_facts, get_report)
"""For `app_of(service, HANDLERS)`."""


class DocsPage(OpenAPIRenderPlugin):
    """`/docs`: the operations of `/docs/openapi.json` for people; for `OpenAPIConfig(render_plugins=...)`."""

    def __init__(self) -> None:
        super().__init__(path="/", media_type=ASSET_MEDIA_TYPES[".html"])  # type: ignore[arg-type]

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The page, which fetches the schema by itself."""
        return ASSETS["docs.html"].content

    def receive_router(self, router: Router) -> None:
        """Send with the page what is sent with all of them."""
        router.response_headers = {**_COMMON_HEADERS, "content-security-policy": PAGE_POLICY}  # type: ignore[assignment]


def _asset_response(request: ApiRequest, asset: Asset) -> Response[bytes]:
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if asset.etag in known:
        return Response(b"", status_code=304, headers=asset.headers)
    return Response(asset.content, media_type=asset.media_type, headers=asset.headers)


def _report_path(request: ApiRequest, client: Client, name: str) -> Path:
    tiers = get_service(request).settings.tiers
    own = [tier for tier in tiers if tier in client.tiers]
    if name not in own:
        raise NotFound(f"there is no model {name!r}", allowed=", ".join(own))
    return find_pipeline(tiers[name].pipeline) / REPORT


def _model_facts(service: Service, client: Client) -> dict[str, Any]:
    """Of each model that the caller may ask for: whether its pipeline has a report, prompts to begin with, and what it
    was taught, where it was distilled."""
    return {
        name: {
            "report": (find_pipeline(tier.pipeline) / REPORT).is_file(),
            "examples": _examples(service.dispatcher.manifests[name]),
            "taught": _distilled_limits(service.dispatcher.manifests[name]),
        }
        for name, tier in service.settings.tiers.items()
        if name in client.tiers
    }


def _examples(manifest: Manifest) -> tuple[str, ...]:
    """Prompts of a kind that the model was trained with; none where that is not known."""
    return tuple(_shapes_captions()) if manifest.name.partition("-")[0] == "shapes" else ()


def _distilled_limits(manifest: Manifest) -> Mapping[str, Any] | None:
    """Of a model that was distilled: which fields it has no choice of, and the least and the most guidance."""
    learnt = manifest.distilled
    if learnt is None:
        return None
    fixed = ("steps", "sampler") if learnt.timesteps else ()
    return {"fixed": (*fixed, "negative_prompt"), "guidance": learnt.guidance}


@cache
def _shapes_captions() -> list[str]:
    return random_captions(EXAMPLES, seed=1)
