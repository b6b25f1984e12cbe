"""Train a classifier of scenes whose activations serve as features of pictures, as Inception's do in FID.

The classifier is trained on rendered pictures only.
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
"""Standard deviation of the noise on training pictures, whose values are from -1 to 1.

The noise makes the features insensitive to differences of single grey levels."""


class SceneClassifier(nn.Module):
    """Network that recognises the slots (attributes, such as the first figure's colour) of the scene in a picture.

    The network has four strided convolutions, a feature layer, and a linear head for each slot.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * _WIDTHS[-1], FEATURES))
        self.readers = nn.ModuleList(nn.Linear(FEATURES, len(words) + 1) for words in SLOTS)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the features, float32 [B, 128], of pictures [B, 3, 64, 64] with values from -1 to 1."""
        features: Tensor = self.trunk(pictures)
        return features

    def slot_logits(self, pictures: Tensor) -> list[Tensor]:
        """Return for each slot (attribute of a scene) the logits of its labels, [B, words of the slot + 1].

        Label 0 means that the scene lacks this attribute.

        Args:
            pictures: [B, 3, 64, 64] from -1 to 1.
        """
        features = functional.silu(self(pictures))
        return [reader(features) for reader in self.readers]


class FeaturesStage:
    """Training task for the loop `fit`: the classifier learns to recognise the slots (attributes) of rendered scenes.

    The loss is the mean cross-entropy of the slots.

    Args:
        plan: seed, and hyper-parameters of the training.
    """

    name = "features"
    fingerprint = ""

    def __init__(self, plan: TrainingPlan) -> None:
        self.seed, self.recipe = plan.seed, plan.features
        self.network = SceneClassifier()
        rng = seeded_rng(self.seed, 11)
        self._held_out = [sample_scene(rng) for _ in range(_EVAL_SAMPLES)]

    def loss(self, update: int) -> Tensor:
        """Return the loss of batch number `update`, rendered pictures with noise, as a scalar with gradients."""
        rng = seeded_rng(self.seed, 12, update)
        scenes = [sample_scene(rng) for _ in range(self.recipe.batch_size)]
        pictures = to_tensor([render_scene(scene) for scene in scenes])
        noise = torch.from_numpy(rng.standard_normal(pictures.shape, dtype="float32"))
        logits = self.network.slot_logits(pictures + _NOISE * noise)
        labels = torch.tensor([encode_slots(describe(scene)) for scene in scenes])
        losses = [functional.cross_entropy(output, labels[:, slot]) for slot, output in enumerate(logits)]
        return torch.stack(losses).mean()

    def evaluate(self) -> Mapping[str, float]:
        """Evaluate the recognition of 512 rendered pictures.

        Returns:
            `slots`, the share of slots (attributes) that are right, and `scenes`, the share of scenes whose slots are
            all right, 0 to 1 each.
        """
        logits = self.network.slot_logits(to_tensor([render_scene(scene) for scene in self._held_out]))
        labels = torch.tensor([encode_slots(describe(scene)) for scene in self._held_out])
        hits = torch.stack([output.argmax(1) == labels[:, slot] for slot, output in enumerate(logits)], dim=1)
        return {"slots": hits.float().mean().item(), "scenes": hits.all(1).float().mean().item()}
