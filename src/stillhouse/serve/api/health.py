"""How the server is: for orchestrators, for Prometheus, and for the studio."""

from typing import Any

from litestar import Response, get

from stillhouse.serve.api.http import Asked, caller_of, service_of

METRICS = "text/plain; version=0.0.4; charset=utf-8"


@get("/health/live", tags=["State"], summary="Whether the process answers")
async def live() -> dict[str, str]:
    """It does."""
    return {"status": "live"}


@get("/health/ready", tags=["State"], summary="Whether requests are taken")
async def ready(request: Asked) -> Response[dict[str, str]]:
    """200 where a worker is ready and the server is not being shut down; 503 otherwise."""
    front = service_of(request).front
    status = "ready" if front.is_ready else "draining" if front.is_draining else "starting"
    return Response({"status": status}, status_code=200 if front.is_ready else 503)


@get("/metrics", tags=["State"], summary="Counters, for Prometheus", media_type=METRICS)
async def metrics(request: Asked) -> Response[bytes]:
    """Prometheus' text format."""
    return Response(service_of(request).front.metrics.exposition(), media_type=METRICS)


@get("/v1/state", tags=["State"], summary="The queue and the workers, now")
async def state(request: Asked) -> dict[str, Any]:
    """What is drawn at this moment, how far it is, and how much is still to be done."""
    await caller_of(request)
    front = service_of(request).front
    pictures = [
        {
            "tier": ticket.job.tier.name,
            "drawn_as": ticket.drawn_as,
            "index": ticket.job.index,
            "evaluations": len(ticket.job.walk.rows),
            "size": f"{ticket.request.width}x{ticket.request.height}",
            "seconds": round(front.clock() - ticket.job.arrived, 3),
            "promise": round(ticket.job.promise, 3),
        }
        for ticket in front.tickets
    ]
    workers = [
        {"ready": station.is_ready, "pending_seconds": round(station.pending, 3), "pictures": len(station.tickets)}
        for station in front.stations
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
