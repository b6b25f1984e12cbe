"""diffusers scheduler of a distilled model (student). Each student's directory has a copy, which needs only diffusers.

Apache-2.0; made by Stillhouse.
"""

from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput


class StepPlanScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Sample by DDIM steps at the fixed timesteps that a student was distilled to, and end at the clean picture.

    diffusers' DDIMScheduler cannot do this: it takes no list of timesteps, and its steps are all equally long.

    Args:
        plan: timesteps, noisiest first.
        alphas, sigmas: weights of picture and noise at each timestep: z = alpha * x0 + sigma * noise.
        prediction_type: what the network's output means: v_prediction, epsilon or sample.
        num_train_timesteps: number of timesteps of the noise schedule that the network was trained on.
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
        """Set `timesteps` to the fixed timesteps, on `device`; `others` are ignored.

        Raises:
            ValueError: `num_inference_steps` differs from the number of fixed timesteps.
        """
        if num_inference_steps != len(self.config.plan):
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}; allowed: {len(self.config.plan)}, "
                "which this network was distilled to"
            )
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(self.config.plan).long().to(device)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Return `sample` unchanged, because the network takes unscaled latents."""
        return sample

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Make one DDIM step (arXiv 2010.02502, equation 12) from `timestep` to the next fixed timestep.

        Args:
            model_output: the network's output for `sample`.
            timestep: one of the fixed timesteps.
            sample: latents at this timestep.
            return_dict: whether an object with named fields is returned.

        Returns:
            the latents after the step and the predicted clean latents: an object with `prev_sample` and
            `pred_original_sample`, or a tuple where `return_dict` is False.
        """
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
        """Return clean latents with noise added to them.

        Args:
            original_samples, noise: clean latents and noise, [B, C, h, w] each.
            timesteps: for each sample one of the fixed timesteps, whose noise level the result has.
        """
        places = [self.config.plan.index(float(timestep)) for timestep in timesteps]
        shape = (-1, *[1] * (original_samples.ndim - 1))
        levels = original_samples.new_tensor([self._levels[place] for place in places])
        return levels[:, 0].view(shape) * original_samples + levels[:, 1].view(shape) * noise

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)
