"""`python -m stillhouse.shapes.train.encoder`: train the encoder of picture features and write it into the package."""

import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stillhouse.convert.export import export_encoder
from stillhouse.fit.fit import fit
from stillhouse.fit.stage import UpdateLog
from stillhouse.shapes.feature_encoder import FOLDER, GRAPH, WEIGHTS
from stillhouse.shapes.train.features import FeaturesStage, SceneClassifier
from stillhouse.shapes.train.pictures import full_pictures, seeded_rng
from stillhouse.shapes.train.training_plan import TrainingPlan

LAYERS = 3
_CALIBRATION_PICTURES = 5000
"""Number of rendered pictures over which the mean and the standard deviation of each feature are computed."""


def main() -> None:
    """Train the feature encoder, resuming from a checkpoint, and replace the package's encoder at the end."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoints", type=Path, default=Path("build/encoder"), help="directory of checkpoints")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(TrainingPlan().seed)
    stage = FeaturesStage(TrainingPlan())
    fit(stage, arguments.checkpoints, _print_update)
    write_encoder(stage, FOLDER)


class ChannelStatistics(nn.Module):
    """Network that computes the features of pictures for Frechet distance, precision and recall.

    A feature is the spatial mean of one channel after one of the classifier's first three activations. Each feature is
    then standardised by its mean and standard deviation over rendered pictures. The early layers are used because these
    layers respond to blur and noise, whereas the last layers respond to content only.

    Args:
        network: trained classifier of scenes, whose layers are used.
    """

    def __init__(self, network: SceneClassifier) -> None:
        super().__init__()
        layers = list(network.trunk.children())
        count = [index for index, layer in enumerate(layers) if isinstance(layer, nn.SiLU)][LAYERS - 1] + 1
        self.layers = nn.ModuleList(layers[:count])
        width = sum(layer.num_channels for layer in self.layers if isinstance(layer, nn.GroupNorm))
        self.mean, self.scale = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.ones(width))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return features [B, 112] of pictures [B, 3, 64, 64] with values from -1 to 1."""
        means = []
        for layer in self.layers:
            pictures = layer(pictures)
            if isinstance(layer, nn.SiLU):
                means.append(pictures.mean(dim=(2, 3)))
        features: Tensor = (torch.cat(means, dim=1) - self.mean) * self.scale
        return features

    @torch.no_grad()
    def calibrate(self, seed: int) -> None:
        """Set mean and scale of each feature in place, so that rendered pictures have standardised features.

        Args:
            seed: decides the 5000 pictures.
        """
        rng = seeded_rng(seed, 13)
        features = torch.cat([self(full_pictures(rng, 100)) for _ in range(_CALIBRATION_PICTURES // 100)])
        self.mean.copy_(features.mean(dim=0))
        self.scale.copy_(1 / features.std(dim=0).clamp(min=1e-6))


def write_encoder(stage: FeaturesStage, folder: Path) -> None:
    """Standardise the features of a trained classifier, and write them as the feature encoder: ONNX graph and weights.

    Args:
        stage: the finished training of the classifier.
        folder: folder to write into, created where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder = ChannelStatistics(stage.network).eval()
    encoder.calibrate(stage.seed)
    save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, folder / WEIGHTS.name)
    (folder / WEIGHTS.name).chmod(0o644)
    export_encoder(encoder, folder / GRAPH.name, folder / WEIGHTS.name)


def _print_update(update_log: UpdateLog) -> None:
    if update_log.scores:
        scores = "  ".join(f"{name} {value:.3f}" for name, value in update_log.scores.items())
        print(f"{update_log.stage} {update_log.update}: loss {update_log.loss:.4f}  {scores}", flush=True)


if __name__ == "__main__":
    main()
