"""Model of Triton's Python backend. A batch of requests is generated to its end and then answered.

This is request-level dynamic batching: requests with few steps wait for those with many.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

import stillhouse
from stillhouse.errors import StillhouseError
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline


class TritonPythonModel:
    """The embedded model; the class name is fixed by the backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the pipeline and generate once, so that everything is compiled."""
        self.pipeline: Pipeline = stillhouse.load("shapes")
        self.pipeline.generate("", steps=1)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Generate and answer a batch of requests."""
        trajectories: list[ImageTrajectory | StillhouseError] = [self._started(request) for request in requests]
        while active := [
            trajectory
            for trajectory in trajectories
            if isinstance(trajectory, ImageTrajectory) and not trajectory.is_done
        ]:
            self.pipeline.advance(active)
        return [self._answered(trajectory) for trajectory in trajectories]

    def _started(self, request: Any) -> ImageTrajectory | StillhouseError:
        def read_input(name: str) -> Any:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            return None if tensor is None else tensor.as_numpy().reshape(-1)[0]

        steps, guidance = read_input("STEPS"), read_input("GUIDANCE")
        try:
            return self.pipeline.start(
                stillhouse.ImageRequest(
                    read_input("PROMPT").decode(),
                    seed=int(read_input("SEED") or 0),
                    steps=None if steps is None else int(steps),
                    guidance=None if guidance is None else float(guidance),
                )
            )
        except StillhouseError as error:
            return error

    def _answered(self, trajectory: ImageTrajectory | StillhouseError) -> Any:
        if isinstance(trajectory, StillhouseError):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(trajectory)))
        result = self.pipeline.finish(trajectory)
        image = pb_utils.Tensor("IMAGE", np.ascontiguousarray(result.image[None]))
        seed = pb_utils.Tensor("SEED", np.array([[result.request.seed]], np.int64))
        return pb_utils.InferenceResponse(output_tensors=[image, seed])
