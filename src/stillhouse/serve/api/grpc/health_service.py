"""Standard gRPC health service (grpc.health.v1), equivalent to `/health/ready`."""

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
"""Names of services whose health clients may ask for: empty for the whole server, and the inference service."""
WATCH_SECONDS = 0.25
"""Interval in seconds at which a Watch call checks whether the health status has changed."""


@dataclass(frozen=True, slots=True)
class HealthServicer:
    """Implementation of gRPC's standard health service."""

    service: Service

    @property
    def methods(self) -> Mapping[str, RpcMethod]:
        """Return the implementations of the service's methods, by method name."""
        return {"Check": self.check, "Watch": self.watch}

    async def check(self, request: Any, context: Context) -> Any:
        """Return the health status of the service that the request names: SERVING or NOT_SERVING.

        Raises:
            NotFound: there is no service of this name.
        """
        if request.service not in SERVICE_NAMES:
            raise NotFound(
                f"there is no service {request.service[:64]!r}", allowed=f"an empty name, or {INFERENCE.full_name}"
            )
        return self._status(request)

    async def watch(self, request: Any, context: Context) -> None:
        """Write the health status of the service that the request names to the context, now and at every change.

        Runs until the call is cancelled. The status of an unknown service is SERVICE_UNKNOWN.
        """
        last = None
        while True:
            status = self._status(request)
            if status != last:
                await context.write(status)
            last = status
            await asyncio.sleep(WATCH_SECONDS)

    def _status(self, request: Any) -> Any:
        states = pb.HealthCheckResponse
        if request.service not in SERVICE_NAMES:
            return pb.HealthCheckResponse(status=states.SERVICE_UNKNOWN)
        return pb.HealthCheckResponse(status=states.SERVING if self.service.dispatcher.is_ready else states.NOT_SERVING)
