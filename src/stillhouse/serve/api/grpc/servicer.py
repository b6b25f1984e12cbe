"""The methods of the inference service that have one answer."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse import __version__
from stillhouse.serve.api.grpc import inference_pb2 as pb
from stillhouse.serve.api.grpc.call import Context, Method, caller_of, trace_of
from stillhouse.serve.api.grpc.conversion import answer_of, inputs_of, outputs_of, parameters_of
from stillhouse.serve.api.http import leave, raise_for
from stillhouse.serve.api.kserve.protocol import EXTENSIONS, SERVER, VERSION, check_model, described, facts_of, order_of
from stillhouse.serve.api.kserve.tensors import chosen, picture_of
from stillhouse.serve.client import Caller
from stillhouse.serve.service import Service


@dataclass(frozen=True, slots=True)
class Inference:
    """Answers for a service."""

    service: Service

    @property
    def methods(self) -> Mapping[str, Method]:
        """By name."""
        return {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "RepositoryIndex": self.index,
            "ModelInfer": self.infer,
        }

    async def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """The process answers."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether a worker is ready and the server is not being shut down."""
        return pb.ServerReadyResponse(ready=self.service.front.is_ready)

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """As the server is; not, where there is no such model, as Triton answers. No key is needed."""
        is_known = request.name in self.service.settings.tiers and request.version in ("", VERSION)
        return pb.ModelReadyResponse(ready=is_known and self.service.front.is_ready)

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Name and version."""
        return pb.ServerMetadataResponse(name=SERVER, version=__version__, extensions=EXTENSIONS)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """Inputs and outputs."""
        await self._caller(request.name, request.version, context)
        return pb.ModelMetadataResponse(**described(request.name, self.service.front.manifests[request.name]))

    async def index(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """All models of the caller's key, or those that are ready."""
        caller = await caller_of(self.service, context)
        is_ready = self.service.front.is_ready
        if request.ready and not is_ready:
            return pb.RepositoryIndexResponse()
        state = "READY" if is_ready else "UNAVAILABLE"
        names = [name for name in self.service.settings.tiers if name in caller.tiers]
        models = [pb.RepositoryIndexResponse.ModelIndex(name=name, version=VERSION, state=state) for name in names]
        return pb.RepositoryIndexResponse(models=models)

    async def infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """A picture; a call that is cancelled cancels it, unless the settings say otherwise."""
        caller = await self._caller(request.model_name, request.model_version, context)
        wanted = outputs_of(request)
        told, trace = parameters_of(request), trace_of(context)
        ticket = self.service.front.place(order_of(inputs_of(request), told, request.model_name, caller, trace=trace))
        try:
            closed = await ticket.end()
        except asyncio.CancelledError:
            leave(self.service, [ticket])
            raise
        raise_for(closed, ticket)
        outputs = chosen(picture_of(ticket.request, closed.content), wanted)
        return answer_of(request, outputs, facts_of(ticket, closed))

    async def _caller(self, name: str, version: str, context: Context) -> Caller:
        caller = await caller_of(self.service, context)
        check_model(self.service.settings.tiers, name, version, caller)
        return caller
