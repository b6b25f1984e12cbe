"""CLIP and Inception encoders, compared with transformers and with a network of known outputs."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from stillhouse.core import ImageRequest, Picture
from stillhouse.distill.evaluation.comparison import CaptionSet, GenerationSetup, compare_setups
from stillhouse.distill.evaluation.metric_encoders import MetricEncoders, open_clip, open_inception
from stillhouse.errors import InvalidRequest
from stillhouse.measure.set_metrics import frechet_distance
from stillhouse.pipelines.load import load
from tests.checkpoints import vocabulary, write_tokenizer

PROMPTS = ("a red circle", "a blue circle", "a circle")


class MeanColours(torch.nn.Module):
    """Replaces Inception: the mean values of the four quarters."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        parts = images.float().reshape(images.shape[0], 3, 2, images.shape[2] // 2, 2, images.shape[3] // 2)
        return parts.mean(dim=(3, 5)).flatten(1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model with random weights and scores that differ between pictures."""
    directory = tmp_path_factory.mktemp("clip") / "model"
    torch.manual_seed(0)
    common = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    end = len(vocabulary()) - 1
    text = {
        **common,
        "vocab_size": end + 1,
        "max_position_embeddings": 77,
        "eos_token_id": end,
        "bos_token_id": end - 1,
    }
    vision = {**common, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = transformers.CLIPModel(config)
    model.visual_projection.weight.data.neg_()  # with this seed all cosines would be negative
    model.save_pretrained(directory)
    write_tokenizer(directory.parent / "tokenizer")
    transformers.CLIPTokenizer.from_pretrained(directory.parent / "tokenizer").save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inception") / "inception.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about TorchScript itself
        torch.jit.script(MeanColours()).save(str(file))  # type: ignore[no-untyped-call]
    return file


def pictures(count: int, height: int = 64, width: int = 64) -> list[Picture]:
    rng = np.random.default_rng(5)
    base = rng.integers(0, 256, (count, height // 8, width // 8, 3), np.uint8)
    return [np.kron(tile, np.ones((8, 8, 1), np.uint8)) for tile in base]


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_the_clip_score_is_the_cosine_of_transformers(clip: Path, size: tuple[int, int]) -> None:
    samples = pictures(3, *size)
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(clip)(list(PROMPTS), padding="max_length", return_tensors="pt")
    edge = {"shortest_edge": 32}
    processor = transformers.CLIPImageProcessor(size=edge, crop_size={"height": 32, "width": 32})
    inputs = processor(images=samples, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**tokens, **inputs).logits_per_image.diagonal() / model.logit_scale.exp()
    # Pillow and transformers may round resized values differently, by 1 of 255.
    assert open_clip(clip)(samples, PROMPTS) == pytest.approx(100 * expected.clamp(min=0).numpy(), abs=0.2)
    assert expected.std() > 0.001 and expected.min() > 0, "scores differ between pictures"


def test_fid_is_the_frechet_distance_of_its_features(inception: Path) -> None:
    encoder, samples = open_inception(inception), pictures(6)
    expected = np.stack(
        [picture.reshape(2, 32, 2, 32, 3).mean(axis=(1, 3)).transpose(2, 0, 1).ravel() for picture in samples]
    )
    assert encoder(samples) == pytest.approx(expected, abs=1e-3)
    assert frechet_distance(encoder(samples), encoder(samples)) == pytest.approx(0.0, abs=1e-6)


def test_a_comparison_contains_both_metrics(clip: Path, inception: Path) -> None:
    pipeline = load("shapes")
    setups = [
        GenerationSetup(name, pipeline, ImageRequest("", steps=steps)) for name, steps in (("two", 2), ("one", 1))
    ]
    encoders = MetricEncoders(open_clip(clip), open_inception(inception))

    def mean_colours(batch: list[Picture]) -> np.ndarray:
        return np.array([picture.reshape(-1, 3).mean(0) for picture in batch])

    captions = CaptionSet(tuple(f"a circle {number}" for number in range(8)))
    first, other = compare_setups(setups, captions, mean_colours, encoders=encoders).results  # type: ignore[arg-type]
    assert first.clip is not None and other.clip is not None and first.clip != other.clip
    assert first.fid == pytest.approx(0.0, abs=1e-3) and other.fid and other.fid > 1


def test_files_without_an_encoder_are_refused(clip: Path, inception: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no CLIP model in"):
        open_clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(InvalidRequest, match="cannot be opened as a CLIP model"):
        open_clip(tmp_path)
    with pytest.raises(InvalidRequest, match="there is no file"):
        open_inception(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(InvalidRequest, match="is not an Inception network"):
        open_inception(tmp_path / "text.pt")
