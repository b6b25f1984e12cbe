"""gRPC's own health service (grpc.health.v1), which orchestrators ask: it tells what `/health/ready` tells."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpc_health.v1 import health_pb2 as pb

from stillhouse.serve.api.grpc.call import Context, RpcMethod
from stillhouse.serve.api.grpc.inference_pb2 import DESCRIPTOR
from stillhouse.serve.api.http import NotFound
from stillhouse.serve.service import Service

HEALTH = pb.DESCRIPTOR.services_by_name["Health"]
INFERENCE = DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVICE_NAMES = ("", INFERENCE.full_name)
"""The whole server, and the only service that can be more or less healthy."""
WATCH_SECONDS = 0.25
"""Seconds between two looks at what a client watches."""


@dataclass(frozen=True, slots=True)
class HealthServicer:
    """Answers for a service."""

    service: Service

    @property
    def methods(self) -> Mapping[str, RpcMethod]:
        """By name."""
        return {"Check": self.check, "Watch": self.watch}

    async def check(self, request: Any, context: Context) -> Any:
        """How it is.

        Raises:
            Missing: no such service.
        """
        if request.service not in SERVICE_NAMES:
            raise NotFound(
                f"there is no service {request.service[:64]!r}", allowed=f"nothing, or {INFERENCE.full_name}"
            )
        return self._status(request)

    async def watch(self, request: Any, context: Context) -> None:
        """How it is, and how it is whenever that changes."""
        last = None
        while True:
            now = self._status(request)
            if now != last:
                await context.write(now)
            last = now
            await asyncio.sleep(WATCH_SECONDS)

    def _status(self, request: Any) -> Any:
        states = pb.HealthCheckResponse
        if request.service not in SERVICE_NAMES:
            return pb.HealthCheckResponse(status=states.SERVICE_UNKNOWN)
        return pb.HealthCheckResponse(status=states.SERVING if self.service.dispatcher.is_ready else states.NOT_SERVING)
