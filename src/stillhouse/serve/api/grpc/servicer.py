"""Methods of KServe's gRPC inference service that take one request and return one response."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse import __version__
from stillhouse.serve.api.grpc import inference_pb2 as pb
from stillhouse.serve.api.grpc.call import Context, RpcMethod, authenticate_call, get_traceparent
from stillhouse.serve.api.grpc.conversion import (
    make_infer_response,
    unpack_inputs,
    unpack_output_names,
    unpack_parameters,
)
from stillhouse.serve.api.http import handle_disconnect, raise_for_failure
from stillhouse.serve.api.kserve.protocol import (
    EXTENSIONS,
    SERVER,
    VERSION,
    check_model,
    describe_model,
    make_generation_request,
    response_parameters,
)
from stillhouse.serve.api.kserve.tensors import image_tensors, select_outputs
from stillhouse.serve.client import Client
from stillhouse.serve.service import Service


@dataclass(frozen=True, slots=True)
class InferenceServicer:
    """Implementation of KServe's gRPC inference service, except its streaming method."""

    service: Service

    @property
    def methods(self) -> Mapping[str, RpcMethod]:
        """Return the implementations of the service's methods, by method name."""
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
        """Return a response with `live` set, which shows that the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Return whether a worker is ready and the server is not shutting down."""
        return pb.ServerReadyResponse(ready=self.service.dispatcher.is_ready)

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Return whether a model is ready; false, as in Triton, if the model does not exist. No API key is required."""
        is_known = request.name in self.service.settings.tiers and request.version in ("", VERSION)
        return pb.ModelReadyResponse(ready=is_known and self.service.dispatcher.is_ready)

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Return the server's name, version and protocol extensions."""
        return pb.ServerMetadataResponse(name=SERVER, version=__version__, extensions=EXTENSIONS)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """Return the names, datatypes and shapes of a model's input and output tensors."""
        await self._authenticate_for_model(request.name, request.version, context)
        return pb.ModelMetadataResponse(**describe_model(request.name, self.service.dispatcher.manifests[request.name]))

    async def index(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """Return the models that the client may use. If `request.ready` is set, return only those that are ready."""
        client = await authenticate_call(self.service, context)
        is_ready = self.service.dispatcher.is_ready
        if request.ready and not is_ready:
            return pb.RepositoryIndexResponse()
        state = "READY" if is_ready else "UNAVAILABLE"
        names = [name for name in self.service.settings.tiers if name in client.tiers]
        models = [pb.RepositoryIndexResponse.ModelIndex(name=name, version=VERSION, state=state) for name in names]
        return pb.RepositoryIndexResponse(models=models)

    async def infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Generate an image and return it as output tensors. If the client cancels the call, the setting
        `on_disconnect` decides whether the generation is cancelled, or finished and the image stored as a job.
        """
        client = await self._authenticate_for_model(request.model_name, request.model_version, context)
        output_names = unpack_output_names(request)
        parameters, traceparent = unpack_parameters(request), get_traceparent(context)
        handle = self.service.dispatcher.submit(
            make_generation_request(
                unpack_inputs(request), parameters, request.model_name, client, traceparent=traceparent
            )
        )
        try:
            output = await handle.result()
        except asyncio.CancelledError:
            handle_disconnect(self.service, [handle])
            raise
        raise_for_failure(output, handle)
        outputs = select_outputs(image_tensors(handle.request, output.content), output_names)
        return make_infer_response(request, outputs, response_parameters(handle, output))

    async def _authenticate_for_model(self, name: str, version: str, context: Context) -> Client:
        client = await authenticate_call(self.service, context)
        check_model(self.service.settings.tiers, name, version, client)
        return client
