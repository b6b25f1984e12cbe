"""How the server is: for orchestrators, for Prometheus, and for the studio."""

from typing import Any

from litestar import Response, get

from stillhouse.serve.api.http import ApiRequest, authenticate_request, get_service

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@get("/health/live", tags=["State"], summary="Whether the process answers")
async def get_liveness() -> dict[str, str]:
    """It does."""
    return {"status": "live"}


@get("/health/ready", tags=["State"], summary="Whether requests are taken")
async def get_readiness(request: ApiRequest) -> Response[dict[str, str]]:
    """200 where a worker is ready and the server is not being shut down; 503 otherwise."""
    front = get_service(request).dispatcher
    status = "ready" if front.is_ready else "draining" if front.is_draining else "starting"
    return Response({"status": status}, status_code=200 if front.is_ready else 503)


@get("/metrics", tags=["State"], summary="Counters, for Prometheus", media_type=METRICS_MEDIA_TYPE)
async def get_metrics(request: ApiRequest) -> Response[bytes]:
    """Prometheus' text format."""
    return Response(get_service(request).dispatcher.metrics.exposition(), media_type=METRICS_MEDIA_TYPE)


@get("/v1/state", tags=["State"], summary="The queue and the workers, now")
async def get_state(request: ApiRequest) -> dict[str, Any]:
    """What is drawn at this moment, how far it is, and how much is still to be done."""
    await authenticate_request(request)
    front = get_service(request).dispatcher
    pictures = [
        {
            "tier": ticket.job.tier.name,
            "drawn_as": ticket.effective_tier,
            "index": ticket.job.index,
            "evaluations": len(ticket.job.step_plan.rows),
            "size": f"{ticket.request.width}x{ticket.request.height}",
            "seconds": round(front.clock() - ticket.job.arrived, 3),
            "promise": round(ticket.job.latency_target, 3),
        }
        for ticket in front.handles
    ]
    workers = [
        {
            "ready": station.is_ready,
            "pending_seconds": round(station.pending_seconds, 3),
            "pictures": len(station.handles),
        }
        for station in front.workers
    ]
    return {
        "status": "draining" if front.is_draining else "ready" if front.is_ready else "starting",
        "policy": front.settings.policy,
        "running": front.running,
        "waiting": front.waiting,
        "pending_seconds": round(front.pending_seconds, 3),
        "workers": workers,
        "pictures": pictures,
    }
