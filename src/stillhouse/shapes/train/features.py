"""A fourth stage: a network that reads a scene from its picture. What it sees on the way are features.

Sets of pictures are compared in them, as others compare in those of Inception: it learns from true pictures only.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.shapes.caption import describe
from stillhouse.shapes.scene import render_scene, sample_scene
from stillhouse.shapes.train.pictures import seeded_rng, to_tensor
from stillhouse.shapes.train.slots import SLOTS, encode_slots
from stillhouse.shapes.train.training_plan import TrainingPlan

FEATURES = 128
_WIDTHS = (16, 32, 64, 96)
_EVAL_SAMPLES = 512
_NOISE = 0.1
"""Of noise on the pictures, so that features are no matter of single levels."""


class SceneClassifier(nn.Module):
    """0.3 M parameters: four halving convolutions, features, and a linear reader for each slot."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * _WIDTHS[-1], FEATURES))
        self.readers = nn.ModuleList(nn.Linear(FEATURES, len(words) + 1) for words in SLOTS)

    def forward(self, pictures: Tensor) -> Tensor:
        """Features [B, 128] of pictures [B, 3, 64, 64] from -1 to 1."""
        features: Tensor = self.trunk(pictures)
        return features

    def slot_logits(self, pictures: Tensor) -> list[Tensor]:
        """Logits for each slot."""
        features = functional.silu(self(pictures))
        return [reader(features) for reader in self.readers]


class FeaturesStage:
    """The mean cross-entropy of every slot."""

    name = "features"
    fingerprint = ""

    def __init__(self, plan: TrainingPlan) -> None:
        self.seed, self.recipe = plan.seed, plan.features
        self.network = SceneClassifier()
        rng = seeded_rng(self.seed, 11)
        self._held_out = [sample_scene(rng) for _ in range(_EVAL_SAMPLES)]

    def loss(self, update: int) -> Tensor:
        """Of a fresh batch of true pictures."""
        rng = seeded_rng(self.seed, 12, update)
        scenes = [sample_scene(rng) for _ in range(self.recipe.batch_size)]
        pictures = to_tensor([render_scene(scene) for scene in scenes])
        grain = torch.from_numpy(rng.standard_normal(pictures.shape, dtype="float32"))
        answers = self.network.slot_logits(pictures + _NOISE * grain)
        truth = torch.tensor([encode_slots(describe(scene)) for scene in scenes])
        losses = [functional.cross_entropy(answer, truth[:, slot]) for slot, answer in enumerate(answers)]
        return torch.stack(losses).mean()

    def evaluate(self) -> Mapping[str, float]:
        """Shares of slots, and of whole scenes, that are read right."""
        answers = self.network.slot_logits(to_tensor([render_scene(scene) for scene in self._held_out]))
        truth = torch.tensor([encode_slots(describe(scene)) for scene in self._held_out])
        right = torch.stack([answer.argmax(1) == truth[:, slot] for slot, answer in enumerate(answers)], dim=1)
        return {"slots": right.float().mean().item(), "scenes": right.all(1).float().mean().item()}
