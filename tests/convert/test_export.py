"""Graphs without weights that say what torch says, at batches and sizes that were not traced."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from numpy.typing import NDArray

from stillhouse.backends.registry import open_runner
from stillhouse.backends.safetensors_index import read_safetensors_index
from stillhouse.convert.families.stable_diffusion import export_text_encoder, export_unet, export_vae
from stillhouse.convert.weights import write_module
from stillhouse.errors import ImportFailed
from tests.checkpoints import text_config, unet, vae

BACKENDS = ["onnxruntime", "openvino"]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(5)
    with torch.inference_mode():
        yield


def assert_close(one: NDArray[Any], other: torch.Tensor) -> None:
    np.testing.assert_allclose(one, other.numpy(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_unet(tmp_path: Path, backend: str, dtype: torch.dtype) -> None:
    network = unet("sd1").to(dtype)
    weights = write_module(network, tmp_path)
    feeds = {
        "sample": torch.randn(3, 4, 10, 6),
        "timestep": torch.tensor([0.0, 17.5, 999.0]),
        "encoder_hidden_states": torch.randn(3, 77, 32),
    }
    expected = network.float()(**feeds, return_dict=False)[0]
    export_unet(network, tmp_path / "model.onnx", weights, tokens=77)
    runner = open_runner(tmp_path / "model.onnx", backend)
    assert_close(runner({name: tensor.numpy() for name, tensor in feeds.items()})["out_sample"], expected)
    assert [spec.shape for spec in runner.inputs] == [(None, 4, None, None), (None,), (None, 77, 32)]


def test_unet_that_is_told_its_guidance(tmp_path: Path) -> None:
    network = unet("sd1", time_cond_proj_dim=16)
    weights = write_module(network, tmp_path)
    feeds = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([100.0, 900.0]),
        "encoder_hidden_states": torch.randn(2, 20, 32),
        "timestep_cond": torch.randn(2, 16),
    }
    expected = network(**feeds, return_dict=False)[0]
    export_unet(network, tmp_path / "model.onnx", weights, tokens=20)
    output = open_runner(tmp_path / "model.onnx")({name: tensor.numpy() for name, tensor in feeds.items()})
    assert_close(output["out_sample"], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("projection", [False, True])
def test_text_encoder(tmp_path: Path, backend: str, projection: bool) -> None:
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    network = kind(text_config("gelu", projection=16)).eval()
    weights = write_module(network, tmp_path)
    ids = torch.randint(0, 500, (3, 77))
    ids[0, 9], ids[1, 40], ids[1, 60] = (network.config.eos_token_id,) * 3
    expected = network(ids, output_hidden_states=True)
    export_text_encoder(network, tmp_path / "model.onnx", weights, tokens=77, penultimate=projection)
    outputs = open_runner(tmp_path / "model.onnx", backend)({"input_ids": ids.numpy()})
    if projection:
        assert_close(outputs["last_hidden_state"], expected.hidden_states[-2])
        assert_close(outputs["text_embeds"], expected.text_embeds)
    else:
        assert outputs.keys() == {"last_hidden_state"}
        assert_close(outputs["last_hidden_state"], expected.last_hidden_state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vae(tmp_path: Path, backend: str) -> None:
    network = vae().eval()
    weights = write_module(network, tmp_path)
    sample, latents = torch.rand(2, 3, 24, 40), torch.randn(2, 4, 6, 10)
    spread, decoded = network.encode(sample).latent_dist, network.decode(latents).sample
    export_vae(network, tmp_path / "encoder.onnx", tmp_path / "decoder.onnx", weights)
    encoded = open_runner(tmp_path / "encoder.onnx", backend)({"sample": sample.numpy()})
    assert_close(encoded["mean"], spread.mean)
    assert_close(encoded["std"], spread.std)
    output = open_runner(tmp_path / "decoder.onnx", backend)({"latent_sample": latents.numpy()})
    assert_close(output["sample"], decoded)


def test_all_weights_lie_in_the_safetensors_file(tmp_path: Path) -> None:
    network = unet("sd1")
    weights = write_module(network, tmp_path)
    export_unet(network, tmp_path / "model.onnx", weights, tokens=77)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer]
    assert {place["location"] for place in places} == {weights.name}
    assert len({place["offset"] for place in places}) == len(places) == len(read_safetensors_index(weights))
    mapped = sum(int(place["length"]) for place in places)
    assert mapped == sum(tensor.length for tensor in read_safetensors_index(weights).values())
    constants = [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"]
    assert sum(onnx.numpy_helper.to_array(constant).nbytes for constant in constants) < 0.01 * mapped


def test_the_graph_does_not_depend_on_the_weights(tmp_path: Path) -> None:
    graphs = []
    for scale in (0.0, 1.0):
        network = unet("sd1")
        for parameter in network.parameters():
            parameter.mul_(scale)
        folder = tmp_path / str(scale)
        weights = write_module(network, folder)
        export_unet(network, folder / "model.onnx", weights, tokens=77)
        graphs.append((folder / "model.onnx").read_bytes())
    assert graphs[0] == graphs[1]


def test_weights_of_another_network(tmp_path: Path) -> None:
    weights = write_module(vae(), tmp_path)
    with pytest.raises(ImportFailed, match=r"diffusion_pytorch_model.safetensors has no weights for .*"):
        export_unet(unet("sd1"), tmp_path / "model.onnx", weights, tokens=77)
    assert not (tmp_path / "model.onnx").exists()
