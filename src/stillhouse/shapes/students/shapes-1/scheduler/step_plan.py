"""The scheduler of a student, for diffusers. This file is copied beside the weights, and needs nothing but diffusers.

Apache-2.0; made by Stillhouse.
"""

from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput


class StepPlanScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Walks the one grid that a student was distilled to, by DDIM steps, and ends at the clean picture.

    diffusers' DDIMScheduler steps to `timestep - num_train_timesteps // steps`, which is not the next listed timestep
    for most numbers of steps, and takes no list; a student knows no other levels than its own.

    Args:
        plan: timesteps, noisiest first.
        alphas, sigmas: of those levels, z = alpha * x0 + sigma * noise.
        prediction_type: what the network's output means: v_prediction, epsilon or sample.
        num_train_timesteps: of the schedule that they are from.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        plan: list[float],
        alphas: list[float],
        sigmas: list[float],
        prediction_type: str = "v_prediction",
        num_train_timesteps: int = 1000,
    ) -> None:
        self.init_noise_sigma = 1.0
        self.timesteps = torch.tensor(plan).long()
        self._levels = [*zip(alphas, sigmas, strict=True), (1.0, 0.0)]

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **others: Any) -> None:
        """Take the plan; any other number of steps is refused."""
        if num_inference_steps != len(self.config.plan):
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}; allowed: {len(self.config.plan)}, "
                "which this network was distilled to"
            )
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(self.config.plan).long().to(device)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Nothing to scale."""
        return sample

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The DDIM step (arXiv 2010.02502, equation 12) to the next level of the plan."""
        place = self.config.plan.index(float(timestep))
        (alpha, sigma), (next_alpha, next_sigma) = self._levels[place], self._levels[place + 1]
        if self.config.prediction_type == "v_prediction":
            clean = alpha * sample - sigma * model_output
        elif self.config.prediction_type == "epsilon":
            clean = (sample - sigma * model_output) / alpha
        else:
            clean = model_output
        kept = next_sigma / sigma
        moved = kept * sample + (next_alpha - alpha * kept) * clean
        if not return_dict:
            return moved, clean
        return DDIMSchedulerOutput(prev_sample=moved, pred_original_sample=clean)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """Pictures at levels of the plan."""
        places = [self.config.plan.index(float(timestep)) for timestep in timesteps]
        shape = (-1, *[1] * (original_samples.ndim - 1))
        levels = original_samples.new_tensor([self._levels[place] for place in places])
        return levels[:, 0].view(shape) * original_samples + levels[:, 1].view(shape) * noise

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)
