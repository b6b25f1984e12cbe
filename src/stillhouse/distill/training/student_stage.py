"""What every training task of a student holds: its network, the weights of its errors, and its evaluation."""

from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.diffusion import Prediction, Schedule
from stillhouse.distill.training.networks import Denoiser
from stillhouse.fit.recipe import StageRecipe

Weighting = Literal["v", "snr_trunc"]
"""Name of a weight for the squared error of a predicted clean picture (Salimans and Ho, arXiv 2202.00512, section 4).

v: the weight is SNR + 1, which gives the squared error of the velocity v. snr_trunc: the weight is max(SNR, 1), which
gives the larger of the squared errors of the clean picture and of the noise."""


@dataclass(frozen=True, kw_only=True)
class StudentStage:
    """Training task in which a student network learns; subclasses say from which data and by which loss.

    Args:
        name: stem of the names of checkpoints and logs.
        recipe: hyper-parameters of the training.
        network: the student's network, which is trained.
        schedule, prediction: noise schedule and prediction type of the student.
        weighting: weight of the error by noise level: v (SNR + 1) or snr_trunc (max(SNR, 1)).
        huber: width of the pseudo-Huber loss; 0: squared error.
        seed: decides the examples and their noise.
        eval_samples: number of pictures or trajectories in each evaluation.
        fingerprint: hash of what the training starts from and of its settings; checkpoints with another fingerprint
            are refused.
    """

    name: str
    recipe: StageRecipe
    network: Any
    schedule: Schedule
    prediction: Prediction
    weighting: Weighting = "v"
    huber: float = 0.0
    seed: int = 0
    eval_samples: int = 16
    fingerprint: str = ""

    @property
    def student(self) -> Denoiser:
        """The student's network with its noise schedule and prediction type."""
        return Denoiser(self.network, self.schedule, self.prediction)
