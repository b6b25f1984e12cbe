"""Health, metrics and state of the server."""

from typing import Any

from litestar import Response, get

from stillhouse.serve.api.http import ApiRequest, authenticate_request, get_service

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@get("/health/live", tags=["Health"], summary="Liveness")
async def get_liveness() -> dict[str, str]:
    """Return 200 while the process answers."""
    return {"status": "live"}


@get("/health/ready", tags=["Health"], summary="Readiness")
async def get_readiness(request: ApiRequest) -> Response[dict[str, str]]:
    """Return 200 if a worker is ready and the server is not shutting down, else 503."""
    dispatcher = get_service(request).dispatcher
    status = "ready" if dispatcher.is_ready else "draining" if dispatcher.is_draining else "starting"
    return Response({"status": status}, status_code=200 if dispatcher.is_ready else 503)


@get("/metrics", tags=["Health"], summary="Prometheus metrics", media_type=METRICS_MEDIA_TYPE)
async def get_metrics(request: ApiRequest) -> Response[bytes]:
    """Return all metrics in Prometheus' text format."""
    return Response(get_service(request).dispatcher.metrics.exposition(), media_type=METRICS_MEDIA_TYPE)


@get("/v1/state", tags=["Health"], summary="Server state")
async def get_state(request: ApiRequest) -> dict[str, Any]:
    """Return the unfinished requests with their progress, and the predicted seconds of work of each worker."""
    await authenticate_request(request)
    dispatcher = get_service(request).dispatcher
    requests = [
        {
            "tier": handle.job.tier.name,
            "effective_tier": handle.effective_tier,
            "index": handle.job.index,
            "evaluations": len(handle.job.step_plan.rows),
            "size": f"{handle.request.width}x{handle.request.height}",
            "seconds": round(dispatcher.clock() - handle.job.arrived, 3),
            "latency_target": round(handle.job.latency_target, 3),
        }
        for handle in dispatcher.handles
    ]
    workers = [
        {
            "ready": worker.is_ready,
            "pending_seconds": round(worker.pending_seconds, 3),
            "requests": len(worker.handles),
        }
        for worker in dispatcher.workers
    ]
    return {
        "status": "draining" if dispatcher.is_draining else "ready" if dispatcher.is_ready else "starting",
        "policy": dispatcher.settings.policy,
        "running": dispatcher.running,
        "waiting": dispatcher.waiting,
        "pending_seconds": round(dispatcher.pending_seconds, 3),
        "workers": workers,
        "requests": requests,
    }
