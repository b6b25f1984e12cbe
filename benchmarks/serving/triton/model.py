"""A model of Triton's Python backend: a batch of requests is drawn together, to its end, and then answered.

That is dynamic batching at the level of requests: whoever has few steps waits for whoever has many.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

import stillhouse
from stillhouse.errors import StillhouseError
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline


class TritonPythonModel:
    """The embedded model; named as the backend wants it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the pipeline, and draw once so that nothing is left to be compiled."""
        self.pipeline: Pipeline = stillhouse.load("shapes")
        self.pipeline.generate("", steps=1)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Draw all of them, and answer all of them."""
        drafts: list[ImageTrajectory | StillhouseError] = [self._started(request) for request in requests]
        while walking := [one for one in drafts if isinstance(one, ImageTrajectory) and not one.is_done]:
            self.pipeline.advance(walking)
        return [self._answered(one) for one in drafts]

    def _started(self, request: Any) -> ImageTrajectory | StillhouseError:
        def told(name: str) -> Any:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            return None if tensor is None else tensor.as_numpy().reshape(-1)[0]

        steps, guidance = told("STEPS"), told("GUIDANCE")
        try:
            return self.pipeline.start(
                stillhouse.ImageRequest(
                    told("PROMPT").decode(),
                    seed=int(told("SEED") or 0),
                    steps=None if steps is None else int(steps),
                    guidance=None if guidance is None else float(guidance),
                )
            )
        except StillhouseError as error:
            return error

    def _answered(self, one: ImageTrajectory | StillhouseError) -> Any:
        if isinstance(one, StillhouseError):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(one)))
        result = self.pipeline.finish(one)
        image = pb_utils.Tensor("IMAGE", np.ascontiguousarray(result.image[None]))
        seed = pb_utils.Tensor("SEED", np.array([[result.request.seed]], np.int64))
        return pb_utils.InferenceResponse(output_tensors=[image, seed])
